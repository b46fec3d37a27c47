"""Who uses how much: shares of the cluster now and lately, and what quotas still allow.

**Share.** The dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011) of a queue, or of one user in it,
is the larger of its parts of all CPUs and all GPUs. Over time it is averaged with weights that halve every
`half_life_s`: between two changes of the present share s, the average a moves as a(t) = s + (a0 - s) 2^(-t / half-life).
The score `(lately + now) / weight` orders queues, and users within one: who had little and has little is next.

**Quota.** For each flavor a queue has `own`; of a cohort's queues each keeps `guaranteed = own - lend` for itself, the rest
is a pool. A queue may use up to `own + borrow`, and what all use beyond their guaranteed parts must fit into the pool.
Both bounds hold for CPUs and GPUs apart, after each start and growth. An owner that finds its own lent out takes it
back from those who use more than their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from atoll.control_plane.arbiter.cluster import UNBOUNDED
from atoll.control_plane.arbiter.model import Amount, QueueSpec, Quota

_NOTHING = (0, 0)
_NO_QUOTA = Quota(flavor="", own=Amount())
Pair = tuple[int, int]


def plus(one: Pair, other: Pair, times: int = 1) -> Pair:
    """Amounts, added."""
    return one[0] + times * other[0], one[1] + times * other[1]


class Meter:
    """What a queue, or a user of it, uses now, and the share it had lately."""

    __slots__ = ("at", "cpus", "gpus", "lately")

    def __init__(self, lately: float = 0.0, at: float = 0.0) -> None:
        self.cpus = self.gpus = 0
        self.lately = lately
        self.at = at


class Accounts:
    """Uses of all queues. `version` counts what changes the room that quotas leave."""

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self.queues: dict[str, QueueSpec] = {}
        self.total: Pair = (0, 0)
        self._used: dict[tuple[str, str], Pair] = {}
        self._pledged: dict[tuple[str, str], Pair] = {}
        self._meters: dict[tuple[str, str | None], Meter] = {}
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._cohorts: dict[str, list[str]] = {}
        # by flavor, so that what one flavor's use changes is forgotten alone
        self._room: dict[str, dict[tuple[str, int, int], int]] = {}
        self._allowed: dict[str, dict[str, Pair]] = {}

    # -- queues ------------------------------------------------------------------------------------------------------

    def put_queue(self, spec: QueueSpec) -> None:
        """The queue as it is now."""
        self.queues[spec.name] = spec
        self._index()

    def drop_queue(self, name: str) -> None:
        """The queue is none any more; what it still uses stays counted."""
        self.queues.pop(name, None)
        self._index()

    def _index(self) -> None:
        self._quotas = {(q.name, quota.flavor): quota for q in self.queues.values() for quota in q.quotas}
        self._cohorts = {}
        for queue in self.queues.values():
            # A queue without quotas has nothing to lend and needs to borrow nothing.
            if queue.cohort and queue.quotas:
                self._cohorts.setdefault(queue.cohort, []).append(queue.name)
        self._room.clear()
        self._allowed.clear()

    def _forget(self, flavor: str) -> None:
        self._room.pop(flavor, None)
        self._allowed.pop(flavor, None)

    def bounded(self, queue: str) -> bool:
        """Whether the queue has quotas. One that was taken away has none, though its runs may still run."""
        return queue in self.queues and bool(self.queues[queue].quotas)

    # -- uses --------------------------------------------------------------------------------------------------------

    def charge(self, queue: str, user: str, charges: dict[str, Pair], *, sign: int, now: float) -> None:
        """A run of this user takes (1) or gives back (-1) these amounts, by flavor."""
        cpus = gpus = 0
        for flavor, amount in charges.items():
            key = (queue, flavor)
            self._used[key] = plus(self._used.get(key, _NOTHING), amount, sign)
            self._forget(flavor)
            cpus, gpus = cpus + amount[0], gpus + amount[1]
        for whose in (None, user):
            meter = self._settled(queue, whose, now)
            meter.cpus += sign * cpus
            meter.gpus += sign * gpus

    def suppose(self, queue: str, flavor: str, amount: Pair, sign: int) -> None:
        """As `charge`, for a trial that is undone at once: quotas see it, shares do not."""
        key = (queue, flavor)
        self._used[key] = plus(self._used.get(key, _NOTHING), amount, sign)
        self._forget(flavor)

    def _settled(self, queue: str, user: str | None, now: float) -> Meter:
        meter = self._meters.get((queue, user))
        if meter is None:
            meter = self._meters[queue, user] = Meter(at=now)
        if now > meter.at:
            share = self._share(meter.cpus, meter.gpus)
            meter.lately = share + (meter.lately - share) * 2.0 ** ((meter.at - now) / self.half_life_s)
            meter.at = now
        return meter

    def _share(self, cpus: int, gpus: int) -> float:
        of_cpus, of_gpus = self.total
        return max(cpus / of_cpus if of_cpus else 0.0, gpus / of_gpus if of_gpus else 0.0)

    def remember(self, queue: str, user: str | None, share: float, at: float) -> None:
        """Shares of before this arbiter existed."""
        self._meters[queue, user] = Meter(share, at)

    def remembered(self, now: float) -> Iterable[tuple[str, str | None, float]]:
        """All shares lately: queue, user (None: the whole queue), share."""
        for queue, user in list(self._meters):
            yield queue, user, self._settled(queue, user, now).lately

    def share(self, queue: str, user: str | None, now: float) -> tuple[float, float]:
        """Dominant share now and lately."""
        meter = self._settled(queue, user, now)
        return self._share(meter.cpus, meter.gpus), meter.lately

    def score(self, queue: str, user: str | None, now: float) -> float:
        """Who has the lowest is next."""
        present, lately = self.share(queue, user, now)
        spec = self.queues.get(queue)
        weight = spec.weight if spec is not None and user is None else 1.0
        return (present + lately) / weight if weight > 0 else math.inf

    def fair_share(self, queue: str) -> float:
        """The part of the cluster that is the queue's by weight."""
        weights = sum(q.weight for q in self.queues.values())
        return self.queues[queue].weight / weights if queue in self.queues and weights > 0 else 0.0

    # -- quotas ------------------------------------------------------------------------------------------------------

    def used(self, queue: str, flavor: str) -> Pair:
        """What the queue's runs hold of the flavor."""
        return self._used.get((queue, flavor), _NOTHING)

    def own(self, queue: str, flavor: str) -> Pair:
        """The queue's quota."""
        own = self._quotas.get((queue, flavor), _NO_QUOTA).own
        return own.cpus, own.gpus

    def pledge(self, queue: str, flavor: str, amount: Pair) -> None:
        """Of the queue's room, so much is for one of its runs that waits for the rest: those behind it see it taken."""
        key = (queue, flavor)
        self._pledged[key] = plus(self._pledged.get(key, _NOTHING), amount)
        self._forget(flavor)

    def forget_pledges(self) -> None:
        """A new tick begins."""
        if self._pledged:
            self._pledged.clear()
            self._room.clear()

    def room(self, queue: str, flavor: str, each: Amount) -> int:
        """How many workers more the quotas allow the queue in this flavor, now."""
        rooms = self._room.setdefault(flavor, {})
        key = (queue, each.cpus, each.gpus)
        room = rooms.get(key)
        if room is None:
            left = self.allowance(queue, flavor)
            taken = plus(self.used(queue, flavor), self._pledged.get((queue, flavor), _NOTHING))
            room = rooms[key] = _workers(plus(left, taken, -1), each)
        return room

    def allowance(self, queue: str, flavor: str) -> Pair:
        """What the queue may use in all now: the lesser of own and borrow, and of its guaranteed part and the pool's rest."""
        known = self._allowed.setdefault(flavor, {})
        if queue not in known:
            known[queue] = self._allowance(queue, flavor)
        return known[queue]

    def _allowance(self, queue: str, flavor: str) -> Pair:
        quota = self._quotas.get((queue, flavor))
        if quota is None:
            return _NOTHING
        own = (quota.own.cpus, quota.own.gpus)
        cohort = self.queues[queue].cohort
        if not cohort:
            return own
        most = (UNBOUNDED**2,) * 2 if quota.borrow is None else plus(own, (quota.borrow.cpus, quota.borrow.gpus))
        rest = list(self._guaranteed(queue, flavor))
        for name in self._cohorts[cohort]:
            theirs, safe = self.own(name, flavor), self._guaranteed(name, flavor)
            used = self.used(name, flavor) if name != queue else _NOTHING
            for i in (0, 1):
                rest[i] += theirs[i] - safe[i] - max(used[i] - safe[i], 0)
        return min(most[0], rest[0]), min(most[1], rest[1])

    def most_ever(self, queue: str, flavor: str) -> Pair:
        """What the queue could use if nobody else of its cohort used anything."""
        quota = self._quotas.get((queue, flavor))
        if quota is None:
            return _NOTHING
        cohort = self.queues[queue].cohort
        own = (quota.own.cpus, quota.own.gpus)
        if not cohort:
            return own
        lent: Pair = own
        for name in self._cohorts[cohort]:
            if name != queue:
                lent = plus(plus(lent, self.own(name, flavor)), self._guaranteed(name, flavor), -1)
        if quota.borrow is None:
            return lent
        most = plus(own, (quota.borrow.cpus, quota.borrow.gpus))
        return min(most[0], lent[0]), min(most[1], lent[1])

    def _guaranteed(self, queue: str, flavor: str) -> Pair:
        quota = self._quotas.get((queue, flavor), _NO_QUOTA)
        if quota.lend is None:
            return _NOTHING
        return max(quota.own.cpus - quota.lend.cpus, 0), max(quota.own.gpus - quota.lend.gpus, 0)

    def borrows(self, queue: str, flavor: str) -> bool:
        """Whether the queue uses more of the flavor than is its own."""
        used, own = self.used(queue, flavor), self.own(queue, flavor)
        return used[0] > own[0] or used[1] > own[1]

    def same_cohort(self, one: str, other: str) -> bool:
        """Whether the two lend each other."""
        a, b = self.queues.get(one), self.queues.get(other)
        if a is None or b is None or one == other or not (a.quotas and b.quotas):
            return False
        return bool(a.cohort) and a.cohort == b.cohort


def _workers(left: Pair, each: Amount) -> int:
    fits = UNBOUNDED
    for have, need in zip(left, (each.cpus, each.gpus), strict=True):
        if need:
            fits = min(fits, max(have, 0) // need)
    return fits
