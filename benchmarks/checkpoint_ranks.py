"""What the ranks of the checkpoint benchmark do: meet, build the state, save it by one contestant or another.

Every function here is a command of `ranks.Crew`. A save is told by its moments: `begun`, `blocked_s` (how long this
rank could not compute), `staged` and `durable`, all on the clock that processes of one machine share.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh

from atoll.checkpoint.logical import RankLayout
from atoll.checkpoint.torch_layout import lay_out
from atoll.checkpoint.writer import Writer
from atoll.fault.inject import arm
from atoll.schema.ids import RunId, TrainerId
from benchmarks.checkpoint_state import Shape, local, moved, stack, state_of, tensors
from benchmarks.ranks import Rank

_RUN = RunId("benchmark")
# A save on a machine that does much else, and the start of the peer's processes, each of which imports torch.
SAVE_S = 300.0
# Nothing is deleted behind the benchmark's back: it removes what it wrote between measurements.
_KEEP = 1 << 30
_BLOCK = 4 << 20


def join(rank: Rank, *, folder: str, size: int) -> None:
    """The first `size` ranks form torch's group; the others stay out of it."""
    if dist.is_initialized():
        dist.destroy_process_group()
    met = rank.things["met"] = rank.things.get("met", 0) + 1
    if rank.number < size:
        # torch and the processes that it starts ask the environment where to meet.
        os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1")  # noqa: TID251
        store = dist.FileStore(f"{folder}/meet-{met}-{size}", size)
        dist.init_process_group("gloo", store=store, rank=rank.number, world_size=size)


def build(rank: Rank, *, shape: dict[str, int], size: int, values: bool = True) -> None:
    """Make the model over `size` ranks and its state; `values`: with numbers of its own."""
    if rank.number >= size:
        return
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(rank.number)
    model, optimizer = stack(Shape(**shape), mesh)
    if values:
        moved(model, optimizer)
    rank.things.update(model=model, optimizer=optimizer, state=state_of(model, optimizer))


def lay(rank: Rank, *, folder: str, size: int) -> int:
    """Tell all ranks of this one's layout, once, and make its writer. How many bytes of the state are here."""
    if rank.number >= size:
        return 0
    laid = lay_out(rank.things["state"], rank=rank.number, size=size, node=f"node-{rank.number}")
    told: list[Any] = [None] * size
    dist.all_gather_object(told, laid.layout.as_plain())
    rank.things.update(laid=laid, layouts=[RankLayout.from_plain(one) for one in told], facts=[])
    rank.things["writer"] = Writer(
        Path(folder) / "atoll",
        run=_RUN,
        trainer=TrainerId(f"trainer-{rank.number}"),
        tell=rank.things["facts"].append,
        keep=_KEEP,
    )
    return sum(view.numel() * view.element_size() for view in laid.views.values())


def leave(rank: Rank) -> None:
    """End what was started: the writer with its process, and the peer's processes."""
    if (writer := rank.things.pop("writer", None)) is not None:
        writer.finish(10.0)
    for child in multiprocessing.active_children():
        child.terminate()
        child.join(5.0)


# -- saves -------------------------------------------------------------------------------------------------------------


def save(rank: Rank, *, by: str, step: int, folder: str, compute_s: float = 0.0, rest_s: float = 0.0) -> dict[str, Any]:
    """One save by one contestant, while compute that is a sleep of `compute_s` lies between it and the next update.

    `rest_s`: the steps from there to the next save, before which the peer's users have to wait for this one.
    """
    begun = rank.gate()
    found = _SAVES[by](rank, step, folder, compute_s, rest_s)
    return {"by": by, "begun": begun, **found}


def clear(rank: Rank, *, folder: str) -> None:
    """Remove what the last save left, and have the disk rest."""
    if rank.number == 0:
        for path in Path(folder).iterdir():
            for each in path.glob("step-*") if path.name == "atoll" else [path]:
                shutil.rmtree(each)
        os.sync()


