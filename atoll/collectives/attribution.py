"""What real collectives say of the network: which link, NIC or trunk is slower, or faster, than was known.

Duration proves nothing, since back-pressure makes it equal on all ranks; bytes acknowledged while bytes were under way do.
An edge that stays below 60 % of what is known of its link is *slow*, unless its NICs or its trunk were near what they
carry: then it had its share. What the slow edges of a window have in common names the cause (as C4, Dong et al., 2024):
all edges between two sides: the trunk (a block of the matrix); all edges of a sending NIC: that NIC (a row); all edges to a
receiving NIC: that one (a column); else the link itself. An edge, or the edges of a trunk together, that carry a quarter
more than was thought possible prove that it is possible.

A finding must hold for two windows in a row, at about the same rate, before anything changes; a window that shows its
edges to be well clears it. Edges that carried little, or mostly waited for round trips, say nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from atoll.collectives.islands import islands
from atoll.collectives.knowledge import (
    CHANGE,
    End,
    Knowledge,
    LinkKey,
    Suspicion,
    key,
    link_change,
    revised,
    trunk_change,
)
from atoll.schema.ids import NodeId
from atoll.schema.topology import Change, Host, Link, Observation, Topology, Trunk, What, rate_text

# Below this share of what is known an edge is slow: two measurements 30 % wrong either way differ by 0.54.
SLOW = 0.6
# From this share on a NIC or trunk explains that its edges are slow.
FULL = 0.7
WINDOWS = 2
# A link that became slow carries about the same in both; what overloaded hosts feed it differs.
STEADY = 1.5
# Less, or in less time, is a matter of latency and of single segments.
MIN_BYTES = 128 * 1024
MIN_BUSY_S = 20e-3
# An edge that was busy for less than this share of the busiest one's time holds nobody up; its rate is that of short bursts.
WORTH = 0.1


@dataclass(frozen=True, slots=True)
class _Edge:
    """A busy edge: what it reached while busy, over the whole window, and in its best stretch, in bytes/s."""

    link: Link
    rate: float
    mean: float
    best: float = 0.0

    @property
    def reached(self) -> float:
        return max(self.rate, self.best)

    @property
    def slow(self) -> bool:
        return self.reached < SLOW * self.link.bandwidth

    @property
    def fast(self) -> bool:
        return self.rate > CHANGE * self.link.bandwidth

    @property
    def source(self) -> End:
        return self.link.source, self.link.source_nic

    @property
    def target(self) -> End:
        return self.link.target, self.link.target_nic


_Same = Callable[[_Edge], bool]


def fold(known: Knowledge, observations: Iterable[Observation]) -> Knowledge:
    """`known` after one window of traffic; `changes` says what the window decided. Pure: equal inputs, equal outcome."""
    window = _Window(known.topology, _edges(known.topology, tuple(observations)))
    held = {_name(s): s for s in known.suspicions}
    found = {_name(f): _held_on(held.get(_name(f)), f) for f in window.findings()}
    waiting = {name: s for name, s in held.items() if not window.clears(s)} | found
    sure = [s for _, s in sorted(waiting.items()) if s.windows >= WINDOWS]
    left = tuple(s for _, s in sorted(waiting.items()) if s.windows < WINDOWS)
    known = dataclasses.replace(known, suspicions=left, changes=())
    return _applied(known, sure) if sure else known


def _name(suspicion: Suspicion) -> tuple[str, bool, tuple[End, ...], tuple[End, ...]]:
    return suspicion.what, suspicion.up, suspicion.sources, suspicion.targets


def _held_on(before: Suspicion | None, now: Suspicion) -> Suspicion:
    """Rates are lower bounds of what the thing can do, so the best one counts."""
    rates = sorted((now.bandwidth, before.bandwidth)) if before is not None else [0.0, 0.0]
    if before is None or (not now.up and rates[1] > STEADY * rates[0]):
        return now
    return dataclasses.replace(
        now, bandwidth=max(before.bandwidth, now.bandwidth), windows=before.windows + 1, edges=now.edges
    )


def _edges(topology: Topology, observations: tuple[Observation, ...]) -> list[_Edge]:
    links = {key(k): k for k in topology.links}
    longest = max((o.busy_s for o in observations), default=0.0)
    found = []
    for o in observations:
        link = links.get((o.source, o.source_nic, o.target, o.target_nic))
        carrying = o.busy_s - o.messages * o.rtt_s
        if (
            link is None
            or o.bytes < MIN_BYTES
            or o.busy_s < max(MIN_BUSY_S, WORTH * longest)
            or carrying < o.busy_s / 2
        ):
            continue
        found.append(_Edge(link, o.bytes / o.busy_s, o.bytes / max(o.window_s, longest), o.best))
    return sorted(found, key=lambda e: key(e.link))


class _Window:
    """The busy edges of one window against what is known."""

    def __init__(self, topology: Topology, edges: list[_Edge]) -> None:
        self._edges = edges
        self._trunks = topology.trunks
        self._nics = {(h.node, n.name): n.bandwidth for h in topology.hosts for n in h.nics}
        self._sides = {k.link: _sides(topology, k.link) for k in edges} if any(k.slow for k in edges) else {}

    def findings(self) -> Iterator[Suspicion]:
        """Everything that this window says, each cause once."""
        yield from self._faster()
        slow = [e for e in self._edges if e.slow and not self._explained(e)]
        while slow:
            cause, covered = self._cause(slow[0])
            yield cause
            slow = [e for e in slow if e not in covered]

    def clears(self, suspicion: Suspicion) -> bool:
        """Whether an edge of it was busy and showed nothing of the kind."""
        mine = [e for e in self._edges if _concerns(suspicion, e)]
        return bool(mine) if suspicion.up else not all(e.slow for e in mine)

    def _explained(self, edge: _Edge) -> bool:
        """Whether the edge had its share of a NIC or trunk that carried about what it can."""
        groups = [(self._nics.get(edge.source), _from(edge.source)), (self._nics.get(edge.target), _into(edge.target))]
        groups += [(t.bandwidth, _between(t.sources, t.targets)) for t in self._trunks]
        return any(
            capacity is not None and same(edge) and self._load(edge, same) >= FULL * capacity
            for capacity, same in groups
        )

    def _load(self, edge: _Edge, same: _Same) -> float:
        """What the group of `edge` may have carried while it was busy.

        Others count as if they had all been busy at the same time: better to miss a slow NIC than to see one where there
        is none, for a plan would follow.
        """
        return edge.rate + sum(e.rate for e in self._edges if e is not edge and same(e))

    def _cause(self, edge: _Edge) -> tuple[Suspicion, list[_Edge]]:
        sides = self._sides[edge.link]
        if sides is not None:
            crossing = self._all_slow(_between(*sides))
            if len({e.source for e in crossing}) > 1 and len({e.target for e in crossing}) > 1:
                return _suspicion(What.TRUNK, *_trunk_ends(*sides), crossing), crossing
        if len(row := self._all_slow(_from(edge.source))) > 1:
            return _suspicion(What.SENDER, (edge.source,), (), row), row
        if len(column := self._all_slow(_into(edge.target))) > 1:
            return _suspicion(What.RECEIVER, (), (edge.target,), column), column
        return _suspicion(What.LINK, (edge.source,), (edge.target,), [edge]), [edge]

    def _all_slow(self, same: _Same) -> list[_Edge]:
        """The group, or nothing if one of it is well."""
        group = [e for e in self._edges if same(e)]
        return group if all(e.slow for e in group) else []

    def _faster(self) -> Iterator[Suspicion]:
        for edge in self._edges:
            if edge.fast:
                yield _suspicion(What.LINK, (edge.source,), (edge.target,), [edge], up=True)
        for end in sorted({end for e in self._edges for end in (e.source, e.target)}):
            yield from self._wider(self._nics.get(end), What.SENDER, (end,), ())
            yield from self._wider(self._nics.get(end), What.RECEIVER, (), (end,))
        for trunk in self._trunks:
            yield from self._wider(trunk.bandwidth, What.TRUNK, *_trunk_ends(trunk.sources, trunk.targets))

    def _wider(
        self, known: float | None, what: What, sources: tuple[End, ...], targets: tuple[End, ...]
    ) -> Iterator[Suspicion]:
        """What edges carried over the whole window, one beside or after the other, is no more than they can together."""
        probe = Suspicion(what=what, sources=sources, targets=targets, bandwidth=0.0, edges=0, up=True)
        group = [e for e in self._edges if _concerns(probe, e)]
        total = sum(e.mean for e in group)
        if known is not None and len(group) > 1 and total > CHANGE * known:
            yield dataclasses.replace(probe, bandwidth=total, edges=len(group))


def _suspicion(
    what: What, sources: tuple[End, ...], targets: tuple[End, ...], edges: Sequence[_Edge], *, up: bool = False
) -> Suspicion:
    rate = sum(e.rate if up else e.reached for e in edges)
    return Suspicion(what=what, sources=sources, targets=targets, bandwidth=rate, edges=len(edges), up=up)


def _trunk_ends(sources: Iterable[NodeId], targets: Iterable[NodeId]) -> tuple[tuple[End, ...], tuple[End, ...]]:
    """A trunk belongs to nodes, not to NICs."""
    return tuple((n, "") for n in sources), tuple((n, "") for n in targets)


def _from(end: End) -> _Same:
    return lambda e: e.source == end


def _into(end: End) -> _Same:
    return lambda e: e.target == end


def _between(sources: Sequence[NodeId], targets: Sequence[NodeId]) -> _Same:
    return lambda e: e.link.source in sources and e.link.target in targets


def _concerns(suspicion: Suspicion, edge: _Edge) -> bool:
    if suspicion.what is What.TRUNK:
        sides = [[n for n, _ in ends] for ends in (suspicion.sources, suspicion.targets)]
        return _between(*sides)(edge)
    return (not suspicion.sources or edge.source in suspicion.sources) and (
        not suspicion.targets or edge.target in suspicion.targets
    )


def _sides(topology: Topology, link: Link) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]] | None:
    """The two sets of nodes between which `link` is one of several: a known trunk's, or two islands side by side."""
    for trunk in topology.trunks:
        if link.source in trunk.sources and link.target in trunk.targets:
            return trunk.sources, trunk.targets
    around = islands(topology)
    while around.children:
        homes = [next((c for c in around.children if n in c.nodes), around) for n in (link.source, link.target)]
        if homes[0] is not homes[1]:
            return homes[0].nodes, homes[1].nodes
        around = homes[0]
    return None


