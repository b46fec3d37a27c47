"""The plans there are: builders from a recipe, the groups of near ranks, and the number of elements.

- `direct`: all meet; one latency, (P-1) N bytes a rank. For messages where latency is the cost.
- `doubling`: pairs meet at distance 1, 2, 4, ...; log2 P latencies and N log2 P bytes (recursive doubling, Thakur,
  Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005). Ranks beyond the largest
  power of two give theirs to a partner first and get the result from it.
- `ring`: reduce-scatter then all-gather along a ring, 2 (P-1)/P N bytes a rank: the bound for equal links (Patarasuk and
  Yuan, "Bandwidth optimal all-reduce algorithms", 2009).
- `islands`: on every level of near groups, members sum along a chain, or each straight to the head (`star`: fewer hops,
  as many bytes); the head then stands for the group. What remains crosses between the groups, all heads at once, each
  with its share; and back down (as BlueConnect, Cho et al., 2019, splits all-reduce by levels; shares and pipelining by
  ranges are ours). Members of no weight begin every chain and head none: they send and receive each element once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from atoll.collectives.plan import Meet, Move, Moves, Plan, Program, Reduce, Spread, cut, even

# Relative sizes of the first slices, and, turned round, of the last.
_RAMP = (0.25, 0.5)

# A rank, or a group of near ranks or groups.
Group = int | tuple["Group", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build a plan for any number of elements.

    `groups` for `islands` and the order of a `ring`; `weights[rank]` is the share of a rank as a head; `slices`: into how
    many programs each share is cut; `meet`: whether the top groups meet or sum along chains; `codec`: for what crosses
    between the top groups.
    """

    shape: str
    groups: Group
    weights: tuple[float, ...]
    slices: int = 1
    meet: bool = True
    star: bool = False
    codec: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        words = [self.shape]
        if self.shape == "islands":
            words += [_drawn(self.groups), *["star"] * self.star, "meet" if self.meet else "climb"]
            if len(set(self.weights)) > 1:
                words.append("shares " + ":".join(f"{w / max(self.weights):.2g}" for w in self.weights))
        if self.slices > 1:
            words.append(f"x{self.slices}")
        if self.codec is not None:
            words.append(self.codec)
        return " ".join(words)


def build(recipe: Recipe, count: int) -> Plan:
    """The plan of `recipe` for `count` elements."""
    size = len(recipe.weights)
    branches = tuple(_SHAPES[recipe.shape](recipe, count))
    # Slice by slice, so that the first slice of every range is on its way before the second of any.
    sliced = itertools.chain.from_iterable(zip(*(_sliced(b, recipe.slices) for b in branches), strict=True))
    return Plan(recipe.name, size, count, tuple(sliced), recipe.codec)


def ranks_of(group: Group) -> tuple[int, ...]:
    """All ranks of a group, in its order."""
    return (group,) if isinstance(group, int) else tuple(r for g in group for r in ranks_of(g))


def _sliced(program: Program, slices: int) -> Iterator[Program]:
    """Many slices begin and end with small ones: the pipeline fills and drains faster, for few messages more."""
    between = slices - 2 * len(_RAMP)
    weights = (1.0,) * slices if between < 0 else (*_RAMP, *(1.0,) * between, *_RAMP[::-1])
    return (Program(start, end, program.moves) for start, end in cut(program.start, program.end, weights))


def _drawn(group: Group) -> str:
    return str(group) if isinstance(group, int) else "(" + " ".join(map(_drawn, group)) + ")"


# -- flat ------------------------------------------------------------------------------------------------------------


def _direct(recipe: Recipe, count: int) -> Iterator[Program]:
    yield Program(0, count, (Meet(tuple(sorted(ranks_of(recipe.groups)))),))


