"""What the arbiter remembers: runs that wait, runs that hold nodes, what is kept for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from atoll.control_plane.arbiter.accounts import Accounts, Pair
from atoll.control_plane.arbiter.catalog import Catalog
from atoll.control_plane.arbiter.cluster import Cluster, Node, Shape
from atoll.control_plane.arbiter.model import Ask, Grant, NodeState, Obtainable, Option, Settings
from atoll.schema.ids import NodeId, RunId

# Classes of nodes that count as one: of a flavor if quotas count, of a device if speeds are known.
Group = tuple[str | None, str | None, frozenset[int]]


@dataclass(slots=True, kw_only=True)
class Way:
    """One shape by which an option can be had: nodes of one flavor if quotas count, of one device if speeds are known."""

    shape: Shape
    flavor: str | None
    device: str | None


@dataclass(slots=True, kw_only=True)
class Choice:
    """An option of an ask, worked out: its legal sizes from the least up, and the ways to have it."""

    index: int
    option: Option
    name: str
    sizes: Sequence[int]
    ways: list[Way]


@dataclass(slots=True, kw_only=True)
class Wish:
    """A run that waits. `judged`: it was found that the cluster could hold it; `choices` are right for `version`."""

    ask: Ask
    judged: bool = False
    version: tuple[int, int] = (-1, -1)
    choices: list[Choice] = field(default_factory=list)


@dataclass(slots=True)
class Spread:
    """Where a holding's trainers are: how many on each island, by class of node."""

    islands: dict[str, int]
    kinds: frozenset[int]


@dataclass(slots=True, kw_only=True)
class Holding:
    """A run that holds nodes, with what it is charged, by flavor."""

    ask: Ask
    nodes: list[NodeId]
    spares: list[NodeId]
    since: float
    changed_at: float
    option: int
    checkpoint_at: float | None
    leaving: list[NodeId]
    suspending: bool
    charges: dict[str, Pair] = field(default_factory=dict)
    drawn: list[Node] = field(default_factory=list)
    version: tuple[int, int] = (-1, -1)
    choices: list[Choice] = field(default_factory=list)
    sizes: Sequence[int] = ()
    spread: Spread | None = None
    # when a better place is looked for again
    looked_at: float = 0.0

    def ends_at(self, now: float) -> float | None:
        """When it is expected to give back its nodes; None where nobody knows, or it is late already."""
        if self.suspending:
            return now
        if self.ask.expected_s is None or self.since + self.ask.expected_s <= now:
            return None
        return self.since + self.ask.expected_s

    def where(self) -> Spread:
        """Where its trainers are, counted once for each change."""
        if self.spread is None:
            islands: dict[str, int] = {}
            nodes, run = dict.fromkeys(self.drawn), self.ask.run
            for node in nodes:
                islands[node.island.name] = islands.get(node.island.name, 0) + node.occupants[run]
            self.spread = Spread(islands, frozenset([node.kind for node in nodes]))
        return self.spread

    def steady(self) -> bool:
        """Whether it was told to give up nothing."""
        return not self.leaving and not self.suspending


