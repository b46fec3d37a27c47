"""Chooses the plan of an all-reduce: candidates from the groups of near ranks, each played on the fabric, the fastest wins.

The choice is a function of the fabric, the groups and the size alone, so ranks that know the same network choose the same
plan without a word. It is made once for each class of sizes (a quarter of an octave) and kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from atoll.collectives.fabric import Fabric
from atoll.collectives.plan import Plan
from atoll.collectives.plan_cost import Costs, lower_bound, seconds
from atoll.collectives.plan_shapes import Group, Recipe, build, ranks_of

# Beyond this a message of every rank to every rank is never the better plan, whatever the latencies.
_DIRECT_RANKS = 32
# A slice below this is mostly the cost of handling it; above the other it leaves the cache before it is added.
SMALLEST_SLICE_BYTES = 16 * 1024
LARGEST_SLICE_BYTES = 4 * 1024 * 1024
_SLICES = (1, 2, 4, 8, 16, 32, 64)
# Slices to compare candidates by, how many of those near the best are then played with other numbers, and how near.
_COARSE = 4
_REFINED = 3
_NEAR = 1.3
# Each program is some hundred microseconds of every rank's loop, and of playing it.
_PROGRAMS = 320
# More slices must bring at least this to be worth their messages.
_WORTH = 0.983
# Predictions that are so near each other tell no difference.
_EQUAL = 1.03
# Shares that differ by less than noise are even: even shares meet head to head, uneven ones are cut in more pieces.
_EVEN = 1.15
# A member slower than the median of its group by this heads nothing in the lean plans.
_LEAN = 0.6
# Plans kept for sizes seen before: a model has a few dozen buckets at most.
_KEPT_PLANS = 64


Timed = tuple[Recipe, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why this plan: predicted seconds, what no plan can beat, and the best plan of another shape, if there is one."""

    plan: str
    predicted_s: float
    lower_bound_s: float
    other: str | None
    other_s: float | None

    def __str__(self) -> str:
        words = f"{self.plan}: {self.predicted_s:.3g} s predicted, no plan beats {self.lower_bound_s:.3g} s"
        if self.other is None or self.other_s is None:
            return words
        return f"{words}; next best {self.other}: {self.other_s:.3g} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A recipe with its predicted seconds."""

    recipe: Recipe
    predicted_s: float
    reason: Reason

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.name


