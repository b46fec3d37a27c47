"""Copying a state into a slab in the background, and letting go of each tensor as soon as it is copied.

One thread copies in the order of the slab, in pieces of some megabytes, so that the interpreter's lock is free while it
does. Whoever is about to change tensors waits only for those: they are copied next. On a GPU the copies run on a stream
of their own into pinned memory, begun once the kernels that were in hand at the save have passed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.image import Image, Place
from atoll.fault.inject import failpoint

Views = Mapping[tuple[str, Box], torch.Tensor]
# One copy of this size takes about a millisecond: as long as a changing tensor waits for another that is being copied.
_PIECE_BYTES = 8 << 20
# As many pieces may be under way on a GPU's stream before the oldest is waited for.
_IN_FLIGHT = 8


@dataclass(slots=True, eq=False)
class Staging:
    """One state on its way into one slab. `views` are let go of when it ends."""

    slab: Slab
    image: Callable[[], Image]
    views: Views
    problem: str = ""
    passed: dict[torch.device, torch.cuda.Event] = field(default_factory=dict)
    lock: threading.Condition = field(default_factory=threading.Condition)
    by_storage: dict[int, list[int]] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    undone: set[int] = field(default_factory=set)
    laid_out: bool = False
    ended: bool = False

    def begin(self) -> None:
        """From now on the tensors must not change but through `wait`. Marks what the GPU has in hand."""
        for device in {v.device for v in self.views.values() if v.is_cuda}:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self.passed[device] = event

    def wait(self, tensors: Iterable[torch.Tensor] | None, timeout_s: float) -> bool:
        """Until these tensors (None: all) are copied. False where that takes longer: then the copy is thrown away."""
        with self.lock:
            if not self.lock.wait_for(lambda: self.laid_out or self.ended, timeout_s):
                return self._give_up(timeout_s)
            indexes = self._indexes(tensors)
            self.wanted = sorted(indexes, reverse=True)
            if self.lock.wait_for(lambda: self.ended or not (indexes & self.undone), timeout_s):
                return True
            return self._give_up(timeout_s)

    def _give_up(self, timeout_s: float) -> bool:
        self.problem = self.problem or f"the state was not copied within {timeout_s:.0f} s"
        return False

    def _indexes(self, tensors: Iterable[torch.Tensor] | None) -> set[int]:
        if tensors is None:
            return set(self.undone)
        found: set[int] = set()
        for tensor in tensors:
            found.update(self.by_storage.get(storage_of(tensor), ()))
        return found & self.undone

    # -- the staging thread ------------------------------------------------------------------------------------------

    def run(self) -> Image | None:
        """Copy all of it; the image, or None where that failed (`problem`)."""
        image: Image | None = None
        try:
            failpoint("before-layout")
            image = self.image()
            self.slab.draw(image)
            failpoint("before-staging")
            self._copy(list(image.places()))
            failpoint("after-staging")
        except Exception as error:  # noqa: BLE001 - the thread's outer edge: a failed save is a fact
            self.problem = self.problem or f"copying the state: {error}"
        with self.lock:
            self.views, self.passed, self.ended = {}, {}, True
            self.undone.clear()
            self.lock.notify_all()
        return None if self.problem else image

    def _copy(self, places: Sequence[Place]) -> None:
        views = [self.views[place.logical.name, place.box] for place in places]
        with self.lock:
            for index, view in enumerate(views):
                self.by_storage.setdefault(storage_of(view), []).append(index)
            self.undone = set(range(len(places)))
            self.laid_out = True
            self.lock.notify_all()
        mover = _Mover(self)
        waiting = iter(range(len(places)))
        while (at := self._next(waiting)) is not None:
            mover.move(at, self.slab.target(places[at]), views[at])
            failpoint("in-staging")
        mover.drain()

    def _next(self, waiting: Iterable[int]) -> int | None:
        with self.lock:
            while self.wanted:
                wanted = self.wanted.pop()
                if wanted in self.undone:
                    return wanted
            for index in waiting:
                if index in self.undone:
                    return index
            return None

    def done(self, index: int) -> None:
        """This place is copied."""
        with self.lock:
            self.undone.discard(index)
            self.lock.notify_all()


class _Mover:
    """Copies one view after the other, those of a GPU on a stream of its own."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._flying: list[tuple[int, torch.cuda.Event, torch.Tensor]] = []

    def move(self, index: int, target: torch.Tensor, view: torch.Tensor) -> None:
        source = view.detach()
        if source.is_cuda:
            self._fly(index, target, source)
            return
        for into, piece in _pieces(target, source):
            into.copy_(piece)
        self._staging.done(index)

    def drain(self) -> None:
        """Until nothing is under way."""
        while self._flying:
            self._land()

    def _fly(self, index: int, target: torch.Tensor, source: torch.Tensor) -> None:
        device = source.device
        stream = self._streams.get(device)
        if stream is None:
            pin(self._staging.slab)
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_event(self._staging.passed[device])
        with torch.cuda.stream(stream):
            # A view that is not contiguous is gathered on the device first: one long transfer instead of many short.
            gathered = source.contiguous()
            target.copy_(gathered, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        self._flying.append((index, event, gathered))
        if len(self._flying) > _IN_FLIGHT:
            self._land()

    def _land(self) -> None:
        index, event, _ = self._flying.pop(0)
        event.synchronize()
        self._staging.done(index)


def pin(slab: Slab) -> None:
    """Have the slab's pages pinned, so that copies from a GPU go straight into them. Without a right to it, not."""
    memory = torch.frombuffer(slab.view(), dtype=torch.uint8)
    if memory.is_pinned():
        return
    cuda, address = torch.cuda.cudart(), memory.data_ptr()  # type: ignore[no-untyped-call]
    if int(cuda.cudaHostRegister(address, memory.numel(), 0)) == 0:
        slab.pinned(lambda: cuda.cudaHostUnregister(address))


def storage_of(tensor: torch.Tensor) -> int:
    """What tells the memory of a tensor from others', whatever part of it the tensor shows."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.untyped_storage().data_ptr())


def _pieces(target: torch.Tensor, source: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Both along their first dimension in runs of about `_PIECE_BYTES`."""
    size = target.numel() * target.element_size()
    if size <= _PIECE_BYTES or target.shape[0] == 1:
        return [(target, source)] if size else []
    rows = max(1, target.shape[0] * _PIECE_BYTES // size)
    starts = range(0, target.shape[0], rows)
    return ((target[a : a + rows], source[a : a + rows]) for a in starts)
