"""One rank's part of an all-reduce by a plan: programs side by side on the loop, sums in scratch memory.

What a program has lies in one of three places: the caller's buffer (read and sent from, never written: the result goes
there only after all was sent), the operation's result memory, or a temporary. Sums on their way up a chain and values on their way down share the result memory: a value
comes down only after the sum that began there has arrived at the head, so they cannot meet. What is exchanged lies in
temporaries, so that the result can be written while a slow peer still reads what went into it.

Sums use numpy on the loop's one thread: torch would start a pool of threads for each range.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atoll.collectives.plan import Action, Exchange, Give, Part, Plan, Take, part_of
from atoll.collectives.tcp_peer import Ticket
from atoll.collectives.tcp_reactor import Operation, Reactor
from atoll.collectives.torch_codecs import Codec
from atoll.collectives.torch_residuals import Feedback
from atoll.collectives.torch_scratch import Scratch

Array = np.ndarray[Any, Any]
# A receive and the memory that it fills.
Arrival = tuple[Ticket, Array]
# Yields what it waits for; returns the memory of the result [elements].
Summing = Generator[list[Ticket], None, torch.Tensor]
COLLECTIVES = 0
# Spreads the seeds of operations that round by chance over 32 bits (Knuth's multiplicative hash).
_ODD = 2654435761
# More than there are: so that no two ranks and operations have the same chances.
_RANKS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What is to be summed: a plan, this rank's contribution [elements] and how two values are combined.

    `in_place`: the memory of the contribution is that of the result, too.
    """

    plan: Plan
    own: torch.Tensor
    function: np.ufunc
    sequence: int
    codec: Codec | None = None
    feedback: Feedback | None = None
    in_place: bool = False


