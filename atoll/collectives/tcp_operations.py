"""The operations of an epoch as generators for its loop: plans over sockets, sums in scratch memory.

Nothing is sent from a caller's buffer, and nothing is received into it: contributions are added into scratch memory on
their way round, and the result is written when it is complete (`Work.finish`). Half-precision sums are carried in
float32, bool in int32. Sums use numpy on the loop's one thread: torch would start a pool of threads for each slice.
CUDA buffers pass through pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal

import numpy as np
import torch

from atoll.collectives import plan
from atoll.collectives.tcp_peer import Ticket
from atoll.collectives.tcp_reactor import Operation, Reactor
from atoll.collectives.torch_scratch import Scratch
from atoll.collectives.work import Work
from atoll.errors import InternalError

ReduceOp = Literal["sum", "min", "max"]
Array = np.ndarray[Any, Any]

_CARRIED_IN = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.int16: torch.int16,
    torch.int8: torch.int8,
    torch.uint8: torch.uint8,
    torch.bool: torch.int32,
}
_COMBINE: dict[ReduceOp, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}
_COLLECTIVES = 0
_LENGTH_BYTES = 8
# Up to this many elements torch copies on the calling thread, and more cheaply than by way of numpy.
_ONE_THREAD_ELEMENTS = 16 * 1024

# Yields what it waits for; returns the memory it took and, within that, the result [elements].
Summing = Generator[list[Ticket], None, tuple[torch.Tensor, torch.Tensor]]
Address = tuple[int, int, int]  # (rank, lane, sequence)


def check_reducible(buffer: torch.Tensor, op: str) -> None:
    """Raises `InternalError` for a type that cannot be summed or an unknown `op`."""
    if buffer.dtype not in _CARRIED_IN or op not in _COMBINE:
        known = ", ".join(str(dtype) for dtype in _CARRIED_IN)
        raise InternalError(f"all_reduce {op!r} of {buffer.dtype}: it takes {', '.join(_COMBINE)} of {known}")


class Operations:
    """Makes the generators of one rank. The generators run on the loop's thread, the calls on any."""

    def __init__(self, reactor: Reactor, rank: int, size: int) -> None:
        self._reactor, self._rank, self._size = reactor, rank, size
        self._others = [r for r in range(size) if r != rank]
        self._scratch = Scratch()

    def all_reduce(self, buffer: torch.Tensor, op: ReduceOp, sequence: int, work: Work) -> Operation:
        """`buffer` becomes the elementwise `op` over all ranks."""
        return self._all_reduce(buffer, op, sequence, _fence(buffer), work)

    def all_gather(self, payload: bytes, sequence: int, work: Work) -> Operation:
        """First all lengths, then all payloads."""
        lengths = {r: bytearray(_LENGTH_BYTES) for r in self._others}
        tickets = [self._reactor.post(r, _COLLECTIVES, sequence, 0, memoryview(b)) for r, b in lengths.items()]
        mine = len(payload).to_bytes(_LENGTH_BYTES, "big")
        for rank in self._others:
            tickets.append(self._reactor.send(rank, _COLLECTIVES, sequence, 0, memoryview(mine)))
            if payload:
                tickets.append(self._reactor.send(rank, _COLLECTIVES, sequence, 1, memoryview(payload)))
        yield tickets
        bodies = {r: bytearray(int.from_bytes(b, "big")) for r, b in lengths.items()}
        yield [self._reactor.post(r, _COLLECTIVES, sequence, 1, memoryview(b)) for r, b in bodies.items() if b]
        work.finish([payload if r == self._rank else bytes(bodies[r]) for r in range(self._size)])

    def broadcast(self, buffer: torch.Tensor, root: int, sequence: int, work: Work) -> Operation:
        """From `root` to each."""
        return self._broadcast(buffer, root, sequence, _fence(buffer), work)

    def send(self, buffer: torch.Tensor, address: Address, work: Work) -> Operation:
        """One message to one rank."""
        return self._send(buffer, address, _fence(buffer), work)

    def recv(self, buffer: torch.Tensor, address: Address, work: Work) -> Operation:
        """One message from one rank."""
        rank, lane, sequence = address
        scratch = self._scratch.take(buffer.numel(), buffer.dtype, pinned=buffer.is_cuda)
        yield [self._reactor.post(rank, lane, sequence, 0, _bytes_of(scratch))]
        work.finish(buffer, write=lambda: _write(buffer, scratch))
        self._scratch.give_back(scratch, pinned=buffer.is_cuda)

    def _send(self, buffer: torch.Tensor, address: Address, fence: Callable[[], None], work: Work) -> Operation:
        fence()
        rank, lane, sequence = address
        staged = self._staged(buffer, buffer.dtype)
        yield [self._reactor.send(rank, lane, sequence, 0, _bytes_of(staged))]
        self._scratch.give_back(staged, pinned=buffer.is_cuda)
        work.finish(buffer)

    def _broadcast(
        self, buffer: torch.Tensor, root: int, sequence: int, fence: Callable[[], None], work: Work
    ) -> Operation:
        fence()
        if self._rank == root:
            scratch = self._staged(buffer, buffer.dtype)
            view = _bytes_of(scratch)
            yield [self._reactor.send(r, _COLLECTIVES, sequence, 0, view) for r in self._others]
            work.finish(buffer)
        else:
            scratch = self._scratch.take(buffer.numel(), buffer.dtype, pinned=buffer.is_cuda)
            yield [self._reactor.post(root, _COLLECTIVES, sequence, 0, _bytes_of(scratch))]
            work.finish(buffer, write=lambda: _write(buffer, scratch))
        self._scratch.give_back(scratch, pinned=buffer.is_cuda)

    def _all_reduce(
        self,
        buffer: torch.Tensor,
        op: ReduceOp,
        sequence: int,
        fence: Callable[[], None],
        work: Work,
    ) -> Operation:
        fence()
        if self._size == 1:
            work.finish(buffer)
            return
        plain, carried = buffer.detach(), _CARRIED_IN[buffer.dtype]
        in_place = plain.dtype is carried and plain.device.type == "cpu" and plain.is_contiguous()
        # Only read, and only until the last addition; see the module's words on callers' buffers.
        mine = plain.view(-1) if in_place else self._staged(buffer, carried)
        small = plan.choose(mine.numel() * mine.itemsize, self._size) is plan.Shape.DIRECT
        block, total = yield from (self._direct if small else self._ring)(mine, _COMBINE[op], sequence)
        work.finish(buffer, write=lambda: _write(buffer, total))
        self._scratch.give_back(block)
        if not in_place:
            self._scratch.give_back(mine, pinned=buffer.is_cuda)

    def _direct(self, mine: torch.Tensor, function: np.ufunc, sequence: int) -> Summing:
        count, width = mine.numel(), mine.numel() * mine.itemsize
        block = self._scratch.take(self._size * count, mine.dtype)
        rows, views = block.numpy().reshape(self._size, count), _bytes_of(block)
        np.copyto(rows[self._rank], mine.numpy())
        part = [views[r * width : (r + 1) * width] for r in range(self._size)]
        tickets = [self._reactor.post(r, _COLLECTIVES, sequence, 0, part[r]) for r in self._others]
        tickets += [self._reactor.send(r, _COLLECTIVES, sequence, 0, part[self._rank]) for r in self._others]
        yield tickets
        order, into = plan.fold_order(self._size, self._rank)
        total = rows[order[0]]
        for rank in order[1:]:
            total = _combine(function, total, rows[rank], rows[into])
        return block, block[into * count : (into + 1) * count]

    def _ring(self, mine: torch.Tensor, function: np.ufunc, sequence: int) -> Summing:
        slices = plan.slices_for(mine.numel() * mine.itemsize, self._size)
        ring = plan.ring(self._size, self._rank, slices)
        scratch = self._scratch.take(mine.numel(), mine.dtype)
        own, sums = mine.numpy(), scratch.numpy()
        views = _bytes_of(scratch)
        width = mine.itemsize
        ranges = plan.cut(mine.numel(), self._size, slices)

        def part(piece: int, number: int) -> memoryview:
            start, end = ranges[piece][number]
            return views[start * width : end * width]

        # All receives are posted before the first send, so that bytes land where they belong however early they come. A
        # piece is received twice into the same memory, as a sum under way and as the result: the second depends on the
        # first having left, so they cannot meet.
        arrivals = [
            self._reactor.post(ring.source, _COLLECTIVES, sequence, take.part, part(take.piece, take.slice))
            for take in ring.takes
        ]
        sent = []
        for send in ring.first:
            start, end = ranges[send.piece][send.slice]
            np.copyto(sums[start:end], own[start:end])
            view = part(send.piece, send.slice)
            sent.append(self._reactor.send(ring.to, _COLLECTIVES, sequence, send.part, view))
        for take, arrival in zip(ring.takes, arrivals, strict=True):
            yield [arrival]
            start, end = ranges[take.piece][take.slice]
            if take.action is plan.Action.ADD:
                _combine(function, sums[start:end], own[start:end], sums[start:end])
            if take.forward is not None:
                view = part(take.piece, take.slice)
                sent.append(self._reactor.send(ring.to, _COLLECTIVES, sequence, take.forward, view))
        yield sent
        return scratch, scratch

    def _staged(self, buffer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy [elements] of `buffer` in CPU memory of ours."""
        staged = self._scratch.take(buffer.numel(), dtype, pinned=buffer.is_cuda)
        staged.copy_(buffer.detach().reshape(-1))
        return staged


def _combine(function: np.ufunc, one: Array, other: Array, out: Array) -> Array:
    # An overflow or NaN is the caller's to find (it votes on it), not a warning of this thread.
    with np.errstate(all="ignore"):
        result: Array = function(one, other, out=out)
    return result


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory [bytes]; the view keeps it alive."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    return tensor.view(torch.uint8).numpy().data


def _write(buffer: torch.Tensor, scratch: torch.Tensor) -> None:
    """Copy the result [elements] where the caller wants it, on this thread alone where torch is not needed."""
    plain = buffer.detach()
    if plain.is_cuda:
        plain.copy_(scratch.view(plain.shape))
        torch.cuda.current_stream(plain.device).synchronize()
    elif plain.dtype is scratch.dtype and plain.is_contiguous() and plain.numel() > _ONE_THREAD_ELEMENTS:
        np.copyto(np.frombuffer(_bytes_of(plain.view(-1)), np.uint8), np.frombuffer(_bytes_of(scratch), np.uint8))
    else:
        plain.copy_(scratch.view(plain.shape))


def _fence(buffer: torch.Tensor) -> Callable[[], None]:
    """Waits until what the caller's CUDA stream has queued so far for `buffer` is done."""
    if not buffer.is_cuda:
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(buffer.device))
    return event.synchronize
