"""What is expected and what has come: messages meet the memory that was posted for them, in either order.

Parts of a collective meet by their number. Messages of a point-to-point lane meet in order: the oldest receive for this
rank, or for any, takes the oldest message. Frames must mean what this rank has called (`call`); of operations that this
rank has not reached yet, what comes is kept and compared when it does.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np

from atoll.collectives.call import difference, unpack
from atoll.collectives.tcp_peer import EpochEnded, Ticket
from atoll.collectives.wire import Frame, Header

Key = tuple[int, int, int, int]  # (rank, lane, sequence, part)


class _Over:
    """Sequences that are over: all up to a mark, and some above."""

    def __init__(self) -> None:
        self._mark = 0
        self._above: set[int] = set()

    def add(self, sequence: int) -> None:
        self._above.add(sequence)
        while self._mark + 1 in self._above:
            self._mark += 1
            self._above.discard(self._mark)

    def __contains__(self, sequence: int) -> bool:
        return sequence <= self._mark or sequence in self._above


class Mail:
    """One per loop, used on its thread alone. `complete` is told each ticket whose bytes are there."""

    def __init__(self, rank: int, complete: Callable[[Ticket], None]) -> None:
        self._rank, self._complete = rank, complete
        self._posted: dict[Key, Ticket] = {}
        self._early: dict[Key, memoryview] = {}
        self._calls: dict[int, bytes] = {}
        self._early_calls: defaultdict[int, dict[bytes, int]] = defaultdict(dict)  # who called it first
        self._over = _Over()
        self._expected: defaultdict[tuple[int | None, int], deque[tuple[int, Ticket, bytes]]] = defaultdict(deque)
        self._unread: defaultdict[int, deque[tuple[int, Header, memoryview]]] = defaultdict(deque)
        self._numbers = itertools.count()

    # -- what operations expect --------------------------------------------------------------------------------------

    def open(self, sequence: int, call: bytes) -> None:
        """This rank has reached collective `sequence`. Raises `EpochEnded` where a peer has called another there."""
        self._calls[sequence] = call
        for other, rank in self._early_calls.pop(sequence, {}).items():
            if other != call:
                raise self._disagreement(rank, sequence, call, other)

    def close(self, sequence: int) -> None:
        """This rank's part of collective `sequence` is over."""
        self._calls.pop(sequence, None)
        self._over.add(sequence)

    def post(self, ticket: Ticket, key: Key) -> bool:
        """The part of a collective goes into the ticket's memory; True where it is there already."""
        early = self._early.pop(key, None)
        if early is None:
            self._posted[key] = ticket
            return False
        self._fill(key[0], ticket, early)
        return True

    def expect(self, ticket: Ticket, rank: int | None, lane: int, call: bytes) -> bool:
        """The lane's next message goes into the ticket's memory; True where it is there already."""
        unread = self._unread[lane]
        for number, (sender, header, body) in enumerate(unread):
            if rank is None or sender == rank:
                del unread[number]
                self._match(sender, header, ticket, call)
                self._fill(sender, ticket, body)
                return True
        self._expected[rank, lane].append((next(self._numbers), ticket, call))
        return False

    def awaits(self, rank: int) -> bool:
        """True while something is expected of `rank` itself."""
        return any(key[0] == rank for key in self._posted) or any(
            expected for (whose, _), expected in self._expected.items() if whose == rank
        )

    def awaited(self, sequence: int) -> set[int]:
        """The ranks of which parts of this collective are expected that are not there."""
        return {rank for rank, lane, number, _ in self._posted if number == sequence and not lane}

    # -- what comes --------------------------------------------------------------------------------------------------

    def claim(self, rank: int, header: Header) -> Ticket | None:
        """For whom the body of this frame is; None where nobody expects it yet."""
        if header.lane:
            return self._next(rank, header)
        known = self._calls.get(header.sequence)
        if known is None:
            if header.sequence in self._over:
                words = f"operation {header.sequence}: rank {rank} calls {unpack(header.call)}, which is over on rank"
                raise EpochEnded(f"{words} {self._rank}: different operations", differ=True)
            self._early_calls[header.sequence].setdefault(header.call, rank)
        elif known != header.call:
            raise self._disagreement(rank, header.sequence, known, header.call)
        return self._posted.get((rank, header.lane, header.sequence, header.part))

    def space(self, length: int) -> memoryview:
        """Memory for a body that nobody expects yet."""
        return np.empty(length, np.uint8).data

    def deliver(self, rank: int, frame: Frame, claimed: Ticket | None, now: float) -> None:
        """A body is complete, in the memory of `claimed` or, if that is None, in some that was made for it."""
        header = frame.header
        if header.lane:
            self._deliver_message(rank, frame, claimed, now)
            return
        key = (rank, header.lane, header.sequence, header.part)
        ticket = self._posted.pop(key, None)
        if ticket is None:
            self._early[key] = frame.body
            return
        if ticket.edge is not None:
            ticket.edge.came(now)
        self._fill(rank, ticket, frame.body)

    def _deliver_message(self, rank: int, frame: Frame, claimed: Ticket | None, now: float) -> None:
        ticket = claimed
        if ticket is None:
            # It was not expected when it began to come; by now it may be.
            ticket = self._next(rank, frame.header)
        if ticket is None:
            self._unread[frame.header.lane].append((rank, frame.header, frame.body))
            return
        if ticket.edge is not None:
            ticket.edge.came(now)
        self._fill(rank, ticket, frame.body)

    def _next(self, rank: int, header: Header) -> Ticket | None:
        """Takes the oldest receive that this message fits."""
        queues = [q for q in (self._expected.get((rank, header.lane)), self._expected.get((None, header.lane))) if q]
        if not queues:
            return None
        _, ticket, call = min(queues, key=lambda q: q[0][0]).popleft()
        self._match(rank, header, ticket, call)
        return ticket

    def _match(self, rank: int, header: Header, ticket: Ticket, call: bytes) -> None:
        ticket.rank = rank
        if header.call != call:
            words = difference(call, header.call, rank=self._rank, peer=rank)
            raise EpochEnded(f"a message with tag {header.lane - 1}: {words}", differ=True)

    def _fill(self, rank: int, ticket: Ticket, body: memoryview) -> None:
        view = ticket.view
        if view is not None and body is not view:  # it came, or began to come, before it was posted
            if len(body) != len(view):
                raise EpochEnded(
                    f"rank {rank} sent {len(body)} bytes for {len(view)}: the ranks call different operations",
                    differ=True,
                )
            view[:] = body
        self._complete(ticket)

    def _disagreement(self, rank: int, sequence: int, here: bytes, there: bytes) -> EpochEnded:
        words = difference(here, there, rank=self._rank, peer=rank)
        return EpochEnded(f"operation {sequence}: {words}", differ=True)