class Summation:
    """The part of `rank` in one all-reduce. Used once, on the loop's thread."""

    def __init__(self, reactor: Reactor, scratch: Scratch, rank: int, task: Sum) -> None:
        self._reactor, self._scratch, self._rank, self._task = reactor, scratch, rank, task
        self._own: Array = task.own.numpy()
        self._result = task.own if task.in_place else scratch.take(task.own.numel(), task.own.dtype)
        self._place: Array = self._result.numpy()
        self._sent: list[Ticket] = []
        self._taken: list[torch.Tensor] = []

    def run(self) -> Summing:
        """Sum up; the caller gives the result memory back."""
        parts = part_of(self._task.plan, self._rank)
        self._add_stranded(parts)
        # All receives are posted before the first send, so that bytes land where they belong however early they come.
        programs = [self._program(part, self._posted(part)) for part in parts]
        yield [self._reactor.spawn(program) for program in programs]
        yield self._sent
        for memory in self._taken:
            self._scratch.give_back(memory)
        return self._result

    # -- one program -------------------------------------------------------------------------------------------------

    def _posted(self, part: Part) -> list[list[Arrival]]:
        """For each instruction the receives that it waits for."""
        posted = []
        for number, here in enumerate(part.instructions):
            match here:
                case Take(source, action, message):
                    # A sum that is exchanged next, or to which something was added before, lies apart; so does what
                    # comes to be added to a contribution whose place is the result's.
                    apart = number > 0 or self._task.in_place or _exchanged_next(part, number)
                    apart = apart and action is Action.ADD
                    memory = self._temporary(part) if apart else self._place[part.start : part.end]
                    posted.append([self._receive(source, message, memory, borrows=action is Action.ADD)])
                case Exchange(members, coded, message):
                    others = [m for m in members if m != self._rank]
                    make = self._encoded if coded else self._temporary
                    posted.append([self._receive(m, message, make(part)) for m in others])
                case Give():
                    posted.append([])
        return posted

    def _program(self, part: Part, posted: list[list[Arrival]]) -> Operation:
        own, place = self._own[part.start : part.end], self._place[part.start : part.end]
        has = own
        last = max((n for n, i in enumerate(part.instructions) if isinstance(i, Exchange)), default=-1)
        for number, (here, arrivals) in enumerate(zip(part.instructions, posted, strict=True)):
            match here:
                case Take(_, action, _):
                    [(ticket, came)] = arrivals
                    yield [ticket]
                    if action is Action.ADD:
                        there = self._task.in_place and not _exchanged_next(part, number)
                        has = self._added(ticket, came, has, place if there else came)
                    else:
                        has = came
                case Give(target, message):
                    self._send(target, message, has)
                case Exchange():
                    if has is own:
                        has = self._copied(own)
                    mine = self._sent_coded(here, part, has) if here.coded else self._sent_plain(here, has)
                    yield [ticket for ticket, _ in arrivals]
                    came_all = [came for _, came in arrivals]
                    if here.coded:
                        has = self._decoded(here.members, mine, came_all, place)
                    else:
                        has = self._folded(here.members, mine, came_all, place if number == last else None)
        if has is not place:
            np.copyto(place, has)

    def _copied(self, own: Array) -> Array:
        copy = self._take(own.size, self._task.own.dtype)
        np.copyto(copy, own)
        return copy

    def _sent_plain(self, here: Exchange, has: Array) -> Array:
        for member in here.members:
            if member != self._rank:
                self._send(member, here.part, has)
        return has

    def _folded(self, members: tuple[int, ...], has: Array, came: list[Array], out: Array | None) -> Array:
        """The sum in the order of the members, into `out` or into one of the first two of what came."""
        incoming = iter(came)
        values = [has if member == self._rank else next(incoming) for member in members]
        if out is None:
            out = values[1] if values[0] is has else values[0]
        total = values[0]
        for value in values[1:]:
            total = combine(self._task.function, total, value, out)
        return total

    # -- in a codec --------------------------------------------------------------------------------------------------

    def _add_stranded(self, parts: tuple[Part, ...]) -> None:
        """What this rank lost of ranges that another encodes now goes into its contribution."""
        if self._task.feedback is None:
            return
        coded = [(p.start, p.end) for p in parts if any(isinstance(i, Exchange) and i.coded for i in p.instructions)]
        stranded = self._task.feedback.stranded(coded)
        if stranded is not None:
            self._own = self._own + stranded

    def _sent_coded(self, here: Exchange, part: Part, has: Array) -> Array:
        """Send what this rank has, encoded, and return what peers read; the loss is remembered for the next time."""
        codec, feedback = self._codec, self._task.feedback
        values = has if feedback is None else feedback.corrected(has, part.start, part.end)
        code, decoded = self._encoded(part), self._temporary(part)
        # By chance only where nothing makes up for the loss. Own chances for each rank: with the same, their errors add up.
        chance = (self._task.sequence * _RANKS + self._rank) * _ODD + part.start
        codec.encode(values, code, decoded, seed=chance if feedback is None else None)
        if feedback is not None:
            feedback.keep(part.start, part.end, values, decoded)
        for member in here.members:
            if member != self._rank:
                self._send(member, here.part, code)
        return decoded

    def _decoded(self, members: tuple[int, ...], mine: Array, came: list[Array], place: Array) -> Array:
        """The sum of all decoded contributions, this rank's own as its peers read it, in the order of the members."""
        incoming = iter(came)
        place.fill(0)
        for member in members:
            if member == self._rank:
                combine(np.add, place, mine, place)
            else:
                self._codec.decode_add(next(incoming), place)
        return place

    @property
    def _codec(self) -> Codec:
        assert self._task.codec is not None  # noqa: S101 - a plan with coded meetings comes with its codec
        return self._task.codec

    # -- memory and messages -----------------------------------------------------------------------------------------

    def _receive(self, source: int, message: int, memory: Array, *, borrows: bool = False) -> Arrival:
        view = memory.view(np.uint8).data
        return self._reactor.post(source, COLLECTIVES, self._task.sequence, message, view, borrows=borrows), memory

    def _added(self, ticket: Ticket, came: Array, has: Array, out: Array) -> Array:
        """What came and what there was, in `out`."""
        if ticket.lent is None or ticket.free is None:
            return combine(self._task.function, came, has, out)
        combine(self._task.function, ticket.lent.view(came.dtype), has, out)
        ticket.lent = None
        ticket.free()
        return out

    def _send(self, target: int, message: int, memory: Array) -> None:
        view = memory.view(np.uint8).data
        self._sent.append(self._reactor.send(target, COLLECTIVES, self._task.sequence, message, view))

    def _temporary(self, part: Part) -> Array:
        return self._take(part.end - part.start, self._task.own.dtype)

    def _encoded(self, part: Part) -> Array:
        return self._take(self._codec.encoded_bytes(part.end - part.start), torch.uint8)

    def _take(self, count: int, dtype: torch.dtype) -> Array:
        memory = self._scratch.take(count, dtype)
        self._taken.append(memory)
        array: Array = memory.numpy()
        return array


def _exchanged_next(part: Part, number: int) -> bool:
    return any(isinstance(i, Exchange) for i in part.instructions[number + 1 : number + 2])


def combine(function: np.ufunc, one: Array, other: Array, out: Array) -> Array:
    """`function` of both into `out`. An overflow or NaN is the caller's to find (it votes on it), not a warning here."""
    with np.errstate(all="ignore"):
        result: Array = function(one, other, out=out)
    return result
