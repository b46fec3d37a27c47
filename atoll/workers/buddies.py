"""Who holds which shard, who keeps a copy of it, and what can be put together after a loss (laws 7 and 9).

A run whose model is sharded over `size` ranks consists of one or more *replica groups* of that many ranks each; rank by
rank a member has a place (group, index), and members with the same index hold the same shard. `asked` is the size that
the program wants (None: all ranks hold one model together). Where the members cannot be divided into groups of that
size, the next larger size that divides their number is taken: shards only ever get smaller, so what fitted in memory
before still fits.

Members keep their places as long as the size stays. A vacancy goes first to a member of a dissolved group that holds the
very shard, then to whoever has most of it in its memory, be it its own or a copy, so that little has to move where the
size changes; then to one without a place. With one replica group each shard has one owner, and its *buddy* keeps a copy:
the member that follows in a ring of the island, in an order that puts members of one node as far apart as can be. With
more groups every shard is held by several owners, and no copies are kept.

Each member tells which holdings it has: its own shard and copies, each with its step, the epoch that committed that step
(`line`: after a return to an earlier step the same number is computed anew, with other bits) and the structure that it
had (`tag`). A state is put together out of the shards of one layout at one step of one line; one holder stands for each
shard, an owner before a copy. Nothing else is ever mixed.

Where copies are taken each k steps only, the newest state may be lost with one member. Then all go back to the newest one
of which every shard is held (`fallback`): each member keeps its own shard of that step, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The shard `index` of `size` as it was after `step`, which epoch `line` committed.

    `copy`: a buddy's. `key` names it among its holder's.
    """

    key: str
    size: int
    index: int
    step: int
    copy: bool = False
    tag: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A member's place: shard `index` of `size`, in replica group `group`."""

    size: int
    group: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one member brings. `live`: its model holds the shard of its `place` and can go on as it is."""

    node: str
    place: Place | None = None
    live: bool = False
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One holder for each shard of one layout that is needed, as of one step of one line: (rank, key) by index."""

    step: int
    line: int
    size: int
    holders: dict[int, tuple[int, str]]


def shard_size(members: int, asked: int | None) -> int:
    """How many ranks hold one model: `asked`, or the next larger number that divides `members`."""
    if asked is None or asked >= members:
        return members
    return next(n for n in range(asked, members + 1) if members % n == 0)


