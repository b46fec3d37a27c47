"""Reading a step on another number of ranks than wrote it: what comes from storage, and what memory that takes.

Bytes are counted by the kernel where every read is one of storage (`rchar` of each process), less what its sockets got.
Memory is the highest that the kernel saw of a process since the counter was set back (`VmHWM`).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from atoll.checkpoint.digests import MASK
from atoll.checkpoint.fs_read import Wanted, opened
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.manifest import CommitRecord
from atoll.checkpoint.torch_digests import digest_box
from atoll.checkpoint.torch_fan_out import restore
from atoll.checkpoint.torch_layout import lay_out
from benchmarks import checkpoint_ranks as ranks
from benchmarks.checkpoint_ground import Ground, ground
from benchmarks.checkpoint_state import FULL, QUICK, tensors
from benchmarks.ranks import Rank, RankFailed
from benchmarks.reporting import Figure, Report

_CASES = {"1_to_4": (1, 4), "4_to_1": (4, 1), "4_to_3": (4, 3)}
_BAR = 1.05
_MIB = 1 << 20
_RAM_BAR_MIB = 128.0


def read(*, quick: bool, place: Path) -> Report:
    """Every case by ours and by torch's reader, each of a step that the same wrote."""
    shape = QUICK if quick else FULL
    rows: dict[str, dict[str, Any]] = {}
    beyond: list[float] = []
    for name, (had, has) in _CASES.items():
        with ground(place) as field:
            field.hold(shape, size=had)
            field.lay(size=had)
            steps = {by: _saved(field, by, had) for by in ("atoll", "dcp")}
            sums = field.crew.call(digests, size=had)
            field.hold(shape, size=has)
            row: dict[str, Any] = {}
            for by, step in steps.items():
                found = field.crew.call(
                    load, by=by, step=step, folder=str(field.saves), size=has, limit_s=ranks.SAVE_S
                )[:has]
                _check(name, by, sums, field.crew.call(digests, size=has))
                row[f"{by}_read"] = sum(a["read"] for a in found) / shape.state_bytes
                row[f"{by}_s"] = max(a["ended"] for a in found) - found[0]["begun"]
                row[f"{by}_beyond_mib"] = max(a["beyond"] for a in found) / _MIB
            beyond.append(row["atoll_beyond_mib"])
            rows[name] = row
    figures = [
        Figure(
            name=f"read_amplification_{name}",
            value=row["atoll_read"],
            bar=_BAR,
            floor=False,
            note=f"bytes read a byte of state, by all ranks; torch's reader {row['dcp_read']:.3g}",
        )
        for name, row in rows.items()
    ]
    figures.append(
        Figure(
            name="host_ram_extra_load_mib",
            value=max(beyond),
            bar=_RAM_BAR_MIB,
            floor=False,
            note=(
                "the most of one rank beyond the tensors that it fills; torch's reader "
                f"{max(r['dcp_beyond_mib'] for r in rows.values()):.3g}"
            ),
        )
    )
    return Report(figures=tuple(figures), details={"rows": rows})


def memory(*, quick: bool, place: Path) -> Report:
    """What a save takes of memory beside the state: the slab, and the process that writes it."""
    with ground(place) as field:
        field.hold(QUICK if quick else FULL)
        slabs = field.lay()
        found = field.crew.call(save_memory, step=1, limit_s=ranks.SAVE_S)
    share = max(a["own"] / slab for a, slab in zip(found, slabs, strict=True))
    process = max(a["io"] for a in found) / _MIB
    figures = (
        Figure(
            name="host_ram_extra_save",
            value=share,
            bar=1.0,
            floor=False,
            note=f"growth of a rank at its highest by its slab of {slabs[0] / _MIB:.0f} MiB; shared memory counts here",
        ),
        Figure(name="io_process_mib", value=process, floor=False, note="the interpreter that writes, without the slab"),
    )
    return Report(figures=figures, details={"slab_bytes": slabs, "found": found})


def _saved(field: Ground, by: str, size: int) -> int:
    """A step by one contestant, which stays. Its number."""
    step = {"atoll": 1, "dcp": 2}[by]
    field.crew.call(save_on, by=by, step=step, folder=str(field.saves), size=size, limit_s=ranks.SAVE_S)
    return step


def _check(name: str, by: str, before: Sequence[dict[str, int]], after: Sequence[dict[str, int]]) -> None:
    """The values are those that were saved: digests of the boxes of a tensor add up alike, however it is cut."""
    had, has = _added(before), _added(after)
    if had != has:
        wrong = sorted(key for key in had | has if had.get(key) != has.get(key))
        raise RankFailed(f"{name} by {by}: what was loaded is not what was saved: {wrong[:3]}, {len(wrong)} in all")