def _doubling(recipe: Recipe, count: int) -> Iterator[Program]:
    order = ranks_of(recipe.groups)
    core = 1 << (len(order).bit_length() - 1)
    extra = [(order[core + i], order[i]) for i in range(len(order) - core)]
    moves: list[Move] = [Reduce(a, b) for a, b in extra]
    distance = 1
    while distance < core:
        pairs = ((i, i ^ distance) for i in range(core))
        moves += [Meet((order[i], order[j])) for i, j in pairs if i < j]
        distance *= 2
    yield Program(0, count, (*moves, *(Spread(b, a) for a, b in extra)))


def _ring(recipe: Recipe, count: int) -> Iterator[Program]:
    order = ranks_of(recipe.groups)
    for head, (start, end) in enumerate(even(0, count, len(order))):
        up, down = _chain([*order[head + 1 :], *order[: head + 1]], 0)
        yield Program(start, end, up + down)


def _chain(order: Sequence[int], lazy: int) -> tuple[Moves, Moves]:
    """Moves that sum along `order` into its last, and back out from it; the first `lazy` of them come last again."""
    up = tuple(itertools.starmap(Reduce, itertools.pairwise(order)))
    out = [order[-1], *order[lazy:-1], *order[:lazy]]
    return up, tuple(itertools.starmap(Spread, itertools.pairwise(out)))


def _star(order: Sequence[int]) -> tuple[Moves, Moves]:
    """Moves that sum all of `order` in its last, straight, and back out."""
    *others, head = order
    return tuple(Reduce(o, head) for o in others), tuple(Spread(head, o) for o in others)


# -- levels of islands -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Branch:
    """A range that one group has summed up: by these moves, in this head, and how the result goes back down."""

    start: int
    end: int
    up: Moves
    head: int
    down: Moves


def _islands(recipe: Recipe, count: int) -> Iterator[Program]:
    groups = recipe.groups
    if isinstance(groups, int) or not recipe.meet:
        yield from (Program(b.start, b.end, b.up + b.down) for b in _climb(groups, 0, count, recipe))
        return
    for start, end, branches in _common([_climb(g, 0, count, recipe) for g in groups]):
        meet = Meet(tuple(b.head for b in branches), coded=recipe.codec is not None)
        yield Program(start, end, (*_all(b.up for b in branches), meet, *_all(b.down for b in branches)))


def _climb(group: Group, start: int, end: int, recipe: Recipe) -> list[_Branch]:
    if isinstance(group, int):
        return [_Branch(start, end, (), group, ())]
    members = [_climb(g, start, end, recipe) for g in group]
    shares = tuple(sum(recipe.weights[r] for r in ranks_of(g)) for g in group)
    if not any(shares):
        shares = (1.0,) * len(group)
    climbed = []
    for here, there, branches in _common(members):
        for number, (first, last) in enumerate(cut(here, there, shares)):
            if first < last:
                climbed.append(_joined(first, last, branches, number, shares, star=recipe.star))
    return climbed


def _joined(
    start: int, end: int, branches: list[_Branch], head: int, shares: tuple[float, ...], *, star: bool
) -> _Branch:
    """The branches of a group's members as one: those without a share begin the chain, `head` ends it."""
    numbers = range(len(branches))
    lazy = [n for n in numbers if shares[n] == 0]
    busy = [n for n in (*numbers[head + 1 :], *numbers[: head + 1]) if shares[n] > 0]
    order = [branches[n].head for n in (*lazy, *busy)]
    up, down = _star(order) if star else _chain(order, len(lazy))
    ups, downs = _all(b.up for b in branches), _all(b.down for b in branches)
    return _Branch(start, end, ups + up, branches[head].head, down + downs)


def _common(members: Sequence[Sequence[_Branch]]) -> Iterator[tuple[int, int, list[_Branch]]]:
    """The ranges on which each member has one branch, with those."""
    edges = sorted({edge for branches in members for b in branches for edge in (b.start, b.end)})
    for start, end in itertools.pairwise(edges):
        yield start, end, [next(b for b in branches if b.start <= start < b.end) for branches in members]


def _all(moves: Iterator[Moves]) -> Moves:
    return tuple(itertools.chain.from_iterable(moves))


_SHAPES = {"direct": _direct, "doubling": _doubling, "ring": _ring, "islands": _islands}
