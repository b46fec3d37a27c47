"""Operations in which every pair of ranks exchanges at most one message, as generators for the loop.

A *move* carries tensors from rank to rank unchanged: all-gather, all-to-all, gather and scatter are moves that differ in
who gives what to whom. A *reduction* sends each piece straight to the rank that owns it; the owner adds the contributions
in rank order, so every rank that receives the sum sees the same bits, and with one owner for each rank's share no link
carries more than a reduce-scatter must. An all-reduce of operations and types that no plan adds up (products, bits, complex numbers) is a
reduction whose owners then tell all.

Values cross in the caller's own type, and halves are added in float32 and rounded once. Nothing is sent from a caller's
buffer and nothing is received into it, so inputs survive an abort. Also a message of no bytes is sent: ranks that
disagree on how much to exchange notice, instead of waiting.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atoll.collectives.call import Call, pack
from atoll.collectives.tcp_operations import fence_of, write
from atoll.collectives.tcp_peer import Ticket
from atoll.collectives.tcp_reactor import Operation, Reactor
from atoll.collectives.tcp_sums import COLLECTIVES, combine
from atoll.collectives.torch_scratch import Scratch, bytes_of
from atoll.collectives.work import Work

Array = np.ndarray[Any, Any]
Pieces = Sequence[torch.Tensor]
# By rank: a receive and the memory [bytes] that it fills.
Arrivals = dict[int, tuple[Ticket, torch.Tensor]]
Summing = Generator[list[Ticket], None, torch.Tensor]

FUNCTIONS: Mapping[str, np.ufunc] = {
    "sum": np.add,
    "avg": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_ADDED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """This rank's part: `gives` to and `takes` from ranks, its own among them. `result` is what the work will hold."""

    call: Call
    gives: Mapping[int, Pieces]
    takes: Mapping[int, Pieces]
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """This rank's part: its contribution to the piece of each owner; `into` receives the total that this rank owns.

    `call.op` names the function; "avg" divides the sum by the number of ranks.
    """

    call: Call
    pieces: Mapping[int, Pieces]
    into: Pieces = ()
    result: Any = None