def _added(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for key, value in part.items():
            found[key] = (found.get(key, 0) + value) & MASK
    return found


# -- on the ranks ------------------------------------------------------------------------------------------------------


def save_on(rank: Rank, *, by: str, step: int, folder: str, size: int) -> None:
    """A save by the first `size` ranks; the others wait for nothing."""
    if rank.number < size and by == "atoll":
        ranks.ours(rank, step)
    elif rank.number < size:
        dcp.save(rank.things["state"], storage_writer=dcp.FileSystemWriter(f"{folder}/dcp-{step}"))


def digests(rank: Rank, *, size: int) -> dict[str, int]:
    """Of this rank's boxes of each tensor that is cut, added up."""
    if rank.number >= size:
        return {}
    laid = lay_out(rank.things["state"], rank=rank.number, size=size)
    logicals = {one.name: one for one in laid.layout.logicals}
    found: dict[str, int] = {}
    for (name, box), view in laid.views.items():
        if box.shape:
            found[name] = (found.get(name, 0) + digest_box(view, logicals[name], box)) & MASK
    return found


def load(rank: Rank, *, by: str, step: int, folder: str, size: int) -> dict[str, float]:
    """Fill the state, whose values are another's: bytes read, and memory beyond the state at its highest."""
    for tensor in tensors(rank.things.get("state", {})).values():
        tensor.detach().fill_(0)
    begun = rank.gate()
    if rank.number >= size:
        return {"begun": begun, "ended": begun, "read": 0, "beyond": 0}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    held, had = resident("VmRSS"), rchar()
    passed = _by_atoll(rank, step, folder) if by == "atoll" else _by_dcp(rank, step, folder)
    return {
        "begun": begun,
        "ended": time.monotonic(),
        "read": rchar() - had - passed,
        "beyond": resident("VmHWM") - held,
    }


def _by_dcp(rank: Rank, step: int, folder: str) -> int:
    dcp.load(rank.things["state"], storage_reader=dcp.FileSystemReader(f"{folder}/dcp-{step}"))
    return 0


def _by_atoll(rank: Rank, step: int, folder: str) -> int:
    """What sockets got meanwhile: the pieces that other ranks read."""
    store = Store(Path(folder) / "atoll")
    record = store.record(step)
    if not isinstance(record, CommitRecord):
        raise TypeError("a step of format 1")
    size = dist.get_world_size()
    laid = lay_out(rank.things["state"], rank=rank.number, size=size, node=f"node-{rank.number}")
    told: list[Any] = [None] * size
    before = rchar()
    dist.all_gather_object(told, [[held.tensor, held.box] for held in laid.layout.held])
    passed = rchar() - before
    wants = [[Wanted(name, box) for name, box in one] for one in told]

    def trade(messages: Sequence[bytes]) -> list[bytes]:
        nonlocal passed
        begun = rchar()
        found = _traded(messages)
        passed += rchar() - begun
        return found

    restore(opened(store.step_directory(step), record), rank.number, wants, laid.views, trade)
    return passed


def _traded(messages: Sequence[bytes]) -> list[bytes]:
    """One message to each rank and one from each, over torch's group."""
    size, own = dist.get_world_size(), dist.get_rank()
    lengths = torch.tensor([len(m) for m in messages])
    table = [torch.empty_like(lengths) for _ in range(size)]
    dist.all_gather(table, lengths)
    found = [torch.empty(int(table[other][own]), dtype=torch.uint8) for other in range(size)]
    works = []
    for other in range(size):
        if other == own:
            continue
        if messages[other]:
            works.append(dist.isend(torch.frombuffer(bytearray(messages[other]), dtype=torch.uint8), other))
        if len(found[other]):
            works.append(dist.irecv(found[other], other))
    for work in works:
        if work is not None:
            work.wait()
    return [messages[own] if other == own else found[other].numpy().tobytes() for other in range(size)]


def save_memory(rank: Rank, *, step: int) -> dict[str, int]:
    """Memory that a first save takes, in bytes: of this process with its slab, and of the I/O process without it."""
    if not rank.things["writer"].rehearsed.wait(ranks.SAVE_S):
        raise TimeoutError("the writer never got ready")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    held = resident("VmRSS")
    rank.gate()
    ranks.ours(rank, step)
    others = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    own = resident("VmHWM") - held
    return {"own": own, "io": sum(resident("VmHWM", pid) - resident("RssShmem", pid) for pid in others)}


def rchar() -> int:
    """Bytes that this process has read by calls of reading, from storage or its cache."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(told["rchar"])


def resident(name: str, pid: str = "self") -> int:
    """A line of a process's status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel tells no {name}")
