"""Which machines complete a gang for the least money a piece of work.

Options are looked at in the ask's order, where it has one: the first that can be completed is taken. Within one, each type
alone is a candidate, and so are all types together, the cheapest first, as when one is nearly sold out. What counts is
price over throughput: the price of what has to be started, over the gang's throughput, which is that of its slowest
member times its workers. How fast a member is, is what was measured of this very run on such a device; else what its
user declared; else the type's `speed`, on the scale of what is known. Ties go to the faster, then to the sooner there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from atoll.control_plane.arbiter.model import Ask, Flavor, Option
from atoll.control_plane.autoscaling.commands import Rejected, Why
from atoll.control_plane.autoscaling.facts import Limits
from atoll.control_plane.autoscaling.room import Room, allowed, fits_on, groupings, held, sizes
from atoll.control_plane.autoscaling.spec import NodeType, labels_of
from atoll.schema.devices import device_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to start: (type, how many). Nothing: all fits where it is. `keys`: rooms that the gang would use."""

    option: Option
    workers: int
    adds: tuple[tuple[NodeType, int], ...] = ()
    islands: frozenset[str] = frozenset()
    rejected: tuple[Rejected, ...] = ()
    throughput: float = 0.0

    @property
    def price(self) -> float:
        """Of what is started, an hour."""
        return sum(kind.price_per_hour * count for kind, count in self.adds)

    @property
    def cost(self) -> float:
        """Price over throughput: what a piece of work costs."""
        return self.price / self.throughput if self.throughput > 0 else float("inf")

    @property
    def machines(self) -> int:
        """How many are started."""
        return sum(count for _, count in self.adds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """No option can be completed now, and why not."""

    workers: int
    rejected: tuple[Rejected, ...]


@dataclass(slots=True, kw_only=True)
class _Search:
    ask: Ask
    flavors: Sequence[Flavor]
    rooms: Sequence[Room]
    kinds: Sequence[NodeType]
    limits: Limits
    speeds: Mapping[str, float]
    rejected: dict[tuple[tuple[str, ...], Why], Rejected] = field(default_factory=dict)

    def no(self, kinds: Sequence[NodeType], why: Why, detail: str = "") -> None:
        found = Rejected(kinds=tuple(k.name for k in kinds), why=why, detail=detail)
        self.rejected.setdefault((found.kinds, why), found)


def choose(
    ask: Ask, flavors: Sequence[Flavor], rooms: Sequence[Room], kinds: Sequence[NodeType], limits: Limits
) -> Choice | Nothing:
    """The cheapest completion of the gang, nothing to start if it fits already, or why there is none."""
    search = _Search(ask=ask, flavors=flavors, rooms=rooms, kinds=kinds, limits=limits, speeds=speeds(ask, kinds))
    found: list[Choice] = []
    for option in ask.options:
        for kind in kinds if option.islands else ():
            if not kind.island:
                search.no([kind], Why.NO_ISLAND)
        for islands in groupings(option, rooms, kinds):
            found += _complete(search, option, islands)
        if found and (ask.ordered or any(not c.adds for c in found)):
            break
    if not found:
        least = min(sizes(ask, option) for option in ask.options)
        return Nothing(workers=least, rejected=tuple(search.rejected.values()))
    best = min(found, key=_rank)
    others = tuple(search.rejected.values()) if best.adds else ()
    return Choice(
        option=best.option,
        workers=best.workers,
        adds=best.adds,
        islands=best.islands,
        rejected=others,
        throughput=best.throughput,
    )


def _rank(choice: Choice) -> tuple[bool, float, float, float, str]:
    slowest = max((kind.launch_s for kind, _ in choice.adds), default=0.0)
    names = " ".join(kind.name for kind, _ in choice.adds)
    return (bool(choice.adds), choice.cost if choice.adds else 0.0, -choice.throughput, slowest, names)


def _complete(search: _Search, option: Option, islands: frozenset[str]) -> list[Choice]:
    ask, workers = search.ask, sizes(search.ask, option)
    usable = rooms_for(search.rooms, option, search.flavors, islands)
    lacking = workers - held(usable, ask.each)
    if lacking <= 0:
        return [Choice(option=option, workers=workers, islands=islands, throughput=1.0)]
    kinds = [k for k in search.kinds if (not islands or k.island in islands) and _may_start(search, option, k)]
    slowest = min((_speed_of(search, room) for room in usable if room.holds(ask.each)), default=float("inf"))
    together = sorted(kinds, key=lambda k: (_cost_of(search, k), k.name))
    mixes = [[kind] for kind in kinds] + ([together] if len(kinds) > 1 else [])
    found = []
    for mix in mixes:
        adds = _counts(search, mix, lacking)
        if adds is not None:
            speed = min(slowest, *(search.speeds[kind.name] for kind, _ in adds))
            found.append(Choice(option=option, workers=workers, adds=adds, islands=islands, throughput=speed * workers))
    return found


def _may_start(search: _Search, option: Option, kind: NodeType) -> bool:
    """Whether even one machine of the type would be of use and may be started now."""
    if not allowed(option, search.flavors, labels_of(kind)):
        search.no([kind], Why.OTHER_LABELS)
    elif fits_on(kind, search.ask.each) == 0:
        search.no([kind], Why.TOO_SMALL)
    elif search.limits.away:
        search.no([kind], Why.AWAY)
    elif kind.name in search.limits.paused:
        search.no([kind], Why.PAUSED)
    elif search.limits.count.get(kind.name, 0) >= kind.most:
        search.no([kind], Why.ALL_STAND, f"max = {kind.most}")
    else:
        return True
    return False


def rooms_for(rooms: Sequence[Room], option: Option, flavors: Sequence[Flavor], islands: frozenset[str]) -> list[Room]:
    """The rooms that an option may use."""
    return [r for r in rooms if (not islands or r.island in islands) and allowed(option, flavors, r.labels)]


def _counts(search: _Search, mix: Sequence[NodeType], lacking: int) -> tuple[tuple[NodeType, int], ...] | None:
    """How many of each, the first as far as it goes; None where that does not complete the gang or costs too much."""
    adds = []
    for kind in mix:
        per = fits_on(kind, search.ask.each)
        count = min(-(-lacking // per), kind.most - search.limits.count.get(kind.name, 0))
        if count > 0:
            adds.append((kind, count))
            lacking -= count * per
        if lacking <= 0:
            break
    if lacking > 0:
        search.no(mix, Why.TOO_FEW, f"room for {lacking} workers would still lack")
        return None
    price = sum(kind.price_per_hour * count for kind, count in adds)
    if not search.limits.money.allows(price):
        money = search.limits.money
        search.no(mix, Why.BUDGET, f"{money.spent:g} is spent, {price:g} more, budget {money.budget:g}")
        return None
    return tuple(adds)


def _cost_of(search: _Search, kind: NodeType) -> float:
    return kind.price_per_hour / (search.speeds[kind.name] * fits_on(kind, search.ask.each))


def _speed_of(search: _Search, room: Room) -> float:
    device = device_of(room.labels, room.gpus)
    known = next((k for k in search.kinds if k.device.casefold() == device), None)
    return search.speeds[known.name] if known is not None else float("inf")


def speeds(ask: Ask, kinds: Sequence[NodeType]) -> dict[str, float]:
    """What one worker of this run does in a second on each type.

    Figures of the run and `speed` of the file are in different units: where only some devices are known, the others
    follow by the ratio that those which are known have to theirs, on average.
    """
    known = {**{d: s for d, s in ask.declared.items() if s > 0}, **{d: s for d, s in ask.measured.items() if s > 0}}
    devices = {kind.name: kind.device.casefold() for kind in kinds}
    ratios = [known[devices[kind.name]] / kind.speed for kind in kinds if devices[kind.name] in known]
    scale = sum(ratios) / len(ratios) if ratios else 1.0
    return {kind.name: known.get(devices[kind.name], kind.speed * scale) for kind in kinds}
