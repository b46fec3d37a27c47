"""Copies of shards that are brought up to date each `every` steps: a loss takes all members back to the last one (law 7).

After each `every` steps every rank copies its own shard, with all that is not sharded, into a slab of memory and sends
that to its buddy while the next steps compute. Both keep it: the owner since all go back together, the buddy since the
owner may be lost. What was kept before goes when a step was committed before whose vote every rank had waited for its
copy of the newer; so one whole set of shards of one step is there at all times.

The slab leaves in pieces, one at the begin of a step, over the first half of the time until the next: a large message would
hold up the reductions behind it. The first one of an epoch leaves at once and the first vote waits for it, since the
members that kept the copies before may be gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import xxhash

from atoll.checkpoint.torch_state import Flat
from atoll.errors import InternalError
from atoll.workers.buddies import Place
from atoll.workers.peers import Comm, Pending, completed, is_done
from atoll.workers.torch_copies import Shadow, Trained
from atoll.workers.torch_shards import Shards

# Apart from what a regroup sends.
_TAG = 1
_CHECK_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A shard that this rank held after `step`, which epoch `line` committed."""

    shards: Shards
    place: Place
    step: int
    line: int


@dataclass(slots=True, kw_only=True)
class _Flight:
    """A set of copies on its way: `left` of `count` pieces are still to go."""

    step: int
    count: int
    left: int
    outgoing: Shadow | None = None
    incoming: Shadow | None = None
    told: torch.Tensor = field(default_factory=lambda: torch.empty(_CHECK_BYTES, dtype=torch.uint8))
    leaving: list[Pending] = field(default_factory=list)
    arriving: list[Pending] = field(default_factory=list)


