"""The operations of an epoch as generators for its loop.

Nothing is received into a caller's buffer, unless it is said to be used in place: contributions are added into scratch
memory on their way, and the result is written when it is complete (`Work.finish`). Half-precision sums are carried in float32,
bool in int32. CUDA buffers pass through pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from atoll.collectives.call import Call, pack
from atoll.collectives.plan import Plan
from atoll.collectives.tcp_peer import Ticket
from atoll.collectives.tcp_reactor import Operation, Reactor
from atoll.collectives.tcp_sums import COLLECTIVES, Sum, Summation
from atoll.collectives.torch_codecs import Codec
from atoll.collectives.torch_codecs import codec as codec_named
from atoll.collectives.torch_residuals import Feedback
from atoll.collectives.torch_scratch import Scratch, bytes_of
from atoll.collectives.work import Work
from atoll.errors import InternalError

Gathering = Generator[list[Ticket], None, list[bytes]]
ReduceOp = Literal["sum", "min", "max"]

CARRIED_IN = {
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
_LENGTH_BYTES = 8
# What a payload's first frame holds beside its length: votes and reports of a step fit, so that they cost one frame.
_FIRST_BYTES = 504
# Up to this many elements torch copies on the calling thread, and more cheaply than by way of numpy.
_ONE_THREAD_ELEMENTS = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One all-reduce as it was asked for. `planned` gives the plan for (elements, bytes of one), on the loop's thread.

    `after`: tickets that must be done before it can. `landed` is called with the result in place and nobody told yet.
    """

    buffer: torch.Tensor
    op: ReduceOp
    sequence: int
    planned: Callable[[int, int], Plan]
    after: tuple[Ticket, ...] = ()
    codec: Codec | None = None
    feedback: Feedback | None = None
    landed: Callable[[], None] | None = None
    in_place: bool = False