def arrange(standings: Sequence[Standing], size: int, step: int) -> tuple[Place, ...]:
    """Each member's place among groups of `size`, which divides their number, for the state after `step`."""
    places = [Place(size=size, group=g, index=i) for g in range(len(standings) // size) for i in range(size)]
    taken: dict[Place, int] = {}
    for rank, standing in enumerate(standings):
        if standing.place in places and standing.place not in taken:
            taken[standing.place] = rank
    vacant = [p for p in places if p not in taken]
    waiting = [rank for rank in range(len(standings)) if rank not in taken.values()]
    for place in list(vacant):
        found = next((rank for rank in waiting if _same_shard(standings[rank], place)), None)
        if found is not None:
            taken[place] = found
            waiting.remove(found)
            vacant.remove(place)
    shares = {rank: shares_of(standings[rank], size, step) for rank in waiting}
    for _, index, rank in sorted((-share, i, rank) for rank, of in shares.items() for i, share in of.items()):
        free = next((p for p in vacant if p.index == index), None)
        if free is not None and rank in waiting:
            taken[free] = rank
            waiting.remove(rank)
            vacant.remove(free)
    taken |= dict(zip(vacant, waiting, strict=True))
    by_rank = {rank: place for place, rank in taken.items()}
    return tuple(by_rank[rank] for rank in range(len(standings)))


def _same_shard(standing: Standing, place: Place) -> bool:
    had = standing.place
    return standing.live and had is not None and (had.size, had.index) == (place.size, place.index)


def shares_of(standing: Standing, size: int, step: int) -> dict[int, Fraction]:
    """How much of each shard of `size` that member has in its memory, its own and copies, as of one layout after `step`."""
    layouts: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for one in standing.holdings:
        if one.step == step:
            layouts[one.line, one.size].add(one.index)
    best: dict[int, Fraction] = {}
    for (_, had), held in layouts.items():
        found: defaultdict[int, Fraction] = defaultdict(Fraction)
        for i in held:
            for j in range(i * size // had, -(-(i + 1) * size // had)):
                found[j] += Fraction(min((i + 1) * size, (j + 1) * had) - max(i * size, j * had), had)
        best = {j: max(best.get(j, Fraction()), found[j]) for j in {*best, *found}}
    return best


def group_of(places: Sequence[Place], rank: int) -> tuple[int, ...]:
    """The ranks of a member's replica group, by index."""
    mine = [(p.index, r) for r, p in enumerate(places) if p.group == places[rank].group]
    return tuple(r for _, r in sorted(mine))


def column_of(places: Sequence[Place], rank: int) -> tuple[int, ...]:
    """The ranks that hold the same shard, by group."""
    mine = [(p.group, r) for r, p in enumerate(places) if p.index == places[rank].index]
    return tuple(r for _, r in sorted(mine))


def buddies(places: Sequence[Place], nodes: Sequence[str], islands: Sequence[Sequence[int]]) -> tuple[int | None, ...]:
    """The rank that keeps a copy of each rank's shard; None where other owners hold it, or nobody else is there.

    `islands` are the ranks of each. An island in which one node has more than half of the members cannot give all of
    them a buddy on another node: such islands make their ring together.
    """
    found: list[int | None] = [None] * len(places)
    if any(p.group for p in places):
        return tuple(found)
    rings, left = list[list[int]](), list[int]()
    for island in islands:
        if 2 * _crowd(island, nodes) <= len(island):
            rings.append(list(island))
        else:
            left.extend(island)
    for ring in [*rings, left]:
        order = sorted(ring, key=lambda r: (nodes[r], r))
        shift = _crowd(ring, nodes) if 2 * _crowd(ring, nodes) <= len(ring) else 1
        for at, rank in enumerate(order):
            buddy = order[(at + shift) % len(order)]
            found[rank] = None if buddy == rank else buddy
    return tuple(_lone(found, nodes))


def _crowd(ring: Iterable[int], nodes: Sequence[str]) -> int:
    """How many members the fullest node has."""
    return max(Counter(nodes[r] for r in ring).values(), default=0)


def _lone(found: list[int | None], nodes: Sequence[str]) -> list[int | None]:
    """Who is alone in its ring takes part in the next one: between another rank and that one's buddy."""
    for rank, buddy in enumerate(found):
        others = [r for r in range(len(found)) if r != rank and found[r] is not None]
        if buddy is None and others:
            before = min(others, key=lambda r: (nodes[r] == nodes[rank], r))
            found[rank], found[before] = found[before], rank
    return found


def recovery(standings: Sequence[Standing], step: int, size: int, wanted: Iterable[int]) -> Recovery | None:
    """What the state after `step` can be put together from; None where no layout has all that is needed.

    Of the layout of `size` only the shards `wanted` are needed, and it comes first; of another all are.
    """
    layouts = {(h.line, h.size) for s in standings for h in s.holdings if h.step == step}
    indices = sorted(set(wanted))
    for line, layout in sorted(layouts, key=lambda one: (-one[0], one[1] != size, one[1])):
        needed = indices if layout == size else range(layout)
        found = {index: _holder(standings, step, layout, index, line) for index in needed}
        if all(found.values()):
            holders = {index: one for index, one in found.items() if one}
            return Recovery(step=step, line=line, size=layout, holders=holders)
    return None


def holders_of(standings: Sequence[Standing], found: Recovery, index: int) -> list[tuple[int, str]]:
    """All who hold a shard of that layout as of that step, owners and copies alike, as (rank, key)."""
    chosen = found.holders[index]
    like = next(h.tag for h in standings[chosen[0]].holdings if h.key == chosen[1])
    wanted = (found.size, index, found.step, found.line, like)
    same = [
        (rank, h.key)
        for rank, s in enumerate(standings)
        for h in s.holdings
        if (h.size, h.index, h.step, h.line, h.tag) == wanted
    ]
    return [chosen, *(one for one in same if one != chosen)]


def fallback(standings: Sequence[Standing], step: int, size: int) -> Recovery | None:
    """What the newest state before that after `step` can be put together from, whole; None where none can."""
    earlier = sorted({h.step for s in standings for h in s.holdings if h.step < step}, reverse=True)
    return next((found for at in earlier if (found := recovery(standings, at, size, range(size)))), None)


def _holder(
    standings: Sequence[Standing], step: int, size: int, index: int, line: int | None = None
) -> tuple[int, str] | None:
    held = [
        (h.copy, rank, h.key)
        for rank, s in enumerate(standings)
        for h in s.holdings
        if (h.size, h.index, h.step) == (size, index, step) and line in {None, h.line}
    ]
    return min(held)[1:] if held else None


def missing(standings: Sequence[Standing], step: int, size: int) -> tuple[int, ...]:
    """The shards of a layout that nobody holds as they were after `step`."""
    return tuple(i for i in range(size) if _holder(standings, step, size, i) is None)


def needy(standings: Sequence[Standing], places: Sequence[Place]) -> tuple[int, ...]:
    """The ranks that must be filled: they have no live model, or not that of their place."""
    return tuple(
        r for r, (s, p) in enumerate(zip(standings, places, strict=True)) if not s.live or not _same_shard(s, p)
    )


def kept(standing: Standing, place: Place, step: int) -> Holding | None:
    """The copy of the shard at `place` that a member has, if it is of `step`."""
    wanted = (place.size, place.index, step)
    return next((h for h in standing.holdings if h.copy and (h.size, h.index, h.step) == wanted), None)