# -- what follows ------------------------------------------------------------------------------------------------------


def _applied(known: Knowledge, sure: Iterable[Suspicion]) -> Knowledge:
    links = {key(k): k for k in known.topology.links}
    trunks, hosts = list(known.topology.trunks), known.topology.hosts
    changes: list[Change] = []
    for finding in sure:
        match finding.what:
            case What.TRUNK:
                changes.append(_trunk(finding, trunks))
            case What.SENDER | What.RECEIVER:
                hosts, change = _nic(finding, hosts)
                changes.append(change)
            case _:
                changes.append(_link(finding, links))
        if not finding.up:
            _limit(finding, links)
    topology = dataclasses.replace(known.topology, hosts=hosts)
    return revised(dataclasses.replace(known, topology=topology), links, tuple(trunks), changes)


def _evidence(finding: Suspicion) -> str:
    if finding.up:
        return f"real traffic carried {rate_text(finding.bandwidth)}"
    where = {What.SENDER: "from it ", What.RECEIVER: "to it ", What.TRUNK: "across it "}.get(finding.what)
    if where is None:
        return f"it alone was slow: {rate_text(finding.bandwidth)} while busy, its NICs had room"
    return f"all {finding.edges} busy links {where}were slow, together {rate_text(finding.bandwidth)}"