@dataclass(slots=True, kw_only=True)
class Kept:
    """Places that nobody behind `run` may take: `start` is when it will have them at the latest (None: unknown).

    `claim`: others gave them up for it. `parts`: what of each node is withheld at present.
    """

    run: RunId
    option: int
    shape: Shape
    places: list[NodeId]
    start: float | None
    claim: bool
    givers: tuple[RunId, ...] = ()
    parts: list[tuple[Node, int, int]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class State:
    """All of it. `sized` of the cluster and `version` of the catalog tell what is out of date."""

    settings: Settings
    catalog: Catalog
    cluster: Cluster
    accounts: Accounts
    wishes: dict[RunId, Wish] = field(default_factory=dict)
    holdings: dict[RunId, Holding] = field(default_factory=dict)
    kept: dict[RunId, Kept] = field(default_factory=dict)
    known: dict[NodeId, NodeState] = field(default_factory=dict)
    # nodes that grants name and that are not there -> those runs
    missing: dict[NodeId, dict[RunId, None]] = field(default_factory=dict)
    obtainable: tuple[Obtainable, ...] = ()
    queues_version: int = 0
    # ways of options, shared by all who ask alike
    ways: dict[tuple[object, ...], list[Way]] = field(default_factory=dict)
    groups: dict[tuple[object, ...], list[Group]] = field(default_factory=dict)
    ways_version: tuple[int, int] = (-1, -1)

    def version(self) -> tuple[int, int]:
        """What worked-out choices depend upon."""
        return self.catalog.version, self.queues_version


def new_state(settings: Settings) -> State:
    """An empty cluster."""
    catalog = Catalog()
    return State(settings=settings, catalog=catalog, cluster=Cluster(catalog), accounts=Accounts(settings.half_life_s))


def holding_of(grant: Grant) -> Holding:
    """A grant, to be kept up to date."""
    options = grant.ask.options
    option = options[grant.option] if grant.option < len(options) else Option()
    return Holding(
        ask=grant.ask,
        sizes=legal_sizes(grant.ask, option),
        nodes=list(grant.nodes),
        spares=list(grant.spares),
        since=grant.since,
        changed_at=grant.since if grant.changed_at is None else grant.changed_at,
        option=grant.option,
        checkpoint_at=grant.checkpoint_at,
        leaving=list(grant.leaving),
        suspending=grant.suspending,
    )


def grant_of(holding: Holding) -> Grant:
    """A holding as a value."""
    return Grant(
        ask=holding.ask,
        nodes=tuple(holding.nodes),
        spares=tuple(holding.spares),
        since=holding.since,
        changed_at=holding.changed_at,
        option=holding.option,
        checkpoint_at=holding.checkpoint_at,
        leaving=tuple(holding.leaving),
        suspending=holding.suspending,
    )


def legal_sizes(ask: Ask, option: Option) -> Sequence[int]:
    """Numbers of workers that the option allows, from the least up; where it is any number, none of them is written out."""
    least = ask.least if option.least is None else option.least
    most = ask.most if option.most is None else option.most
    sizes = option.sizes or ask.sizes
    group = max(ask.group, 1)
    if sizes:
        return tuple(sorted({n for n in sizes if least <= n <= most and n % group == 0}))
    first = -(-max(least, 1) // group) * group
    return range(first, most + 1, group)


def choices(state: State, ask: Ask) -> list[Choice]:
    """The ask's options, worked out for the classes and queues of now."""
    return [
        Choice(
            index=index,
            option=option,
            name=option.name or (f"option {index + 1}" if len(ask.options) > 1 else "as asked"),
            sizes=legal_sizes(ask, option),
            ways=_ways(state, ask, option),
        )
        for index, option in enumerate(ask.options)
    ]


def _ways(state: State, ask: Ask, option: Option) -> list[Way]:
    if state.ways_version != state.version():
        state.ways, state.groups, state.ways_version = {}, {}, state.version()
    speeds = bool(ask.declared or ask.measured)
    key = (ask.queue, ask.each.cpus, ask.each.gpus, ask.group, speeds, option.flavors, *sorted(option.selector.items()))
    found = state.ways.get(key)
    if found is None:
        found = state.ways[key] = _found_ways(state, ask, option, speeds=speeds)
    return found


def _found_ways(state: State, ask: Ask, option: Option, *, speeds: bool) -> list[Way]:
    cluster = state.cluster
    bounded = state.accounts.bounded(ask.queue)
    kinds = state.catalog.matching(option.flavors, option.selector)
    quotas = frozenset(q.flavor for q in state.accounts.queues[ask.queue].quotas) if bounded else None
    ways = [
        Way(shape=cluster.shape(group, ask.each, ask.group), flavor=flavor, device=device)
        for flavor, device, group in _groups(state, kinds, quotas, speeds=speeds)
    ]
    if len(ways) > 1 and not bounded:
        # Unlike devices together: slower than the best of them, but room where no device alone has it.
        ways.append(Way(shape=cluster.shape(kinds, ask.each, ask.group), flavor=None, device=None))
    return sorted(ways, key=lambda way: _rank(option, way))


def _groups(state: State, kinds: frozenset[int], quotas: frozenset[str] | None, *, speeds: bool) -> list[Group]:
    """The classes by flavor if quotas bound them (then only those with one), and by device if speeds are known."""
    key = (kinds, quotas, speeds)
    found = state.groups.get(key)
    if found is None:
        flavor_of, known = state.catalog.flavor_of, state.catalog.kinds
        groups: dict[tuple[str | None, str | None], list[int]] = {}
        for kind in sorted(kinds):
            if quotas is None or flavor_of[kind] in quotas:
                of = (None if quotas is None else flavor_of[kind], known[kind].device if speeds else None)
                groups.setdefault(of, []).append(kind)
        found = state.groups[key] = [(flavor, device, frozenset(group)) for (flavor, device), group in groups.items()]
    return found


def _rank(option: Option, way: Way) -> tuple[int, bool]:
    named = option.flavors.index(way.flavor) if way.flavor in option.flavors else len(option.flavors)
    return named, way.flavor is None and way.device is None
