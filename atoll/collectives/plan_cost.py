"""How long a plan takes on a fabric: its messages played through the links, and what no plan can beat.

Latency-bandwidth model (Hockney, 1994), with the queues that a closed formula leaves out: a connection carries one message
after the other, earlier programs first; every resource of a route works off what its connections ask in the order of
asking; a message has come when all of them have served it, one latency later. Handling a message costs a rank time too, and so do adding and coding. Deterministic: all
ranks that know the same fabric predict the same seconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from atoll.collectives.fabric import Fabric, Route
from atoll.collectives.plan import Exchange, Give, Part, Plan, Take, part_of
from atoll.collectives.plan_shapes import Group, ranks_of
from atoll.errors import InternalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a rank's processor takes; measured on a common server core.

    `message_s`: to handle one message; `add_s`, `code_s`: for a byte of float32 added, or encoded and decoded once.
    `coded`: encoded bytes for a byte.
    """

    message_s: float = 100e-6
    add_s: float = 0.25e-9
    code_s: float = 1.5e-9
    coded: float = 1.0


Key = tuple[int, int, int]  # (source, target, part)


@dataclass(slots=True)
class _Thread:
    rank: int
    part: Part
    at: int = 0
    missing: int = 0


@dataclass(slots=True)
class _Line:
    """What one rank has to send to another: one message under way, the others by priority."""

    route: Route
    queue: list[tuple[int, float]] = field(default_factory=list)  # (part, bytes)
    busy: bool = False


class _Play:
    """One playing of a plan: what is on its way, what each resource has left to do, and who waits for what."""

    def __init__(self, plan: Plan, fabric: Fabric, itemsize: int, costs: Costs) -> None:
        self._capacities, self._itemsize, self._costs = fabric.capacities, itemsize, costs
        self._free = [0.0] * len(fabric.capacities)
        self._lines = {pair: _Line(route) for pair, route in fabric.routes.items()}
        self._busy = [0.0] * plan.size
        self._came: set[Key] = set()
        self._waiting: dict[Key, _Thread] = {}
        # (seconds, tie-breaker, message that came or None for a line that is free, its ranks)
        self._events: list[tuple[float, int, int | None, tuple[int, int]]] = []
        self._number = itertools.count()
        self._threads = [_Thread(r, part) for r in range(plan.size) for part in part_of(plan, r)]
        self._begun = False
        self.end = 0.0

    def run(self) -> float:
        for thread in self._threads:
            self._advance(thread, 0.0)
        # Everyone has queued what it has: lines start with what comes first.
        self._begun = True
        for pair in self._lines:
            self._start(pair, 0.0)
        while self._events:
            now, _, part, pair = heapq.heappop(self._events)
            if part is None:
                self._lines[pair].busy = False
                self._start(pair, now)
            else:
                self._arrive((*pair, part), now)
        if self._waiting:
            raise InternalError(f"a plan that never ends: {len(self._waiting)} messages are waited for in vain")
        return self.end

    def _arrive(self, key: Key, now: float) -> None:
        thread = self._waiting.pop(key, None)
        if thread is None:
            self._came.add(key)
            return
        thread.missing -= 1
        if not thread.missing:
            self._advance(thread, self._taken(thread, now))

    def _advance(self, thread: _Thread, now: float) -> None:
        instructions = thread.part.instructions
        while thread.at < len(instructions):
            here = instructions[thread.at]
            if isinstance(here, Give):
                self._send(thread, here.target, here.part, now, coded=False)
                thread.at += 1
                continue
            if self._ask(thread, here, now):
                return
            now = self._taken(thread, now)
        self.end = max(self.end, now)

    def _ask(self, thread: _Thread, here: Take | Exchange, now: float) -> int:
        """Send what an exchange sends; returns how many messages must still come."""
        rank = thread.rank
        if isinstance(here, Take):
            keys = [(here.source, rank, here.part)]
        else:
            others = [m for m in here.members if m != rank]
            for other in others:
                self._send(thread, other, here.part, now, coded=here.coded)
            keys = [(m, rank, here.part) for m in others]
        for key in keys:
            if key in self._came:
                self._came.discard(key)
            else:
                self._waiting[key] = thread
                thread.missing += 1
        return thread.missing

    def _taken(self, thread: _Thread, now: float) -> float:
        """The rank has added what came, and goes on."""
        here, size = thread.part.instructions[thread.at], (thread.part.end - thread.part.start) * self._itemsize
        thread.at += 1
        costs = self._costs
        number = len(here.members) - 1 if isinstance(here, Exchange) else 1
        work = number * (costs.message_s + size * costs.add_s)
        if isinstance(here, Exchange) and here.coded:
            work += (number + 1) * size * costs.code_s
        done = max(now, self._busy[thread.rank]) + work
        self._busy[thread.rank] = done
        return done

    def _send(self, thread: _Thread, target: int, part: int, now: float, *, coded: bool) -> None:
        size = (thread.part.end - thread.part.start) * self._itemsize * (self._costs.coded if coded else 1.0)
        pair = (thread.rank, target)
        heapq.heappush(self._lines[pair].queue, (part, size))
        if self._begun:
            self._start(pair, now)

    def _start(self, pair: tuple[int, int], now: float) -> None:
        line = self._lines[pair]
        if line.busy or not line.queue:
            return
        part, size = heapq.heappop(line.queue)
        line.busy = True
        done = now + size / line.route.bandwidth
        for resource in line.route.resources:
            served = max(now, self._free[resource]) + size / self._capacities[resource]
            self._free[resource] = served
            done = max(done, served)
        heapq.heappush(self._events, (done, next(self._number), None, pair))
        heapq.heappush(self._events, (done + line.route.latency_s, next(self._number), part, pair))