class Exchanges:
    """Makes the generators of one rank. The generators run on the loop's thread, the calls on any."""

    def __init__(self, reactor: Reactor, rank: int, size: int) -> None:
        self._reactor, self._rank, self._size = reactor, rank, size
        # Each rank begins with its next neighbour, or all would send to rank 0 first.
        self._others = [(rank + step) % size for step in range(1, size)]
        self._scratch = Scratch()

    def move(self, task: Move, sequence: int, work: Work) -> Operation:
        """Tensors from rank to rank."""
        return self._move(task, sequence, _fences(task.gives.values()), work)

    def reduce(self, task: Reduction, sequence: int, work: Work) -> Operation:
        """Each piece is added up by its owner."""
        return self._reduce(task, sequence, _fences(task.pieces.values()), work)

    def all_reduce(self, buffers: Pieces, call: Call, sequence: int, work: Work) -> Operation:
        """Each rank owns an equal share of the elements, adds it up and sends the total to all."""
        return self._all_reduce(buffers, call, sequence, _fences([buffers]), work)

    # -- moves -------------------------------------------------------------------------------------------------------

    def _move(self, task: Move, sequence: int, fences: list[Callable[[], None]], work: Work) -> Operation:
        for fence in fences:
            fence()
        self._reactor.open(pack(task.call), sequence)
        arrivals = {r: self._memory(_bytes(task.takes[r])) for r in self._others if r in task.takes}
        tickets = [self._post(r, sequence, 0, memory) for r, memory in arrivals.items()]
        staged: dict[int, torch.Tensor] = {}
        for rank in self._others:
            if rank in task.gives:
                pieces = task.gives[rank]
                if id(pieces) not in staged:  # what goes to several ranks is copied once
                    staged[id(pieces)] = self._staged(pieces)
                tickets.append(self._send(rank, sequence, 0, staged[id(pieces)]))
        yield tickets
        work.finish(task.result, write=lambda: self._deliver(task, arrivals))
        self._give_back([*arrivals.values(), *staged.values()])

    def _deliver(self, task: Move, arrivals: Mapping[int, torch.Tensor]) -> None:
        own = task.takes.get(self._rank, ())
        if own and own is not task.gives[self._rank]:
            for here, there in zip(own, task.gives[self._rank], strict=True):
                here.detach().copy_(there.detach().reshape(here.shape))
        for rank, memory in arrivals.items():
            unpack(memory, task.takes[rank])

    # -- reductions --------------------------------------------------------------------------------------------------

    def _reduce(self, task: Reduction, sequence: int, fences: list[Callable[[], None]], work: Work) -> Operation:
        for fence in fences:
            fence()
        self._reactor.open(pack(task.call), sequence)
        owns = self._rank in task.pieces
        arrivals = self._contributions(_bytes(task.pieces[self._rank]), sequence) if owns else {}
        staged = {r: self._staged(pieces) for r, pieces in task.pieces.items()}
        sent = [self._send(r, sequence, 0, staged[r]) for r in self._others if r in staged]
        if owns:
            dtype = task.pieces[self._rank][0].dtype
            total = yield from self._sum(task.call, staged[self._rank], arrivals, dtype)
            yield sent
            work.finish(task.result, write=lambda: unpack(total, task.into))
        else:
            yield sent
            work.finish(task.result)
        self._give_back([*staged.values(), *_memories(arrivals)])

    def _all_reduce(
        self, buffers: Pieces, call: Call, sequence: int, fences: list[Callable[[], None]], work: Work
    ) -> Operation:
        for fence in fences:
            fence()
        self._reactor.open(pack(call), sequence)
        whole, dtype = self._staged(buffers), buffers[0].dtype
        cuts = _cuts(whole.numel() // dtype.itemsize, self._size, dtype.itemsize)
        shares = [whole[start:end] for start, end in cuts]
        results = self._memory(whole.numel())
        places = [results[start:end] for start, end in cuts]
        arrivals = self._contributions(shares[self._rank].numel(), sequence)
        tickets = [self._post(r, sequence, 1, places[r]) for r in self._others]
        tickets += [self._send(r, sequence, 0, shares[r]) for r in self._others]
        total = yield from self._sum(call, shares[self._rank], arrivals, dtype)
        places[self._rank].copy_(total)
        tickets += [self._send(r, sequence, 1, places[self._rank]) for r in self._others]
        yield tickets
        work.finish(buffers, write=lambda: unpack(results, buffers))
        self._give_back([whole, results, *_memories(arrivals)])

    def _contributions(self, size: int, sequence: int) -> Arrivals:
        """Receives for what the others add to this rank's piece of `size` bytes."""
        found = {}
        for rank in self._others:
            memory = self._memory(size)
            found[rank] = self._post(rank, sequence, 0, memory), memory
        return found

    def _sum(self, call: Call, own: torch.Tensor, arrivals: Arrivals, dtype: torch.dtype) -> Summing:
        """The total [bytes] of this rank's piece: all contributions in rank order, added as they arrive."""
        function, wide = FUNCTIONS[call.op], _ADDED_IN.get(dtype, dtype)
        if own.numel() == 0:  # torch cannot view no elements of one type as another
            yield [ticket for ticket, _ in arrivals.values()]
            return own
        total: Array | None = None
        for rank in range(self._size):
            memory = own
            if rank != self._rank:
                ticket, memory = arrivals[rank]
                yield [ticket]
            values = _numbers(memory, dtype, wide)
            # In place: this memory is ours, and what arrived is needed no more.
            total = values if total is None else combine(function, total, values, total)
        assert total is not None  # noqa: S101 - there is at least this rank
        if call.op == "avg":
            np.divide(total, self._size, out=total)
        return torch.from_numpy(total).to(dtype).view(torch.uint8)

    # -- memory and messages -----------------------------------------------------------------------------------------

    def _post(self, rank: int, sequence: int, part: int, memory: torch.Tensor) -> Ticket:
        return self._reactor.post(rank, COLLECTIVES, sequence, part, bytes_of(memory))

    def _send(self, rank: int, sequence: int, part: int, memory: torch.Tensor) -> Ticket:
        return self._reactor.send(rank, COLLECTIVES, sequence, part, bytes_of(memory))

    def _memory(self, size: int) -> torch.Tensor:
        return self._scratch.take(size, torch.uint8)

    def _staged(self, pieces: Pieces) -> torch.Tensor:
        """A copy [bytes] of `pieces`, one after the other."""
        memory = self._memory(_bytes(pieces))
        for piece, start, end in _layout(pieces):
            memory[start:end].view(piece.dtype).view(piece.shape).copy_(piece.detach())
        return memory

    def _give_back(self, memories: Iterable[torch.Tensor]) -> None:
        for memory in memories:
            self._scratch.give_back(memory)


def unpack(memory: torch.Tensor, pieces: Pieces) -> None:
    """Write [bytes] into `pieces`, one after the other."""
    for piece, start, end in _layout(pieces):
        write(piece, memory[start:end].view(piece.dtype))


def _layout(pieces: Pieces) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Where each piece lies among the bytes of all, at a multiple of its element's size."""
    end = 0
    for piece in pieces:
        size = piece.element_size()
        start = -(-end // size) * size
        end = start + piece.numel() * size
        yield piece, start, end


def _bytes(pieces: Pieces) -> int:
    return max((end for _, _, end in _layout(pieces)), default=0)


def _memories(arrivals: Arrivals) -> list[torch.Tensor]:
    return [memory for _, memory in arrivals.values()]


def _numbers(memory: torch.Tensor, dtype: torch.dtype, wide: torch.dtype) -> Array:
    array: Array = memory.view(dtype).to(wide).numpy()
    return array


def _cuts(count: int, size: int, itemsize: int) -> list[tuple[int, int]]:
    """`size` ranges of bytes that cover `count` elements; the first ones get one more."""
    edges = [(count * i // size) * itemsize for i in range(size + 1)]
    return list(itertools.pairwise(edges))


def _fences(groups: Iterable[Pieces]) -> list[Callable[[], None]]:
    return [fence_of(piece) for pieces in groups for piece in pieces if piece.is_cuda]
