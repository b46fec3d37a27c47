"""Parts without ranks: a table of a million extents, a plan over as many boxes, and what digests cost a core."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.columns import Boxes
from atoll.checkpoint.digests import compiled, digest_bytes
from atoll.checkpoint.extents import Extents
from atoll.checkpoint.fs_extents import ExtentFile, extents_bytes
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.reshard_columns import Holdings, plan_columns
from atoll.checkpoint.torch_digests import digest_in_torch
from benchmarks import timing
from benchmarks.checkpoint_ground import scratch
from benchmarks.reporting import Figure, Report

_OPEN_BAR_MS, _PLAN_BAR_S = 10.0, 1.0
# Extents of the table: as many tensors as a large model has, cut over as many ranks as a large cluster has.
_ROWS = 1_000_000
_TENSORS = 1000
_COLUMNS = 64
_QUICK_ROWS = 100_000
# Many times the caches, and few enough that torch's form, ten times slower, ends soon.
_DIGEST_BYTES = (256 << 20, 16 << 20)
_ROUNDS = (15, 3)


def manifest(*, quick: bool, place: Path) -> Report:
    """Opening a table of a million extents, and planning a million boxes from one number of ranks to another."""
    rows = _QUICK_ROWS if quick else _ROWS
    extents = table(rows)
    rounds = _ROUNDS[quick]
    with scratch(place) as folder:
        path = folder / "table.arrow"
        path.write_bytes(extents_bytes(extents))
        opening = [_timed(lambda: len(ExtentFile(path))) for _ in range(rounds)]
        one = {extents.logicals[len(extents.logicals) // 2].name}
        single = [_timed(lambda: ExtentFile(path).of(one)) for _ in range(rounds)]
        reading = [_timed(lambda: ExtentFile(path).all()) for _ in range(rounds)]
        size = path.stat().st_size
    cuts = rows // _TENSORS
    sources = Holdings(extents.boxes, extents.rank)
    targets = cut(cuts * 3 // 4, extents.logicals)
    copies = plan_columns(extents.logicals, sources, targets, disjoint=True)
    planning = [
        _timed(lambda: plan_columns(extents.logicals, sources, targets, disjoint=True))
        for _ in range(max(3, rounds // 3))
    ]
    opened, planned = timing.spread(opening), timing.spread(planning)
    figures = (
        Figure(
            name="manifest_1m_open_ms",
            value=None if quick else 1e3 * opened.median,
            bar=_OPEN_BAR_MS,
            floor=False,
            note=f"{rows} extents, {size / 1e6:.0f} MB, median of {opened.count}: {1e3 * opened.median:.3g} ms",
        ),
        Figure(
            name="plan_1m_s",
            value=None if quick else planned.median,
            bar=_PLAN_BAR_S,
            floor=False,
            note=(
                f"{rows} boxes of {cuts} ranks to {len(targets.rank)} of {cuts * 3 // 4}, {len(copies)} copies, median of "
                f"{planned.count}: {planned.median:.3g} s"
            ),
        ),
    )
    return Report(
        figures=figures,
        details={
            "open_s": opened.plain(),
            "open_and_one_tensor_s": timing.spread(single).plain(),
            "open_and_read_all_s": timing.spread(reading).plain(),
            "plan_s": planned.plain(),
        },
    )


def table(rows: int) -> Extents:
    """`rows` extents: tensors of [ranks, columns], one row of each on each rank, one file a rank."""
    cuts = rows // _TENSORS
    logicals = tuple(Logical(f"layer.{n:04}.weight", "float32", (cuts * 3, _COLUMNS)) for n in range(_TENSORS))
    held = cut(cuts, logicals)
    size = held.boxes.volumes() * 4
    return Extents(
        logicals=logicals,
        files=tuple(f"e1-r{rank}of{cuts}.safetensors" for rank in range(cuts)),
        boxes=held.boxes,
        file=held.rank,
        rank=held.rank,
        offset=4096 + held.boxes.tensor * 3 * _COLUMNS * 4,
        bytes=size,
    )


def cut(ranks: int, logicals: tuple[Logical, ...]) -> Holdings:
    """Every tensor cut into rows for `ranks`, as evenly as whole rows allow; by tensor, then begin."""
    extent = logicals[0].shape[0]
    edges = np.arange(ranks + 1, dtype=np.int64) * extent // ranks
    tensor = np.repeat(np.arange(len(logicals), dtype=np.int64), ranks)
    start = np.zeros((len(tensor), 2), dtype=np.int64)
    stop = np.full((len(tensor), 2), _COLUMNS, dtype=np.int64)
    start[:, 0], stop[:, 0] = np.tile(edges[:-1], len(logicals)), np.tile(edges[1:], len(logicals))
    return Holdings(Boxes(tensor, start, stop), np.tile(np.arange(ranks, dtype=np.int64), len(logicals)))


def digest(*, quick: bool, place: Path) -> Report:
    """Bytes a second on one core: the compiled digest, its form in torch, xxh3, and a copy of the same memory."""
    del place
    size = _DIGEST_BYTES[quick]
    values = torch.randn(size // 4 // 1024, 1024)
    logical, box = Logical("weight", "float32", tuple(values.shape)), whole(tuple(values.shape))
    memory, other = memoryview(values.numpy().reshape(-1)).cast("B"), torch.empty_like(values)
    contestants: dict[str, Callable[[], Any]] = {
        "digest": lambda: digest_bytes(memory, logical, box),
        "xxh3": lambda: xxhash.xxh3_64_intdigest(memory),
        "copy": lambda: other.copy_(values),
        "torch": lambda: digest_in_torch(values, logical, box),
    }
    if contestants["digest"]() != contestants["torch"]():
        raise RuntimeError("the digest and its form in torch differ")
    order = timing.rounds(tuple(contestants), 3 if quick else 9, seed=6)
    seconds = timing.paired(order, [_timed(contestants[name]) for name in order])
    rates = {name: size / 1e9 / timing.spread(values_).median for name, values_ in seconds.items()}
    form = "compiled" if compiled() else "numpy: built without a compiler"
    figures = [
        Figure(name="digest_gb_s", value=rates["digest"], note=f"one core, {form}, median of {len(seconds['digest'])}"),
        Figure(name="digest_torch_gb_s", value=rates["torch"], note="the form to check it by"),
        Figure(name="xxh3_gb_s", value=rates["xxh3"], note="checksums of blocks"),
        Figure(name="copy_gb_s", value=rates["copy"], note="what staging does, read and written"),
        Figure(name="digest_of_copy", value=timing.ratio(seconds["copy"], seconds["digest"]), note="speeds' ratio"),
    ]
    return Report(figures=tuple(figures), details={f"{n}_s": timing.spread(v).plain() for n, v in seconds.items()})


def _timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun
