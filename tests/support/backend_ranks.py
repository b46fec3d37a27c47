"""One rank of the tests of the `torch.distributed` backend: runs scenarios on Gloo and on ours, and compares."""

from __future__ import annotations

import time
import traceback
from datetime import timedelta

import backend_scenarios
import backend_training
import torch
import torch.distributed as dist

# What torch imports late is imported once here, for all ranks.
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
import torch.nn.parallel
from backend_values import difference

import atoll.collectives.torch_backend  # noqa: F401 - registers the backend

torch.set_num_threads(1)
SCENARIOS = backend_scenarios.SCENARIOS | backend_training.SCENARIOS


def compare(rank, size, names, folder):
    """{scenario: {"gloo": seconds or words, "atoll": likewise, "difference": words}}."""
    found = {name: {} for name in names}
    results = {}
    for backend in ("gloo", "atoll"):
        for name in names:
            results[backend, name], found[name][backend] = outcome(backend, name, rank, size, folder)
    for name in names:
        one, other = results["gloo", name], results["atoll", name]
        found[name]["difference"] = difference(one, other)
    return found


def outcome(backend, name, rank, size, folder):
    begun = time.monotonic()
    arguments = {"folder": folder} if name == "checkpoints" else {}
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/{backend}-{name}-store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=15),
    )
    try:
        torch.manual_seed(0)
        result = SCENARIOS[name](rank, size, **arguments)
        dist.barrier()
    except Exception as error:  # noqa: BLE001 - whatever it is, the test judges it
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    return result, round(time.monotonic() - begun, 3)