class Planner:
    """Plans for one fabric. `coded[name]`: encoded bytes for a byte, for each codec that may be asked for.

    A codec is a permission: plans without it compete, since on fast links coding takes longer than it saves.
    """

    def __init__(
        self, fabric: Fabric, groups: Group, *, costs: Costs | None = None, coded: Mapping[str, float] | None = None
    ) -> None:
        self.fabric, self.groups = fabric, groups
        self._costs, self._coded = costs or Costs(), coded or {}
        self._known: dict[tuple[int, int, str | None], Choice] = {}
        self._built: dict[tuple[Recipe, int], Plan] = {}

    def plan(self, count: int, itemsize: int, codec: str | None = None) -> Plan:
        """The chosen plan for `count` elements of `itemsize` bytes."""
        return self.built(self.choose(count, itemsize, codec).recipe, count)

    def built(self, recipe: Recipe, count: int) -> Plan:
        """`recipe` for `count` elements; the last few are kept."""
        plan = self._built.get((recipe, count))
        if plan is None:
            if len(self._built) > _KEPT_PLANS:
                self._built.clear()
            plan = self._built[recipe, count] = build(recipe, count)
        return plan

    def choose(self, count: int, itemsize: int, codec: str | None = None) -> Choice:
        """The fastest candidate for a message of this class of sizes."""
        octaves = round(4 * math.log2(max(1, count * itemsize)))
        key = (octaves, itemsize, codec)
        if key not in self._known:
            self._known[key] = self.candidates(max(1, round(2 ** (octaves / 4) / itemsize)), itemsize, codec)[0]
        return self._known[key]

    def candidates(self, count: int, itemsize: int, codec: str | None = None) -> list[Choice]:
        """The best number of slices of every candidate, fastest first but for what is equal."""
        coded = 1.0 if codec is None else self._coded[codec]
        bound = lower_bound(self.fabric, self.groups, count * itemsize, coded)
        costs = dataclasses.replace(self._costs, coded=coded)
        bases = itertools.chain(self._bases(None), self._bases(codec) if codec is not None else ())
        timed = [self._timed(_coarse(base, count * itemsize), count, itemsize, costs) for base in bases]
        timed.sort(key=lambda found: found[1])
        # Slices do not make a good plan of a bad one: only what is near the best is worth playing again.
        near = [t for t in timed[:_REFINED] if t[1] <= _NEAR * timed[0][1]]
        timed[: len(near)] = [self._best_slices(t, count, itemsize, costs) for t in near]
        # Between equals the ring: in stars every member holds what all others send at the same time.
        timed.sort(key=lambda found: found[1] / (_EQUAL if found[0].shape == "ring" else 1.0))
        return [
            Choice(recipe=r, predicted_s=s, reason=_reason(r, s, bound, [t for t in timed if t[0] is not r]))
            for r, s in timed
        ]

    def _timed(self, recipe: Recipe, count: int, itemsize: int, costs: Costs) -> Timed:
        return recipe, seconds(build(recipe, count), self.fabric, itemsize, costs)

    def _best_slices(self, best: Timed, count: int, itemsize: int, costs: Costs) -> Timed:
        """Predicted seconds fall with the number of slices, then rise: tried upwards, then downwards, while they fall."""
        start, fitting = best[0].slices, _slices(best[0], count * itemsize)
        programs = len(build(best[0], count).programs) / start
        more = [s for s in fitting if s > start and s * programs <= _PROGRAMS]
        fewer = [s for s in reversed(fitting) if s < start]
        for worth, numbers in ((_WORTH, more), (1 / _WORTH, fewer)):
            for slices in numbers:
                tried = self._timed(dataclasses.replace(best[0], slices=slices), count, itemsize, costs)
                if tried[1] >= best[1] * worth:
                    break
                best = tried
        return best

    def _bases(self, codec: str | None) -> Iterator[Recipe]:
        size, even = self.fabric.size, (1.0,) * self.fabric.size
        if codec is None:
            if size <= _DIRECT_RANKS:
                yield Recipe(shape="direct", groups=self.groups, weights=even)
            yield Recipe(shape="doubling", groups=self.groups, weights=even)
            yield Recipe(shape="ring", groups=self.groups, weights=even)
        near = (self.groups, _attached(self.groups, self.fabric), _two_levels(self.groups))
        for groups in dict.fromkeys((*near, turned(near[-1], self.fabric))):
            flat = isinstance(groups, int) or not any(isinstance(g, tuple) for g in groups)
            for weights in dict.fromkeys((even, *self._shares(groups))):
                for star in (True, False):
                    if not flat or codec is not None:
                        yield Recipe(shape="islands", groups=groups, weights=weights, star=star, codec=codec)
                    # On flat groups with even shares, chains are the ring.
                    if codec is None and (star or not flat or weights != even):
                        yield Recipe(shape="islands", groups=groups, weights=weights, star=star, meet=False)

    def _shares(self, groups: Group) -> Iterator[tuple[float, ...]]:
        """Shares by the speed at which each rank reaches other groups; and none for members too slow for their own."""
        crossing = self._crossing(groups)
        if max(crossing) > _EVEN * min(crossing):
            yield crossing
        lean = self._lean(groups)
        if any(w == 0 for w in lean):
            yield lean
            yield tuple(a * b for a, b in zip(lean, crossing, strict=True))

    def _crossing(self, groups: Group) -> tuple[float, ...]:
        members = groups if isinstance(groups, tuple) else (groups,)
        group_of = {rank: number for number, g in enumerate(members) for rank in ranks_of(g)}
        speeds = [
            max(
                (r.bandwidth for (a, b), r in self.fabric.routes.items() if a == rank and group_of[b] != group_of[a]),
                default=1.0,
            )
            for rank in range(self.fabric.size)
        ]
        return tuple(s / max(speeds) for s in speeds)

    def _lean(self, groups: Group) -> tuple[float, ...]:
        weights = [1.0] * self.fabric.size
        for members in _leaves(groups):
            speeds = {a: self._speed(a, members) for a in members}
            usual = statistics.median(speeds.values())
            for rank, speed in speeds.items():
                if speed < _LEAN * usual:
                    weights[rank] = 0.0
        return tuple(weights)

    def _speed(self, rank: int, members: tuple[int, ...]) -> float:
        return max((self.fabric.routes[rank, b].bandwidth for b in members if b != rank), default=0.0)