class Snapshots:
    """What this rank keeps of its own shard and of its ward's, as they were after the same steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._own: list[tuple[Own, Shadow]] = []
        self._copies: list[Shadow] = []
        self._free: list[Shadow] = []
        self._buddy: int | None = None
        self._ward: int | None = None
        self._wanted = (False, False)
        self._active = False
        self._flight: _Flight | None = None
        self._taken: int | None = None
        self._settled: int | None = None
        self._pending: tuple[int, int | None] | None = None

    def own(self) -> dict[str, Own]:
        """This rank's shard as it was, by key. Of one step it may hold several, where the number of shards changed."""
        return {f"kept-{_named(o.step, o.line, o.place.size, o.place.index)}": o for o, _ in self._own}

    def shadows(self) -> dict[str, Shadow]:
        """The ward's, by key, and those of earlier wards that may still be needed."""
        return {f"copy-{_named(s.step, s.line, s.size, s.index)}": s for s in self._copies}

    # -- epochs --------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """The epoch has ended: keep what has come whole, forget what is on its way."""
        flight, self._flight = self._flight, None
        if flight is not None and not flight.left and all(map(is_done, flight.arriving)):
            self._keep(flight)

    def regrouped(
        self, *, buddy: int | None, ward: int | None, sends: bool, keeps: bool, active: bool, step: int, line: int
    ) -> None:
        """All stand after `step` of `line`: what came after that never happened. `active`: somebody has a buddy.

        `sends`: the buddy lacks this rank's shard of that step, `keeps`: this one its ward's.
        """
        self._buddy, self._ward, self._wanted, self._active = buddy, ward, (sends, keeps), active
        self._flight, self._taken, self._settled, self._pending = None, None, None, None
        self._free = []
        self._own = [(o, s) for o, s in self._own if o.step < step or (o.step, o.line) == (step, line)]
        self._copies = [s for s in self._copies if s.step < step or (s.step, s.line) == (step, line)]

    # -- steps ---------------------------------------------------------------------------------------------------------

    def is_due(self, committed: int) -> bool:
        """Whether the state after `committed` is to be copied."""
        return self._active and (self._taken is None or committed >= self._taken + self.every)

    def covers(self, committed: int) -> bool:
        """Whether the newest copies are of the state after `committed`, or nobody makes any."""
        return not self._active or self._taken == committed

    def take(self, own: Own, trained: Trained, ward: Place | None) -> None:
        """Copy this rank's shard as it is, for itself and for its buddy; expect the ward's."""
        sends, keeps = self._wanted if self._taken is None else (self._buddy is not None, self._ward is not None)
        self._taken = own.step
        known = next((s for o, s in self._own if (o.place, o.step, o.line) == (own.place, own.step, own.line)), None)
        image = known or self._image(own.shards, trained, own.place)
        if known is None:
            image.take(own.shards, own.step, own.line)
            kept = Shards(Flat(tensors=image.whole(), meta=own.shards.flat.meta), own.shards.specs)
            self._own.append((Own(shards=kept, place=own.place, step=own.step, line=own.line), image))
        count = max(1, self.every // 2) if self._settled is not None else 1
        flight = _Flight(step=own.step, count=count, left=count, outgoing=image if sends else None)
        if keeps and ward is not None:
            flight.incoming = self._image(own.shards, trained, ward)
            flight.incoming.step, flight.incoming.line = own.step, own.line
        self._flight = flight

    def move(self, comm: Comm) -> None:
        """At the begin of a step: the next piece."""
        if self._flight is not None:
            self._move(comm, self._flight, 1)

    def prepare(self, comm: Comm, step: int) -> bool:
        """Before the vote on `step`; now and then the copies have to be there. False when the epoch ended."""
        if self._taken is None or self._taken == self._settled:
            self._pending = (step, None)
            return True
        if self._settled is not None and step < self._taken + self.every:
            self._pending = (step, None)
            return True
        if not self.land(comm):
            return False
        self._pending = (step, self._taken)
        return True

    def land(self, comm: Comm) -> bool:
        """Wait for what is on its way. False when the epoch ended."""
        flight = self._flight
        if flight is None:
            return True
        self._move(comm, flight, flight.left)
        if not all(completed(work) for work in [*flight.arriving, *flight.leaving]):
            return False
        self._flight = None
        self._keep(flight)
        return True

    def settle(self, step: int) -> bool:
        """`step` is the last that is committed. True where it was prepared here: nobody needs other shapes any more."""
        pending, self._pending = self._pending, None
        if pending is None or pending[0] != step:
            return False
        if pending[1] is not None:
            self.landed_everywhere(pending[1])
        return True

    def landed_everywhere(self, step: int) -> None:
        """Every rank has its copies of `step`: nobody goes back beyond it."""
        self._settled = step
        older = [s for o, s in self._own if o.step < step] + [s for s in self._copies if s.step < step]
        self._own = [(o, s) for o, s in self._own if o.step >= step]
        self._copies = [s for s in self._copies if s.step >= step]
        self._free = older

    # -- inside --------------------------------------------------------------------------------------------------------

    def _image(self, like: Shards, trained: Trained, place: Place) -> Shadow:
        """Memory for the shard at `place`; that of one which is no longer needed, if it fits."""
        wanted = (like.tag, place.size, place.index)
        found = next((s for s in self._free if (s.tag, s.size, s.index) == wanted), None)
        if found is None:
            return Shadow(like, trained, size=place.size, index=place.index, step=0)
        self._free.remove(found)
        return found

    def _move(self, comm: Comm, flight: _Flight, pieces: int) -> None:
        for _ in range(min(pieces, flight.left)):
            at = flight.count - flight.left
            flight.left -= 1
            if flight.outgoing is not None and self._buddy is not None:
                piece = _piece(flight.outgoing.memory, at, flight.count)
                flight.leaving.append(comm.send(piece, to=self._buddy, tag=_TAG))
            if flight.incoming is not None and self._ward is not None:
                piece = _piece(flight.incoming.memory, at, flight.count)
                flight.arriving.append(comm.recv(piece, source=self._ward, tag=_TAG))
            if flight.left:
                continue
            if flight.outgoing is not None and self._buddy is not None:
                flight.leaving.append(comm.send(_checksum(flight.outgoing), to=self._buddy, tag=_TAG))
            if flight.incoming is not None and self._ward is not None:
                flight.arriving.append(comm.recv(flight.told, source=self._ward, tag=_TAG))

    def _keep(self, flight: _Flight) -> None:
        shadow = flight.incoming
        if shadow is None:
            return
        if not torch.equal(_checksum(shadow), flight.told):
            raise InternalError(
                f"the shard of rank {self._ward} after step {flight.step} changed on its way to its buddy"
            )
        self._copies.append(shadow)


def _named(step: int, line: int, size: int, index: int) -> str:
    return f"{step}-{line}-{index}of{size}"


def _piece(memory: torch.Tensor, at: int, count: int) -> torch.Tensor:
    """Part `at` of `count`. Both ends cut alike."""
    return memory[memory.numel() * at // count : memory.numel() * (at + 1) // count]


def _checksum(shadow: Shadow) -> torch.Tensor:
    value = xxhash.xxh3_64_digest(shadow.memory.numpy().data)
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
