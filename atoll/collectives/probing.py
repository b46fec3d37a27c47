"""Who probes whom, and how pairs that share a trunk are told from pairs that do not.

Probes are two-sided and short, and a node is in one at a time. A *survey* of pairs that nobody measured runs as a
tournament (the circle method: each round pairs everybody once), many pairs side by side. What a pair reached beside others
is a lower bound: they may share a trunk. So islands found in a survey are *checked*: a few pairs between an island and the
nodes outside, first each alone, then all together. If together they reach less than 70 % of what they reach one by one,
they share a trunk of that bandwidth; hosts that cross by NICs of their own lose nothing. On a busy host pairs may miss each
other: a check that leaves slow pairs without a reason is made once more. Later probes run alone, the
oldest link first.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from atoll.collectives.islands import LABEL, Island, islands
from atoll.collectives.knowledge import End, Knowledge, LinkKey, differs, key, revised, trunk_change
from atoll.schema.ids import NodeId
from atoll.schema.topology import Host, Link, Nic, Observation, Topology, Trunk, rate_text

# Pairs that share nothing lose a few per cent to each other; two on one trunk lose half.
SHARED = 0.7
# Two pairs that share a trunk lose half each, less where they do not overlap all the time: worth a look from here on.
_SUSPECT = 1.4
# What pairs reach together above what one reaches alone, by not overlapping all the time.
_OVERLAP = 1.35
# More pairs tell no more of a trunk, and take longer one by one.
CHECK_PAIRS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A pair of NICs to probe; the first node by name dials."""

    source: NodeId
    source_nic: str
    target: NodeId
    target_nic: str

    @property
    def nodes(self) -> tuple[NodeId, NodeId]:
        """Both ends."""
        return self.source, self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Whether `inside` and `outside` share a trunk: these lanes, of disjoint nodes, alone and then together."""

    inside: tuple[NodeId, ...]
    outside: tuple[NodeId, ...]
    lanes: tuple[Lane, ...]

    @property
    def pair(self) -> frozenset[tuple[NodeId, ...]]:
        """Both sides, whichever is called the inside."""
        return frozenset((self.inside, self.outside))

    def parts(self, one: NodeId, two: NodeId) -> bool:
        """Whether it has them on different sides."""
        return (one in self.inside and two in self.outside) or (one in self.outside and two in self.inside)


def tournament(nodes: Collection[NodeId]) -> tuple[tuple[tuple[NodeId, NodeId], ...], ...]:
    """Rounds in which everybody meets everybody once, nobody twice in a round (the circle method, Kirkman 1847)."""
    seats: list[NodeId | None] = [*sorted(nodes)]
    if len(seats) % 2:
        seats.append(None)
    rounds = []
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        rounds.append(tuple(sorted((min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None)))
        seats.insert(1, seats.pop())
    return tuple(rounds)


def lanes(hosts: Iterable[Host]) -> tuple[Lane, ...]:
    """All pairs of NICs worth a probe, in the order of the tournament.

    NICs meet on the network that both are in; nodes without a common network meet by their first NICs, through routers.
    """
    known = {h.node: h for h in hosts if h.nics}
    return tuple(
        Lane(source=a, source_nic=one.name, target=b, target_nic=two.name)
        for pairs in tournament(known)
        for a, b in pairs
        for one, two in _meetings(known[a], known[b])
    )


def _meetings(a: Host, b: Host) -> list[tuple[Nic, Nic]]:
    common = [
        (one, two) for one, two in itertools.product(a.nics, b.nics) if one.host != two.host and _same_network(one, two)
    ]
    if common:
        return common
    return [] if a.nics[0].host == b.nics[0].host else [(a.nics[0], b.nics[0])]


def _same_network(one: Nic, two: Nic) -> bool:
    try:
        networks = [ipaddress.ip_interface(f"{nic.host}/{nic.prefix}").network for nic in (one, two)]
    except ValueError:  # a node that is known by name
        return False
    return networks[0] == networks[1]


def side_by_side(wanted: Iterable[Lane], free: Collection[NodeId], limit: int = 8) -> tuple[Lane, ...]:
    """As many of `wanted`, in order, as can run at once with each of the `free` nodes in one at most; `limit` at most."""
    taken: set[NodeId] = set()
    chosen: list[Lane] = []
    for lane in wanted:
        if len(chosen) < limit and all(n in free and n not in taken for n in lane.nodes):
            taken.update(lane.nodes)
            chosen.append(lane)
    return tuple(chosen)


def doubtful(known: Knowledge) -> tuple[tuple[Lane, bool], ...]:
    """Lanes that read much less than both of their NICs reach, with no trunk to blame; and whether never probed alone."""
    fastest: dict[End, float] = {}
    for link in known.topology.links:
        for end in ((link.source, link.source_nic), (link.target, link.target_nic)):
            fastest[end] = max(fastest.get(end, 0.0), link.bandwidth)
    found: dict[Lane, bool] = {}
    for link in known.topology.links:
        least = min(fastest[key(link)[:2]], fastest[key(link)[2:]])
        behind = any(link.source in t.sources and link.target in t.targets for t in known.topology.trunks)
        if link.bandwidth < SHARED * least and not behind:
            found[lane_of(link)] = found.get(lane_of(link), False) or key(link) in known.beside
    return tuple(found.items())


def at_worst(topology: Topology, crowded: Mapping[LinkKey, float]) -> Topology:
    """`topology` with what its links reached beside others, bytes/s, where that was less."""
    links = (
        dataclasses.replace(k, bandwidth=min(k.bandwidth, crowded.get(key(k), k.bandwidth))) for k in topology.links
    )
    return dataclasses.replace(topology, links=tuple(links))


def unexplained(known: Knowledge, check: Check, crowded: Mapping[LinkKey, float]) -> bool:
    """Whether a pair that `check` parts reads much less than its NICs reach, with no trunk known to blame."""
    slow = doubtful(dataclasses.replace(known, topology=at_worst(known.topology, crowded)))
    return any(check.parts(*w.nodes) for w, _ in slow)


def checks(topology: Topology) -> tuple[Check, ...]:
    """Where a trunk may hide: between each island and the nodes beside it in the island around both."""
    around = islands(topology, _SUSPECT)
    found = _checks(around, topology) + _labelled(around, topology)
    return tuple({c.pair: c for c in reversed(found)}.values())[::-1]


def _checks(around: Island, topology: Topology) -> list[Check]:
    found = []
    for child in around.children:
        outside = tuple(n for n in around.nodes if n not in child.nodes)
        crossing = _crossing(child.nodes, _in_turn(around, child), topology)
        if len(crossing) > 1:
            found.append(Check(inside=child.nodes, outside=outside, lanes=crossing))
        found += _checks(child, topology)
    return found


def _labelled(around: Island, topology: Topology) -> list[Check]:
    """Between nodes of one label and all others: where links alone show nothing, their owner may know."""
    labels = {h.node: h.labels.get(LABEL) for h in topology.hosts}
    groups = {label: [n for n in around.nodes if labels.get(n) == label] for label in labels.values() if label}
    found = []
    for _, group in sorted(groups.items()):
        outside = [n for n in around.nodes if n not in group]
        crossing = _crossing(group, outside, topology)
        if len(crossing) > 1:
            found.append(Check(inside=tuple(group), outside=tuple(outside), lanes=crossing))
    return found


def _in_turn(around: Island, child: Island) -> list[NodeId]:
    """The nodes outside `child`, one of each sibling after the other."""
    siblings = [s.nodes for s in around.children if s is not child]
    return [n for turn in itertools.zip_longest(*siblings) for n in turn if n is not None]


def _crossing(inside: Sequence[NodeId], outside: Sequence[NodeId], topology: Topology) -> tuple[Lane, ...]:
    best: dict[tuple[NodeId, NodeId], Link] = {}
    for link in topology.links:
        pair = link.source, link.target
        if link.source < link.target and (pair not in best or link.bandwidth > best[pair].bandwidth):
            best[pair] = link
    found: list[Lane] = []
    left = list(outside)
    for node in inside[:CHECK_PAIRS]:
        other = next((n for n in left if (min(node, n), max(node, n)) in best), None)
        if other is not None:
            found.append(lane_of(best[min(node, other), max(node, other)]))
            left.remove(other)
    return tuple(found)


def lane_of(link: Link | Observation) -> Lane:
    """The lane of a link, whichever way: the first node by name dials."""
    (a, one), (b, two) = sorted([(link.source, link.source_nic), (link.target, link.target_nic)])
    return Lane(source=a, source_nic=one, target=b, target_nic=two)


def check_together(known: Knowledge, check: Check, together: Iterable[Link]) -> Knowledge:
    """`known` with what the lanes of `check` reached at the same time, each way; what they reach alone is known."""
    reached, trunks, changes = list(together), list(known.topology.trunks), []
    alone = {key(k): k.bandwidth for k in known.topology.links}
    for sources, targets in ((check.inside, check.outside), (check.outside, check.inside)):
        crossing = [k for k in reached if k.source in sources and k.target in targets and key(k) in alone]
        if len(crossing) < 2:  # noqa: PLR2004 - one pair shares with nobody
            continue
        old = next((t for t in trunks if (t.sources, t.targets) == (sources, targets)), None)
        total, possible = sum(k.bandwidth for k in crossing), sum(alone[key(k)] for k in crossing)
        evidence = f"{len(crossing)} pairs together reach {rate_text(total)}, one by one {rate_text(possible)}"
        found, best = None, max(alone[key(k)] for k in crossing)
        if total < SHARED * possible:
            bandwidth = best if total < _OVERLAP * best else total
            found = Trunk(sources=sources, targets=targets, bandwidth=bandwidth)
        if differs(old.bandwidth if old else None, found.bandwidth if found else None):
            trunks = [t for t in trunks if t is not old] + ([found] if found else [])
            changes.append(trunk_change(old, found, sources, targets, evidence))
    return revised(known, {key(k): k for k in known.topology.links}, tuple(trunks), changes)