class Watch(threading.Thread):
    """Notes when an event came."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__(daemon=True)
        self._event, self.at = event, 0.0
        self.start()

    def run(self) -> None:
        """Until it came."""
        if self._event.wait(SAVE_S):
            self.at = time.monotonic()

    def moment(self) -> float:
        """When it came. Raises `TimeoutError`."""
        self.join(SAVE_S)
        if not self.at:
            raise TimeoutError(f"a save did not get on within {SAVE_S:.0f} s")
        return self.at


def write(rank: Rank, *, by: str, step: int, folder: str) -> dict[str, Any]:
    """As `save`; by Atoll it counts from the moment at which all ranks have filled their slabs, and none writes before."""
    if by != "atoll":
        return save(rank, by=by, step=step, folder=folder)
    release = threading.Event()
    arm("before-handover", lambda: _waited(release))

    def go() -> float:
        begun = rank.gate()
        release.set()
        return begun

    return {"by": by, "begun": rank.gate(), **ours(rank, step, go=go)}


def _waited(release: threading.Event) -> None:
    if not release.wait(SAVE_S):
        raise TimeoutError("a rank never had its slab filled")


def ours(
    rank: Rank, step: int, compute_s: float = 0.0, rest_s: float = 0.0, go: Callable[[], float] | None = None
) -> dict[str, Any]:
    """By Atoll, as a session does it. `go` is called when the slab is full, and says when writing begins."""
    writer, began = rank.things["writer"], time.monotonic()
    handle = writer.save(
        rank.things["laid"], rank.things["layouts"], step=step, epoch=1, rank=rank.number, weights="model"
    )
    called = time.monotonic()
    staged, local_, ended = Watch(handle.staged), Watch(handle.local), Watch(handle.ended)
    time.sleep(compute_s)
    computed = time.monotonic()
    writer.before_update()
    updating = time.monotonic()
    begins = staged.moment() if go is None else max(staged.moment(), go())
    time.sleep(rest_s)
    durable = ended.moment()
    if not handle.committed:
        raise RuntimeError(f"step {step} was not committed: {handle.problem}")
    blocked = (called - began) + (updating - computed)
    moments = {"staged": begins, "local": local_.moment(), "durable": durable}
    return {"call_s": called - began, "blocked_s": blocked, **moments}


def _async(rank: Rank, step: int, folder: str, compute_s: float, rest_s: float, kind: Any) -> dict[str, Any]:
    writer = dcp.FileSystemWriter(f"{folder}/dcp-{step}")
    began = time.monotonic()
    future: Any = dcp.async_save(rank.things["state"], storage_writer=writer, async_checkpointer_type=kind)
    called = time.monotonic()
    time.sleep(compute_s + rest_s)
    waiting = time.monotonic()
    future.result(SAVE_S)
    durable = time.monotonic()
    blocked = (called - began) + (durable - waiting)
    return {"call_s": called - began, "blocked_s": blocked, "staged": called, "durable": durable}


def _dcp(rank: Rank, step: int, folder: str) -> dict[str, Any]:
    began = time.monotonic()
    dcp.save(rank.things["state"], storage_writer=dcp.FileSystemWriter(f"{folder}/dcp-{step}"))
    return _blocking(began)


def _torch_save(rank: Rank, step: int, folder: str) -> dict[str, Any]:
    state, began = local(rank.things["state"]), time.monotonic()
    with _fresh(f"{folder}/torch-{step}", f"rank-{rank.number}.pt").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    return _blocking(began)


def _safetensors(rank: Rank, step: int, folder: str) -> dict[str, Any]:
    flat, began = tensors(local(rank.things["state"])), time.monotonic()
    path = _fresh(f"{folder}/safetensors-{step}", f"rank-{rank.number}.safetensors")
    save_file(flat, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _blocking(began)


def _raw(rank: Rank, step: int, folder: str) -> dict[str, Any]:
    """As many bytes as this rank's part, out of aligned memory, in blocks as large as ours."""
    memory = rank.things.get("memory")
    if memory is None:
        laid = rank.things["laid"]
        memory = rank.things["memory"] = aligned(list(laid.views.values()))
    path = _fresh(f"{folder}/raw-{step}", f"rank-{rank.number}")
    began = time.monotonic()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_DIRECT", 0))
    try:
        view = memoryview(memory)
        for at in range(0, len(view), _BLOCK):
            done = at
            while done < min(at + _BLOCK, len(view)):
                done += os.pwrite(handle, view[done : min(at + _BLOCK, len(view))], done)
        os.fsync(handle)
    finally:
        os.close(handle)
    return _blocking(began)


def aligned(views: list[torch.Tensor]) -> Any:
    """The bytes of all `views` in whole pages."""
    import mmap  # noqa: PLC0415

    size = sum(v.numel() * v.element_size() for v in views)
    memory = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    at = 0
    for view in views:
        if count := view.numel() * view.element_size():
            torch.frombuffer(memory, dtype=view.dtype, count=view.numel(), offset=at).copy_(view.detach().reshape(-1))
            at += count
    return memory


def _fresh(folder: str, name: str) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / name


def _blocking(began: float) -> dict[str, Any]:
    ended = time.monotonic()
    return {"call_s": ended - began, "blocked_s": ended - began, "staged": began, "durable": ended}


_SAVES = {
    "atoll": lambda rank, step, _, compute_s, rest_s: ours(rank, step, compute_s, rest_s),
    "dcp_thread": lambda *words: _async(*words, AsyncCheckpointerType.THREAD),
    "dcp_process": lambda *words: _async(*words, AsyncCheckpointerType.PROCESS),
    "dcp": lambda rank, step, folder, *_: _dcp(rank, step, folder),
    "torch.save": lambda rank, step, folder, *_: _torch_save(rank, step, folder),
    "safetensors": lambda rank, step, folder, *_: _safetensors(rank, step, folder),
    "raw": lambda rank, step, folder, *_: _raw(rank, step, folder),
}


# -- training ----------------------------------------------------------------------------------------------------------


def train(rank: Rank, *, saves: bool, steps: int, step: int, rows: int) -> dict[str, Any]:
    """`steps` real steps; with `saves` a save begins after the first. Seconds of all, and those spent blocked."""
    model, optimizer = rank.things["model"], rank.things["optimizer"]
    writer, laid, layouts = (rank.things[name] for name in ("writer", "laid", "layouts"))
    inputs = torch.randn(rows, model[0].up.weight.shape[1])
    handle, blocked, begun = None, 0.0, rank.gate()
    for index in range(steps):
        model(inputs).square().mean().backward()
        ready = time.monotonic()
        writer.before_update()
        blocked += time.monotonic() - ready
        optimizer.step()
        optimizer.zero_grad()
        if saves and index == 0:
            asked = time.monotonic()
            handle = writer.save(laid, layouts, step=step, epoch=1, rank=rank.number, weights="model")
            blocked += time.monotonic() - asked
    ended = time.monotonic()
    if handle is not None and not (handle.ended.wait(SAVE_S) and handle.committed):
        raise RuntimeError(f"step {step} was not committed: {handle.problem}")
    return {"took_s": ended - begun, "blocked_s": blocked, "after_s": time.monotonic() - ended}
