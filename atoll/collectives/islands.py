"""Which nodes are near one another: a tree of islands, found in measured bandwidths.

Average linkage (UPGMA: Sokal & Michener, "A statistical method for evaluating systematic relationships", 1958) over
bandwidths, with the median in place of the mean: the two clusters with the fastest links between them merge, again and
again, and what links of two clusters reach is the median over their pairs, so that one slow link splits no island. Of the
many clusters on the way only those are islands whose links inside are about twice (`GAP`) as fast as the links by which
they merge further: with measurements 30 % wrong either way that never invents a level, and it finds every level whose
links differ 3.6-fold or more.

- A pair counts with the slower of its two directions, since a reduction needs both; across a trunk with its share of it.
- A pair that nobody measured is no link, unless both nodes bear the same label `island`: then the label stands in, as
  it does where the gap is ambiguous. A node that was not measured at all says nothing against anybody.
- Clusters without links between them are children of a root without a bandwidth.

The result depends on the topology alone, not on the order in which it lists things.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from atoll.schema.ids import NodeId
from atoll.schema.topology import Topology, rate_text

LABEL = "island"
# Measurements within 30 % of the truth differ by a factor of 1.86 at most; two pairs on one trunk lose half each.
GAP = 1.9
# By how much a label moves the gap: what is between 1.3 and 2.7 is decided by the label where there is one.
_LEANING = math.sqrt(2.0)


class Why(enum.StrEnum):
    """What makes these nodes an island."""

    FASTER = "faster"
    LABELLED = "labelled"
    ALONE = "alone"
    WHOLE = "whole"
    APART = "apart"
    UNMEASURED = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why this is an island: bandwidths inside and across in bytes/s (None: not known), and the label that spoke."""

    why: Why
    inside: float | None = None
    across: float | None = None
    label: str = ""

    def __str__(self) -> str:
        match self.why:
            case Why.FASTER:
                return f"{rate_text(self.inside)} inside, {rate_text(self.across)} to the others"
            case Why.LABELLED:
                measured = (
                    f"; {rate_text(self.inside)} inside, {rate_text(self.across)} to the others" if self.inside else ""
                )
                return f"label {LABEL}={self.label}{measured}"
            case Why.ALONE:
                return f"no faster link than {rate_text(self.across)} to anyone" if self.across else "no link measured"
            case Why.WHOLE:
                return f"about {rate_text(self.inside)} between all of these" if self.inside else "one node"
            case Why.APART:
                return "no link was measured between these"
            case Why.UNMEASURED:
                return "nothing was measured yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Island:
    """Nodes near one another. Without `children` they are equally near; with them, each child is nearer in itself.

    `nodes` are all, those of the children included. `bandwidth` (bytes/s) and `latency_s` are those of the links between
    the children, or between the nodes where there are no children: medians; None without links.
    """

    nodes: tuple[NodeId, ...]
    children: tuple[Island, ...] = ()
    bandwidth: float | None = None
    latency_s: float | None = None
    reason: Reason

    def innermost(self) -> tuple[Island, ...]:
        """The islands that hold no others, in order: each node is in exactly one."""
        if not self.children:
            return (self,)
        return tuple(leaf for child in self.children for leaf in child.innermost())


def islands(topology: Topology, gap: float = GAP) -> Island:
    """The tree of islands of all nodes that `topology` names. A smaller `gap` finds what may be one, too."""
    return _Forest(topology, gap).tree()


def pair_bandwidths(topology: Topology) -> dict[tuple[NodeId, NodeId], float]:
    """What each measured pair (smaller name first) reaches: its fastest link, the slower way, less what trunks take."""
    ways: dict[tuple[NodeId, NodeId], float] = {}
    for link in topology.links:
        if link.source != link.target and link.bandwidth > 0:
            way = link.source, link.target
            ways[way] = max(ways.get(way, 0.0), link.bandwidth)
    for trunk in topology.trunks:
        flows = min(len(trunk.sources), len(trunk.targets))
        for way in itertools.product(trunk.sources, trunk.targets):
            if way in ways:
                ways[way] = min(ways[way], trunk.bandwidth / max(1, flows))
    pairs: dict[tuple[NodeId, NodeId], float] = {}
    for (a, b), bandwidth in ways.items():
        pair = (a, b) if a < b else (b, a)
        pairs[pair] = min(pairs.get(pair, math.inf), bandwidth)
    return pairs