def _link(finding: Suspicion, links: dict[LinkKey, Link]) -> Change:
    name = (*finding.sources[0], *finding.targets[0])
    before = links[name]
    links[name] = dataclasses.replace(before, bandwidth=finding.bandwidth)
    return link_change(finding.what, before, links[name], _evidence(finding))


def _limit(finding: Suspicion, links: dict[LinkKey, Link]) -> None:
    """No link is faster than the NIC or trunk that it uses."""
    for name, link in links.items():
        if link.bandwidth > finding.bandwidth and _concerns(finding, _Edge(link, 0.0, 0.0)):
            links[name] = dataclasses.replace(link, bandwidth=finding.bandwidth)


def _trunk(finding: Suspicion, trunks: list[Trunk]) -> Change:
    sources, targets = (tuple(n for n, _ in ends) for ends in (finding.sources, finding.targets))
    before = next((t for t in trunks if (t.sources, t.targets) == (sources, targets)), None)
    now = Trunk(sources=sources, targets=targets, bandwidth=finding.bandwidth)
    trunks[:] = [t for t in trunks if t is not before] + [now]
    return trunk_change(before, now, sources, targets, _evidence(finding))


def _nic(finding: Suspicion, hosts: tuple[Host, ...]) -> tuple[tuple[Host, ...], Change]:
    node, name = (finding.sources or finding.targets)[0]
    before = next((n.bandwidth for h in hosts if h.node == node for n in h.nics if n.name == name), None)
    changed = tuple(
        dataclasses.replace(
            h, nics=tuple(dataclasses.replace(n, bandwidth=finding.bandwidth) if n.name == name else n for n in h.nics)
        )
        if h.node == node
        else h
        for h in hosts
    )
    change = Change(
        what=finding.what,
        sources=(node,) if finding.sources else (),
        targets=(node,) if finding.targets else (),
        nic=name,
        before=before,
        after=finding.bandwidth,
        evidence=_evidence(finding),
    )
    return changed, change


def merged(observations: Iterable[Observation]) -> list[Observation]:
    """Several windows of one link as one."""
    found: dict[LinkKey, Observation] = {}
    for o in observations:
        name = (o.source, o.source_nic, o.target, o.target_nic)
        before = found.get(name)
        found[name] = (
            o
            if before is None
            else Observation(
                source=o.source,
                source_nic=o.source_nic,
                target=o.target,
                target_nic=o.target_nic,
                bytes=before.bytes + o.bytes,
                busy_s=before.busy_s + o.busy_s,
                rtt_s=min(before.rtt_s, o.rtt_s),
                window_s=before.window_s + o.window_s,
                messages=before.messages + o.messages,
                best=max(before.best, o.best),
            )
        )
    return list(found.values())