def seconds(plan: Plan, fabric: Fabric, itemsize: int, costs: Costs) -> float:
    """Predicted seconds from the moment that all ranks call until the last has its result."""
    return _Play(plan, fabric, itemsize, costs).run()


def lower_bound(fabric: Fabric, groups: Group, size_bytes: float, coded: float = 1.0) -> float:
    """Seconds that no all-reduce of `size_bytes` can beat on this fabric.

    Everything must leave each host and each group once and enter it once, over the NICs and trunks that lead there;
    between top groups in `coded` bytes for each. Within a group of h members, 2 (h-1) times the whole passes their NICs.
    """
    top = groups if isinstance(groups, tuple) else (groups,)
    bounds = [0.0]
    everyone = set(range(fabric.size))
    for members, crossing in _cuts(fabric, groups, set(top)):
        inside, outside = set(members), everyone - set(members)
        if outside:
            across = size_bytes * (coded if crossing else 1.0)
            bounds += [across / _capacity(fabric, a, b) for a, b in ((inside, outside), (outside, inside))]
    bounds += [_shared(fabric, ranks_of(g), size_bytes) for g in top]
    if coded == 1.0:
        bounds.append(_shared(fabric, tuple(everyone), size_bytes))
    return max(bounds)


def _cuts(fabric: Fabric, group: Group, top: set[Group]) -> Iterator[tuple[tuple[int, ...], bool]]:
    if isinstance(group, int):
        host = fabric.hosts[group]
        yield tuple(r for r in range(fabric.size) if fabric.hosts[r] == host), group in top
        return
    yield ranks_of(group), group in top
    for member in group:
        yield from _cuts(fabric, member, top)


def _capacity(fabric: Fabric, sources: set[int], targets: set[int]) -> float:
    """At most this many bytes/s go from these ranks to those: what the first, last or middle resources of routes carry."""
    routes = [fabric.routes[a, b].resources for a in sources for b in targets]
    longest = max(map(len, routes))
    # A route without a trunk counts there with its last resource.
    places: list[set[int]] = [{r[min(n, len(r) - 1)] for r in routes} for n in range(longest)]
    return min(sum(fabric.capacities[r] for r in place) for place in places)


def _shared(fabric: Fabric, members: tuple[int, ...], size_bytes: float) -> float:
    """All of a group's members together send 2 (h-1) times the whole."""
    hosts = {fabric.hosts[r]: r for r in members}
    if len(hosts) < 2:  # noqa: PLR2004 - one host needs no link
        return 0.0
    nics = {fabric.routes[a, b].resources[0] for a in hosts.values() for b in hosts.values() if a != b}
    return 2 * (len(hosts) - 1) * size_bytes / sum(fabric.capacities[n] for n in nics)
