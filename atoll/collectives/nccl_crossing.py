"""Between islands: the owners of one piece add it up, over the epoch's connections between two ranks.

Every owner cuts the piece in as many parts as there are owners, sends part i to owner i, adds up its own part in the
order of the owners, and sends the sum to the others: 2(I-1)/I of the piece leaves each of I owners, as in a ring, after
two messages instead of 2(I-1). Two owners, or a small piece, exchange it whole and both add it up in the same order. So
all owners hold the same bits.

Half-precision numbers are carried as they are and added in float32, rounded once. Everything stays in the given host
memory; what is sent was copied before `send` returns to its caller's loop or is not changed until it has left.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch

from atoll.collectives.plan import even
from atoll.collectives.wire import LANES
from atoll.collectives.work import Poison, Work

# Tags of `send` and `recv` that programs should leave alone. Pieces under way at once end in an order of their own, so
# each piece between two ranks, and each of its rounds, has a tag; far fewer are under way than there are tags.
AGREEMENT_TAG = LANES - 2
_WINDOW = 256
CROSSING_TAGS = range(AGREEMENT_TAG - 2 * _WINDOW, AGREEMENT_TAG)
# Below it a second message costs more than the bytes that it saves.
SMALL_BYTES = 64 * 1024
# Torch adds up to 32,768 elements on the calling thread; above it would start a pool of threads beside the program's.
_SLICE = 32 * 1024

_COMBINE: dict[str, Callable[..., torch.Tensor]] = {"sum": torch.add, "min": torch.minimum, "max": torch.maximum}
_CARRIED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class Peers(Protocol):
    """What is needed of an epoch's communicator (`tcp_communicator.Communicator`)."""

    rank: int

    def send(self, buffer: torch.Tensor, *, to: int, tag: int = 0) -> Work:
        """To one rank, in order within a tag."""

    def recv(self, buffer: torch.Tensor, *, source: int, tag: int = 0) -> Work:
        """From one rank."""

    def all_gather(self, payload: bytes) -> Work:
        """Everyone's."""

    def abort(self, reason: str) -> None:
        """End the epoch."""

    def on_poison(self, call: Callable[[Poison], None]) -> None:
        """Have `call` run when it ends."""


class Crossing(Protocol):
    """Adds up a piece over its owners."""

    def all_reduce(self, members: tuple[int, ...], buffer: torch.Tensor, op: str) -> Work:
        """`buffer` (host memory) becomes the `op` over the `members`' buffers, the same bits on all of them.

        Any two ranks call it in the same order for what they have in common. The buffer must not change until the work ends; poisoned, it holds
        anything.
        """


class PeerCrossing:
    """A `Crossing` by messages between two ranks."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._met: Counter[int] = Counter()

    def all_reduce(self, members: tuple[int, ...], buffer: torch.Tensor, op: str) -> Work:
        """One round or two."""
        work = Work()
        if len(members) == 1 or buffer.numel() == 0:
            work.finish(buffer)
            return work
        tags = {}
        for member in members:
            tags[member] = CROSSING_TAGS.start + 2 * (self._met[member] % _WINDOW)
            self._met[member] += 1
        small = len(members) == 2 or buffer.numel() * buffer.itemsize <= SMALL_BYTES  # noqa: PLR2004 - see the module
        (self._exchange if small else self._in_parts)(tags, buffer, op, work)
        return work

    def _exchange(self, tags: dict[int, int], buffer: torch.Tensor, op: str, work: Work) -> None:
        rows = {m: buffer if m == self._peers.rank else torch.empty_like(buffer) for m in tags}
        sent = dict.fromkeys(tags, buffer)

        def add() -> None:
            work.finish(buffer, write=lambda: _fold(list(rows.values()), buffer, op))

        _after(self._swap(tags, 0, sent, rows), add, work)

    def _in_parts(self, tags: dict[int, int], buffer: torch.Tensor, op: str, work: Work) -> None:
        ranges = even(0, buffer.numel(), len(tags))
        parts = {m: buffer[start:end] for m, (start, end) in zip(tags, ranges, strict=True)}
        mine = parts[self._peers.rank]
        rows = {m: mine if m == self._peers.rank else torch.empty_like(mine) for m in tags}

        def add() -> None:
            _fold(list(rows.values()), mine, op)
            _after(self._swap(tags, 1, dict.fromkeys(tags, mine), parts), lambda: work.finish(buffer), work)

        _after(self._swap(tags, 0, parts, rows), add, work)

    def _swap(
        self, tags: dict[int, int], turn: int, out: dict[int, torch.Tensor], into: dict[int, torch.Tensor]
    ) -> list[Work]:
        """To each other member what `out` says, from each into what `into` says."""
        others = [(m, tag + turn) for m, tag in tags.items() if m != self._peers.rank]
        works = [self._peers.recv(into[m], source=m, tag=tag) for m, tag in others if into[m].numel()]
        return works + [self._peers.send(out[m], to=m, tag=tag) for m, tag in others if out[m].numel()]


def _after(works: list[Work], then: Callable[[], None], whole: Work) -> None:
    """Call `then` once all `works` are done, on the thread that ends the last; one that is poisoned poisons `whole`."""
    left = len(works)
    lock = threading.Lock()

    def ended(work: Work) -> None:
        nonlocal left
        if work.poison is not None:
            whole.spoil(work.poison)
            return
        with lock:
            left -= 1
            last = left == 0
        if last:
            then()

    for work in works:
        work.add_done_callback(ended)


def _fold(rows: list[torch.Tensor], out: torch.Tensor, op: str) -> None:
    """`out` (which may be one of the rows) becomes the `op` over `rows`, first to last, slice by slice."""
    combine: Any = _COMBINE[op]
    carried = _CARRIED.get(out.dtype, out.dtype)
    for start in range(0, out.numel(), _SLICE):
        parts = [row[start : start + _SLICE].to(carried) for row in rows]
        total = parts[0]
        for part in parts[1:]:
            total = combine(total, part)
        out[start : start + _SLICE].copy_(total)
