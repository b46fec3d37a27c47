"""Ranks that save and load steps through torch's own `torch.distributed.checkpoint`."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from atoll.checkpoint.torch_dcp import StorageReader, StorageWriter

WHOLE = torch.arange(70.0).view(10, 7)


def group(rank, size, folder, name):
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=size)
    warnings.simplefilter("ignore")
    return init_device_mesh("cpu", (size,))


def state_of(mesh, placement, scale):
    """Sharded, replicated and plain tensors, and a value."""
    return {
        "model": {
            "cut": distribute_tensor(WHOLE * scale, mesh, [placement]),
            "same": distribute_tensor(WHOLE[:2] * scale, mesh, [Replicate()]),
            "plain": torch.ones(3) * scale,
        },
        "step": int(scale),
    }


def save(rank, size, folder):
    """Steps 1 (at once) and 2 (later)."""
    mesh = group(rank, size, folder, "save")
    dcp.save(state_of(mesh, Shard(0), 1.0), storage_writer=StorageWriter(f"{folder}/steps/step-00000001"))
    later = dcp.async_save(state_of(mesh, Shard(1), 2.0), storage_writer=StorageWriter(f"{folder}/steps/step-00000002"))
    later.result()
    dist.destroy_process_group()
    return "saved"


def load(rank, size, folder, step):
    """The local parts after loading a step that others, and other numbers of ranks, may have written."""
    mesh = group(rank, size, folder, f"load-{step}")
    found = {}
    for name, placement in (("rows", Shard(0)), ("columns", Shard(1)), ("all", Replicate())):
        state = state_of(mesh, placement, 0.0)
        dcp.load(state, storage_reader=StorageReader(f"{folder}/steps/step-{step:08d}"))
        model = state["model"]
        wanted = distribute_tensor(WHOLE * step, mesh, [placement]).to_local()
        found[name] = [
            torch.equal(model["cut"].to_local(), wanted),
            torch.equal(model["same"].to_local(), WHOLE[:2] * step),
            torch.equal(model["plain"], torch.ones(3) * step),
            state["step"] == step,
        ]
    dist.destroy_process_group()
    return found
