"""What a save costs a GPU: how long a step is held up with a state of several GiB in its memory, and digesting it there.

One rank, its state plain tensors. Stalls are taken with the device's work done before and after, so that a copy that is
only queued counts as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.fs_pack import logical_of
from atoll.checkpoint.torch_digests import digest_in_torch
from atoll.checkpoint.torch_flat import replicated
from atoll.checkpoint.torch_state import Flat
from atoll.checkpoint.writer import Writer
from atoll.schema.ids import RunId, TrainerId
from benchmarks import timing
from benchmarks.checkpoint_ground import scratch
from benchmarks.reporting import Figure, Report

_BYTES = (4 << 30, 1 << 30)
_TENSOR_BYTES = 256 << 20
_ROUNDS = (10, 3)
_WITHIN_S = 300.0
_KEEP = 1 << 30
# Some milliseconds of a GPU: a step has not ended when the save begins.
_KERNELS = 100


def gpu(*, quick: bool, place: Path) -> Report:
    """As `measured` on the first CUDA device; nothing where there is none."""
    if torch.cuda.is_available():
        return measured(torch.device("cuda", 0), _BYTES[quick], _ROUNDS[quick], place)
    names = ("gpu_stall_s", "gpu_digest_gb_s", "gpu_digest_of_copy")
    return Report(figures=tuple(Figure(name=name, value=None, note="no CUDA device here") for name in names))


def measured(device: torch.device, size: int, rounds: int, place: Path) -> Report:
    """Saves of `size` bytes on `device` beside kernels that keep it busy, and digests of one of its tensors."""
    elements = min(size, _TENSOR_BYTES) // 4
    flat = Flat(
        tensors={f"w{n}": torch.randn(elements, device=device) for n in range(max(1, size // _TENSOR_BYTES))}, meta={}
    )
    with scratch(place) as folder:
        writer = Writer(folder, run=RunId("benchmark"), trainer=TrainerId("trainer-0"), tell=lambda _: None, keep=_KEEP)
        try:
            saves = [_save(writer, flat, step, device) for step in range(1, rounds + 2)][1:]
        finally:
            writer.finish(_WITHIN_S)
    one = flat.tensors["w0"]
    logical, other = logical_of("w0", one), torch.empty_like(one)
    digests = [_timed(lambda: digest_in_torch(one, logical, whole(one.shape)), device) for _ in range(rounds)]
    copies = [_timed(lambda: other.copy_(one), device) for _ in range(rounds)]
    stalls, durable = timing.spread([s for s, _ in saves]), timing.spread([d for _, d in saves])
    rate = one.nbytes / 1e9 / timing.spread(digests).median
    note = f"{sum(t.nbytes for t in flat.tensors.values()) / 2**30:.2f} GiB, call and wait before an update, {rounds} saves"
    return Report(
        figures=(
            Figure(name="gpu_stall_s", value=stalls.median, note=note),
            Figure(name="gpu_digest_gb_s", value=rate, note="in torch's operations, where the tensor lies"),
            Figure(
                name="gpu_digest_of_copy", value=timing.ratio(copies, digests), note="speed by that of a copy there"
            ),
        ),
        details={"stall_s": stalls.plain(), "durable_s": durable.plain(), "device": str(device)},
    )


def _save(writer: Writer, flat: Flat, step: int, device: torch.device) -> tuple[float, float]:
    """How long a step was held up, and how long until the save was durable."""
    state, layouts = replicated(flat, 0, ["node-0"])
    weights = torch.randn(1024, 1024, device=device)
    _settled(device)
    began = time.monotonic()
    handle = writer.save(state, layouts, step=step, epoch=1, rank=0)
    called = time.monotonic()
    for _ in range(_KERNELS if device.type == "cuda" else 1):
        weights = torch.tanh(weights @ weights)
    _settled(device)
    computed = time.monotonic()
    writer.before_update()
    waited = time.monotonic() - computed
    if not handle.ended.wait(_WITHIN_S) or not handle.committed:
        raise RuntimeError(f"step {step} was not committed: {handle.problem}")
    return called - began + waited, time.monotonic() - began


def _timed(act: Callable[[], Any], device: torch.device) -> float:
    _settled(device)
    begun = time.perf_counter()
    act()
    _settled(device)
    return time.perf_counter() - begun


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