@dataclass(slots=True)
class _Bond:
    """The pairs between two clusters: what the known ones reach, how many should be known, how many a label vouches for."""

    rates: list[float] = field(default_factory=list)
    wanted: int = 0
    labelled: int = 0

    def add(self, other: _Bond) -> None:
        self.rates = list(heapq.merge(self.rates, other.rates))
        self.wanted += other.wanted
        self.labelled += other.labelled

    @property
    def bandwidth(self) -> float:
        """The median; 0 where most pairs have no link."""
        return _median(self.rates) if self.rates and 2 * len(self.rates) >= self.wanted else 0.0


@dataclass(slots=True)
class _Cluster:
    """Nodes, the islands directly in it, and the pairs between those (None for a lone node)."""

    nodes: tuple[NodeId, ...]
    parts: tuple[_Cluster, ...] = ()
    level: _Bond | None = None


class _Forest:
    """The clustering of one topology."""

    def __init__(self, topology: Topology, gap: float) -> None:
        self._gap = gap
        named = {h.node for h in topology.hosts} | {n for k in topology.links for n in (k.source, k.target)}
        self._nodes = tuple(sorted(named))
        self._labels = {h.node: h.labels[LABEL] for h in topology.hosts if h.labels.get(LABEL)}
        self._pairs = pair_bandwidths(topology)
        self._measured = {n for pair in self._pairs for n in pair}
        self._latencies: dict[tuple[NodeId, NodeId], float] = {}
        for link in topology.links:
            pair = (link.source, link.target) if link.source < link.target else (link.target, link.source)
            self._latencies[pair] = min(self._latencies.get(pair, math.inf), link.latency_s)

    def tree(self) -> Island:
        clusters = self._merged()
        if len(clusters) == 1:
            return self._island(clusters[0], None)
        why = Why.APART if self._pairs else Why.UNMEASURED
        return self._assembled([self._island(c, 0.0) for c in clusters], Reason(why=why))

    # -- merging -------------------------------------------------------------------------------------------------------

    def _merged(self) -> list[_Cluster]:
        """Clusters that no link connects; each the root of its dendrogram."""
        clusters = {i: _Cluster(nodes=(n,)) for i, n in enumerate(self._nodes)}
        bonds = self._bonds()
        best = {i: self._nearest(i, bonds) for i in clusters}
        while len(clusters) > 1:
            # Of equally near ones those with the first names, so that the outcome is one.
            i = max(best, key=lambda c: (best[c][0], -c))
            height, j = best[i]
            if height <= 0.0:
                break
            self._join(clusters, bonds, i, j)
            del best[j]
            for c in [c for c in clusters if c == i or best[c][1] in {i, j} or bonds[c][i].bandwidth >= best[c][0]]:
                best[c] = self._nearest(c, bonds)
        return list(clusters.values())

    def _bonds(self) -> dict[int, dict[int, _Bond]]:
        fastest = max(self._pairs.values(), default=1.0)
        bonds: dict[int, dict[int, _Bond]] = {i: {} for i in range(len(self._nodes))}
        for (i, a), (j, b) in itertools.combinations(enumerate(self._nodes), 2):
            bonds[i][j] = self._bond(a, b, fastest)
            bonds[j][i] = self._bond(a, b, fastest)
        return bonds

    def _bond(self, a: NodeId, b: NodeId, fastest: float) -> _Bond:
        bandwidth = self._pairs.get((a, b))
        if bandwidth is not None:
            return _Bond([bandwidth], wanted=1)
        label = self._labels.get(a)
        if label is not None and label == self._labels.get(b):
            return _Bond([fastest], wanted=1, labelled=1)
        return _Bond(wanted=int(a in self._measured and b in self._measured))

    @staticmethod
    def _nearest(i: int, bonds: dict[int, dict[int, _Bond]]) -> tuple[float, int]:
        return max(((bond.bandwidth, j) for j, bond in bonds[i].items()), key=lambda b: (b[0], -b[1]), default=(0.0, i))

    def _join(self, clusters: dict[int, _Cluster], bonds: dict[int, dict[int, _Bond]], i: int, j: int) -> None:
        """Cluster `j` becomes part of `i`; which of the two stays an island in it is decided here."""
        first, second, level = clusters[i], clusters.pop(j), bonds[i].pop(j)
        nodes, height = tuple(sorted(first.nodes + second.nodes)), level.bandwidth
        parts: list[_Cluster] = []
        for part in (first, second):
            if part.level is None or part.level.bandwidth >= height * self._needed(part.nodes, nodes):
                parts.append(part)
            else:
                parts += part.parts
                level.add(part.level)
        clusters[i] = _Cluster(nodes=nodes, parts=tuple(parts), level=level)
        del bonds[j][i]
        for other, bond in bonds.pop(j).items():
            bonds[i][other].add(bond)
            del bonds[other][j]
            bonds[other][i].add(bond)

    # -- islands -------------------------------------------------------------------------------------------------------

    def _island(self, cluster: _Cluster, across: float | None) -> Island:
        """The island that `cluster` is; `across`: what links it to others (None: there are none)."""
        if cluster.level is None:
            return self._lone(cluster, across)
        parts = [self._island(part, cluster.level.bandwidth) for part in cluster.parts]
        return self._assembled(parts, self._reason(cluster.nodes, cluster.level, across))

    def _lone(self, cluster: _Cluster, across: float | None) -> Island:
        node = cluster.nodes[0]
        if across is None:
            return Island(nodes=cluster.nodes, reason=Reason(why=Why.WHOLE))
        why = Why.ALONE if node in self._measured else Why.UNMEASURED
        fastest = max((b for pair, b in self._pairs.items() if node in pair), default=None)
        return Island(nodes=cluster.nodes, reason=Reason(why=why, across=fastest))

    def _needed(self, part: tuple[NodeId, ...], whole: tuple[NodeId, ...]) -> float:
        """How many times faster inside a cluster must be: less where a label names just it, more where it is cut."""
        label = self._label_of(part)
        bearers = {n for n, other in self._labels.items() if other == label}
        if label is not None and bearers == set(part):
            return self._gap / _LEANING
        return self._gap * _LEANING if label is not None and bearers >= set(whole) else self._gap

    def _label_of(self, nodes: Iterable[NodeId]) -> str | None:
        """The one label that all of `nodes` bear."""
        labels = {self._labels.get(n) for n in nodes}
        return labels.pop() if len(labels) == 1 else None

    def _reason(self, nodes: tuple[NodeId, ...], level: _Bond, across: float | None) -> Reason:
        label, inside = self._label_of(nodes) or "", level.bandwidth
        if level.labelled == len(level.rates):
            return Reason(why=Why.LABELLED, label=label)
        if across is None:
            return Reason(why=Why.WHOLE, inside=inside)
        if level.labelled or inside < self._gap * across:
            return Reason(why=Why.LABELLED, inside=inside, across=across or None, label=label)
        return Reason(why=Why.FASTER, inside=inside, across=across or None)

    def _assembled(self, parts: list[Island], reason: Reason) -> Island:
        """`parts` as one island. Lone nodes side by side need no wrapping: they are its nodes."""
        parts = sorted(parts, key=lambda part: part.nodes)
        nodes = tuple(sorted(n for part in parts for n in part.nodes))
        flat = all(len(part.nodes) == 1 for part in parts)
        pairs = [
            (a, b) if a < b else (b, a)
            for one, two in itertools.combinations(parts, 2)
            for a, b in itertools.product(one.nodes, two.nodes)
        ]
        rates = sorted(self._pairs[p] for p in pairs if p in self._pairs)
        latencies = sorted(self._latencies[p] for p in pairs if p in self._latencies)
        return Island(
            nodes=nodes,
            children=() if flat else tuple(parts),
            bandwidth=_median(rates) if rates else None,
            latency_s=_median(latencies) if latencies else None,
            reason=reason,
        )


def _median(ordered: Sequence[float]) -> float:
    """Of two in the middle their geometric mean: rates differ by factors."""
    return math.sqrt(ordered[(len(ordered) - 1) // 2] * ordered[len(ordered) // 2])