def carried(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are sent and added."""
    return CARRIED_IN[dtype]


def check_reducible(buffer: torch.Tensor, op: str, codec: str | None = None) -> None:
    """Raises `InternalError` for a type that cannot be summed, an unknown `op` or `codec`, or what `codec` does not take."""
    if buffer.dtype not in CARRIED_IN or op not in _COMBINE:
        known = ", ".join(str(dtype) for dtype in CARRIED_IN)
        raise InternalError(f"all_reduce {op!r} of {buffer.dtype}: it takes {', '.join(_COMBINE)} of {known}")
    if codec is not None:
        codec_named(codec)
    if codec is not None and (carried(buffer.dtype) is not torch.float32 or op != "sum"):
        raise InternalError(
            f"all_reduce {op!r} of {buffer.dtype} in codec {codec!r}: codecs take sums of float32 and less"
        )


class Operations:
    """Makes the generators of one rank. The generators run on the loop's thread, the calls on any."""

    def __init__(self, reactor: Reactor, rank: int, size: int) -> None:
        self._reactor, self._rank, self._size = reactor, rank, size
        self._others = [r for r in range(size) if r != rank]
        self._scratch = Scratch()

    def all_reduce(self, request: Request, work: Work) -> Operation:
        """The buffer becomes the elementwise `op` over all ranks."""
        return self._all_reduce(request, fence_of(request.buffer), work)

    def all_gather(self, payload: bytes, sequence: int, work: Work) -> Operation:
        """First all lengths, each with the beginning of its payload, then the rest of those that are longer."""
        found = yield from self._gathered(payload, sequence)
        work.finish(found)

    def exchange(
        self,
        say: Callable[[], bytes],
        hear: Callable[[list[bytes]], None],
        sequence: int,
        work: Work,
        after: Sequence[Ticket] = (),
    ) -> Operation:
        """All ranks tell all what `say` gives when the operation begins; `hear` gets what all told, in rank order.

        `after`: tickets that must be done before it hears. Over several connections a later exchange may be through first.
        """
        found = yield from self._gathered(say(), sequence)
        yield [*after]
        hear(found)
        work.finish()

    def _gathered(self, payload: bytes, sequence: int) -> Gathering:
        self._reactor.open(pack(Call("all_gather")), sequence)
        firsts = {r: bytearray(_LENGTH_BYTES + _FIRST_BYTES) for r in self._others}
        tickets = [self._reactor.post(r, COLLECTIVES, sequence, 0, memoryview(b)) for r, b in firsts.items()]
        mine = (len(payload).to_bytes(_LENGTH_BYTES, "big") + payload[:_FIRST_BYTES]).ljust(
            _LENGTH_BYTES + _FIRST_BYTES, b"\0"
        )
        for rank in self._others:
            tickets.append(self._reactor.send(rank, COLLECTIVES, sequence, 0, memoryview(mine)))
            if len(payload) > _FIRST_BYTES:
                rest = memoryview(payload)[_FIRST_BYTES:]
                tickets.append(self._reactor.send(rank, COLLECTIVES, sequence, 1, rest))
        yield tickets
        lengths = {r: int.from_bytes(first[:_LENGTH_BYTES], "big") for r, first in firsts.items()}
        rests = {r: bytearray(max(0, length - _FIRST_BYTES)) for r, length in lengths.items()}
        yield [self._reactor.post(r, COLLECTIVES, sequence, 1, memoryview(b)) for r, b in rests.items() if b]
        found = {r: bytes(firsts[r][_LENGTH_BYTES : _LENGTH_BYTES + lengths[r]] + rests[r]) for r in self._others}
        return [payload if r == self._rank else found[r] for r in range(self._size)]

    def broadcast(self, buffer: torch.Tensor, root: int, sequence: int, work: Work) -> Operation:
        """From `root` to each."""
        return self._broadcast(buffer, root, sequence, fence_of(buffer), work)

    def send(self, buffer: torch.Tensor, rank: int, lane: int, work: Work, *, in_place: bool = False) -> Operation:
        """One message to one rank; `in_place`: out of `buffer` itself, which does not change before the end."""
        if in_place and _is_plain(buffer):
            return self._send_out_of(buffer.detach(), rank, lane, work)
        return self._send(buffer, rank, lane, fence_of(buffer), work)

    def recv(
        self, buffer: torch.Tensor, rank: int | None, lane: int, work: Work, *, in_place: bool = False
    ) -> Operation:
        """One message from one rank, or from any; the result is whose it was.

        `in_place`: straight into `buffer`, which holds anything where that fails.
        """
        self._reactor.open(_message(buffer))
        if in_place and _is_plain(buffer):
            ticket = self._reactor.post_message(rank, lane, bytes_of(buffer.detach().view(-1)))
            yield [ticket]
            work.finish(ticket.rank)
            return
        scratch = self._scratch.take(buffer.numel(), buffer.dtype, pinned=buffer.is_cuda)
        ticket = self._reactor.post_message(rank, lane, bytes_of(scratch))
        yield [ticket]
        work.finish(ticket.rank, write=lambda: write(buffer, scratch))
        self._scratch.give_back(scratch, pinned=buffer.is_cuda)

    def _send_out_of(self, buffer: torch.Tensor, rank: int, lane: int, work: Work) -> Operation:
        self._reactor.open(_message(buffer))
        yield [self._reactor.send(rank, lane, 0, 0, bytes_of(buffer.view(-1)))]
        work.finish(rank)

    def _send(self, buffer: torch.Tensor, rank: int, lane: int, fence: Callable[[], None], work: Work) -> Operation:
        fence()
        self._reactor.open(_message(buffer))
        staged = self._staged(buffer, buffer.dtype)
        yield [self._reactor.send(rank, lane, 0, 0, bytes_of(staged))]
        self._scratch.give_back(staged, pinned=buffer.is_cuda)
        work.finish(rank)

    def _broadcast(
        self, buffer: torch.Tensor, root: int, sequence: int, fence: Callable[[], None], work: Work
    ) -> Operation:
        fence()
        self._reactor.open(pack(Call("broadcast", dtype_name(buffer), buffer.numel(), plan=root)), sequence)
        if self._rank == root:
            scratch = self._staged(buffer, buffer.dtype)
            view = bytes_of(scratch)
            yield [self._reactor.send(r, COLLECTIVES, sequence, 0, view) for r in self._others]
            work.finish(buffer)
        else:
            scratch = self._scratch.take(buffer.numel(), buffer.dtype, pinned=buffer.is_cuda)
            yield [self._reactor.post(root, COLLECTIVES, sequence, 0, bytes_of(scratch))]
            work.finish(buffer, write=lambda: write(buffer, scratch))
        self._scratch.give_back(scratch, pinned=buffer.is_cuda)

    def _all_reduce(self, request: Request, fence: Callable[[], None], work: Work) -> Operation:
        fence()
        buffer = request.buffer
        if self._size == 1:
            work.finish(buffer, write=lambda: _give_back(request))
            return
        plain, wide = buffer.detach(), carried(buffer.dtype)
        in_place = plain.dtype is wide and plain.device.type == "cpu" and plain.is_contiguous()
        # Only read, unless in place; see the module's words on callers' buffers.
        mine = plain.view(-1) if in_place else self._staged(buffer, wide)
        yield [*request.after]
        plan = request.planned(mine.numel(), mine.itemsize)
        codec = request.codec.name if request.codec is not None else ""
        call = Call("all_reduce", dtype_name(buffer), buffer.numel(), request.op, codec, plan.digest)
        self._reactor.open(pack(call), request.sequence, relayed=True)
        work.trace.what = f"{call} by {plan.name}"
        task = Sum(
            plan=plan,
            own=mine,
            function=_COMBINE[request.op],
            sequence=request.sequence,
            codec=request.codec,
            feedback=request.feedback,
            in_place=in_place and request.in_place,
        )
        total = yield from Summation(self._reactor, self._scratch, self._rank, task).run()
        work.finish(buffer, write=lambda: _land(request, None if task.in_place else total))
        if not task.in_place:
            self._scratch.give_back(total)
        if not in_place:
            self._scratch.give_back(mine, pinned=buffer.is_cuda)

    def _staged(self, buffer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy [elements] of `buffer` in CPU memory of ours."""
        staged = self._scratch.take(buffer.numel(), dtype, pinned=buffer.is_cuda)
        staged.copy_(buffer.detach().reshape(-1))
        return staged


def _land(request: Request, total: torch.Tensor | None) -> None:
    """The sum to the caller, the losses to the residuals, both before anybody who waits goes on to commit."""
    if total is not None:
        write(request.buffer, total)
    if request.landed is not None:
        request.landed()


def _give_back(request: Request) -> None:
    """Alone: nothing is coded, and what codes lost before goes into the sum."""
    held = None if request.feedback is None else request.feedback.stranded(())
    if held is not None:
        plain = request.buffer.detach()
        plain.add_(torch.from_numpy(held).view(plain.shape).to(plain.device))
    if request.landed is not None:
        request.landed()


def dtype_name(buffer: torch.Tensor) -> str:
    """As calls name it."""
    return str(buffer.dtype).removeprefix("torch.")


def _is_plain(buffer: torch.Tensor) -> bool:
    """Whether its elements lie one after the other in host memory."""
    return buffer.device.type == "cpu" and buffer.is_contiguous()


def _message(buffer: torch.Tensor) -> bytes:
    return pack(Call("send", dtype_name(buffer), buffer.numel()))


def write(buffer: torch.Tensor, scratch: torch.Tensor) -> None:
    """Copy the result [elements] where the caller wants it, on this thread alone where torch is not needed."""
    plain = buffer.detach()
    if plain.is_cuda:
        plain.copy_(scratch.view(plain.shape))
        torch.cuda.current_stream(plain.device).synchronize()
    elif plain.dtype is scratch.dtype and plain.is_contiguous() and plain.numel() > _ONE_THREAD_ELEMENTS:
        np.copyto(np.frombuffer(bytes_of(plain.view(-1)), np.uint8), np.frombuffer(bytes_of(scratch), np.uint8))
    else:
        plain.copy_(scratch.view(plain.shape))


def fence_of(buffer: torch.Tensor) -> Callable[[], None]:
    """Waits until what the caller's CUDA stream has queued so far for `buffer` is done."""
    if not buffer.is_cuda:
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(buffer.device))
    return event.synchronize