def _reason(recipe: Recipe, predicted_s: float, bound: float, others: list[Timed]) -> Reason:
    other = next(((r, s) for r, s in others if r.shape != recipe.shape or r.meet != recipe.meet), None)
    return Reason(
        plan=recipe.name,
        predicted_s=predicted_s,
        lower_bound_s=bound,
        other=other[0].name if other else None,
        other_s=other[1] if other else None,
    )


def _slices(base: Recipe, size_bytes: int) -> list[int]:
    """The numbers of slices that leave slices of a sensible size."""
    if base.shape in {"direct", "doubling"}:
        return [1]
    share = size_bytes / max(1, len(base.weights))
    fitting = [s for s in _SLICES if s == 1 or share / s >= SMALLEST_SLICE_BYTES]
    return [s for s in fitting if share / s <= LARGEST_SLICE_BYTES] or fitting[-1:]


def _coarse(base: Recipe, size_bytes: int) -> Recipe:
    """The base with a few slices: enough to tell it from others."""
    return dataclasses.replace(base, slices=min(_slices(base, size_bytes), key=lambda s: abs(s - _COARSE)))


def _leaves(group: Group) -> Iterator[tuple[int, ...]]:
    """Groups of ranks; ranks that stand alone beside groups count as one."""
    if isinstance(group, int):
        return
    alone = tuple(g for g in group if isinstance(g, int))
    if alone:
        yield alone
    yield from itertools.chain.from_iterable(_leaves(g) for g in group)


def _two_levels(groups: Group) -> Group:
    """The top groups, each flat."""
    return groups if isinstance(groups, int) else tuple(ranks_of(g) if isinstance(g, tuple) else g for g in groups)


def turned(groups: Group, fabric: Fabric) -> Group:
    """The groups with members turned so that heads meet over fast pairs: around one slow link between two groups.

    Members at the same place of their groups meet. Each group after the first is turned until the slowest pair that it
    makes with those before is fastest; where that gains no more than noise it stays.
    """
    if isinstance(groups, int) or any(isinstance(g, int) for g in groups):
        return groups
    placed: list[tuple[int, ...]] = []
    for group in groups:
        ranks = ranks_of(group)
        turns = [ranks[n:] + ranks[:n] for n in range(len(ranks))]
        rates = [_slowest_pair(t, placed, fabric) for t in turns]
        placed.append(turns[rates.index(max(rates))] if max(rates) > _EVEN * rates[0] else ranks)
    return tuple(placed)


def _slowest_pair(ranks: tuple[int, ...], placed: list[tuple[int, ...]], fabric: Fabric) -> float:
    pairs = [pair for before in placed for a, b in zip(before, ranks, strict=False) for pair in ((a, b), (b, a))]
    return min((fabric.routes[pair].bandwidth for pair in pairs), default=math.inf)


def _attached(groups: Group, fabric: Fabric) -> Group:
    """Ranks that stand alone beside groups join the group that they reach fastest, above its other members."""
    if isinstance(groups, int) or all(isinstance(g, int) for g in groups):
        return groups
    homes = [g for g in groups if isinstance(g, tuple)]
    guests: dict[int, list[int]] = {n: [] for n in range(len(homes))}
    for rank in (g for g in groups if isinstance(g, int)):
        reach = [max(fabric.routes[rank, b].bandwidth for b in ranks_of(home)) for home in homes]
        guests[reach.index(max(reach))].append(rank)
    joined: tuple[Group, ...] = tuple((home, *guests[n]) if guests[n] else home for n, home in enumerate(homes))
    return joined if len(joined) > 1 else joined[0]
