"""Where workers would fit: on nodes that stand, on machines that come, and on types that may be started.

Placing is the arbiter's; this only answers whether a gang would fit, and reserves in the order in which gangs are served,
so that nothing is started for what is about to be free, and two gangs do not count on the same machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from atoll.control_plane.arbiter.model import Amount, Ask, Flavor, Option
from atoll.control_plane.autoscaling.spec import ISLAND, NodeType, labels_of

Selector = Mapping[str, tuple[str, ...]]
UNIT = 10_000


@dataclass(slots=True, kw_only=True)
class Room:
    """What is free at one machine. `order`: what is used first; `comes`: it is no node yet."""

    key: str
    labels: Mapping[str, str]
    cpus: int
    gpus: int
    order: int = 0
    comes: bool = False

    @property
    def island(self) -> str:
        """The island it is on; a machine without one is an island of its own."""
        return self.labels.get(ISLAND) or f"alone:{self.key}"

    def holds(self, each: Amount) -> int:
        """How many workers fit."""
        return _fit(self.cpus, self.gpus, each)

    def take(self, each: Amount, times: int) -> None:
        """Reserve for so many workers."""
        self.cpus -= each.cpus * times
        self.gpus -= each.gpus * times


def _fit(cpus: int, gpus: int, each: Amount) -> int:
    bounds = [free // want for free, want in ((cpus, each.cpus), (gpus, each.gpus)) if want]
    # A worker that asks for nothing still needs a machine; so many share one without anybody minding.
    return min(bounds) if bounds else 64


def amount_of(kind: NodeType) -> Amount:
    """What one machine of the type offers."""
    return Amount(cpus=round(kind.cpus * UNIT), gpus=round(kind.gpus * UNIT))


def fits_on(kind: NodeType, each: Amount) -> int:
    """How many workers an empty machine of the type holds."""
    amount = amount_of(kind)
    return _fit(amount.cpus, amount.gpus, each)


def room_of(kind: NodeType, key: str, order: int) -> Room:
    """The room of a machine of this type that is no node yet."""
    amount = amount_of(kind)
    return Room(key=key, labels=labels_of(kind), cpus=amount.cpus, gpus=amount.gpus, order=order, comes=True)


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether labels have one of the values of each key, and none that begins with `!` there."""
    for key, values in selector.items():
        value = labels.get(key, "")
        wanted = [v for v in values if not v.startswith("!")]
        if (wanted and value not in wanted) or f"!{value}" in values:
            return False
    return True


def allowed(option: Option, flavors: Sequence[Flavor], labels: Mapping[str, str]) -> bool:
    """Whether machines with these labels are what the option asks for."""
    named = [f for f in flavors if f.name in option.flavors]
    if option.flavors and not any(selects(f.selector, labels) for f in named):
        return False
    return selects(option.selector, labels)


def sizes(ask: Ask, option: Option) -> int:
    """The least number of workers with which the gang may begin."""
    least = option.least if option.least is not None else ask.least
    legal = [n for n in (option.sizes or ask.sizes) if n >= least]
    return min(legal) if legal else least


def held(rooms: Iterable[Room], each: Amount) -> int:
    """How many workers these rooms hold together."""
    return sum(room.holds(each) for room in rooms)


def reserve(rooms: Iterable[Room], each: Amount, workers: int) -> list[Room]:
    """Take room for so many workers, standing machines first; returns whose room was taken."""
    used = []
    for room in sorted(rooms, key=lambda r: (r.order, r.key)):
        times = min(room.holds(each), workers)
        if times > 0:
            room.take(each, times)
            workers -= times
            used.append(room)
    return used


def groupings(option: Option, rooms: Sequence[Room], kinds: Sequence[NodeType]) -> list[frozenset[str]]:
    """Sets of islands among which the gang may lie; an empty set stands for anywhere.

    With more than one island allowed, those with most room come together first; with one, each is a set of its own.
    """
    if option.islands <= 0:
        return [frozenset()]
    names = list(dict.fromkeys([*(r.island for r in rooms), *(k.island for k in kinds if k.island)]))
    if option.islands == 1 or len(names) <= option.islands:
        return [frozenset([n]) for n in names] if option.islands == 1 else [frozenset(names)]
    by_room = sorted(names, key=lambda n: (-sum(r.cpus + r.gpus for r in rooms if r.island == n), n))
    first = by_room[: option.islands - 1]
    return [frozenset([*first, other]) for other in by_room[option.islands - 1 :]]
