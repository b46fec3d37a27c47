"""What is known of the network, and how readings of probes change it.

A reading taken alone replaces what was known of its link; one taken beside others, or beside a job's traffic, is a lower
bound and only raises it. A change of less than a quarter is noise: it leaves the topology, and its version, as it is, so
that nobody plans anew for it. Every change says what it follows from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.topology import Change, Host, Link, Topology, Trunk, What

# A change by less is what two measurements of the same link differ by.
CHANGE = 1.25
# Below this a latency is the scheduler's of two hosts, not the link's.
_LATENCY_NOISE_S = 50e-6

End = tuple[NodeId, str]
LinkKey = tuple[NodeId, str, NodeId, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What `windows` windows of traffic in a row said of the links from `sources` to `targets` (none: from or to anyone).

    Together they carry `bandwidth` bytes/s, as seen on `edges` busy links: more (`up`) or less than was known.
    """

    what: What
    sources: tuple[End, ...]
    targets: tuple[End, ...]
    bandwidth: float
    edges: int
    up: bool = False
    windows: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """The network as known, links whose only readings were taken beside others, and what is suspected but not yet held.

    `changes`: what the last call changed, with its reasons.
    """

    topology: Topology = dataclasses.field(default_factory=lambda: Topology(hosts=()))
    beside: frozenset[LinkKey] = frozenset()
    suspicions: tuple[Suspicion, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one probe found of a link. `alone`: nothing else of ours was under way."""

    link: Link
    alone: bool


def key(link: Link) -> LinkKey:
    """What names a link."""
    return link.source, link.source_nic, link.target, link.target_nic


# -- readings ----------------------------------------------------------------------------------------------------------


def meet(known: Knowledge, hosts: Iterable[Host]) -> Knowledge:
    """`known` with these hosts and no others: what is known of NICs that are gone goes with them."""
    bandwidths = {(h.node, n.name, n.host): n.bandwidth for h in known.topology.hosts for n in h.nics}
    now = tuple(
        dataclasses.replace(
            host,
            nics=tuple(
                dataclasses.replace(n, bandwidth=bandwidths.get((host.node, n.name, n.host), n.bandwidth))
                for n in host.nics
            ),
        )
        for host in sorted(hosts, key=lambda h: h.node)
    )
    before = known.topology
    if now == before.hosts:
        return dataclasses.replace(known, changes=())
    ends = {(h.node, n.name, n.host) for h in now for n in h.nics}
    gone = {(h.node, n.name) for h in before.hosts for n in h.nics if (h.node, n.name, n.host) not in ends}
    links = tuple(k for k in before.links if not {(k.source, k.source_nic), (k.target, k.target_nic)} & gone)
    nodes = {h.node for h in now}
    trunks = tuple(t for t in before.trunks if nodes.issuperset((*t.sources, *t.targets)))
    topology = Topology(hosts=now, links=links, trunks=trunks, version=before.version + 1)
    beside = known.beside & {key(k) for k in links}
    return Knowledge(topology=topology, beside=beside)


def take(known: Knowledge, readings: Iterable[Reading]) -> Knowledge:
    """`known` with what probes measured."""
    links = {key(k): k for k in known.topology.links}
    beside, changes = set(known.beside), []
    for reading in readings:
        name = key(reading.link)
        before = links.get(name)
        now = reading.link if before is None else _taken(before, reading, first=name in beside)
        if reading.alone:
            beside.discard(name)
        elif before is None:
            beside.add(name)
        if now != before:
            links[name] = now
            evidence = "probed alone" if reading.alone else "probed beside others"
            changes.append(link_change(What.FOUND if before is None else What.LINK, before, now, evidence))
    return revised(dataclasses.replace(known, beside=frozenset(beside)), links, known.topology.trunks, changes)


def _taken(before: Link, reading: Reading, *, first: bool) -> Link:
    """`first`: no reading of this link was alone so far, so that this one counts whatever it says."""
    now = reading.link
    latency = before.latency_s
    if reading.alone and (first or _latency_changed(latency, now.latency_s)):
        latency = now.latency_s
    raises = now.bandwidth > before.bandwidth * CHANGE
    if raises or (reading.alone and (first or differs(before.bandwidth, now.bandwidth))):
        return dataclasses.replace(now, latency_s=latency)
    return dataclasses.replace(before, latency_s=latency)


def _latency_changed(before: float, now: float) -> bool:
    return abs(now - before) > max(_LATENCY_NOISE_S, before * (CHANGE - 1))


# -- revisions ---------------------------------------------------------------------------------------------------------


def differs(before: float | None, now: float | None) -> bool:
    """Whether two bandwidths differ by more than measurements of the same link do."""
    if before is None or now is None:
        return before is not now
    return max(before, now) > CHANGE * min(before, now)


def link_change(what: What, before: Link | None, now: Link, evidence: str) -> Change:
    """The change of one link."""
    return Change(
        what=what,
        sources=(now.source,),
        targets=(now.target,),
        nic=now.source_nic,
        before=before.bandwidth if before else None,
        after=now.bandwidth,
        evidence=evidence,
    )


def trunk_change(
    before: Trunk | None, now: Trunk | None, sources: tuple[NodeId, ...], targets: tuple[NodeId, ...], evidence: str
) -> Change:
    """The change of one trunk, found and gone included."""
    return Change(
        what=What.TRUNK,
        sources=sources,
        targets=targets,
        before=before.bandwidth if before else None,
        after=now.bandwidth if now else None,
        evidence=evidence,
    )


def revised(
    known: Knowledge, links: dict[LinkKey, Link], trunks: tuple[Trunk, ...], changes: Sequence[Change]
) -> Knowledge:
    """`known` with these links and trunks; the version goes up if there was any change."""
    if not changes:
        return dataclasses.replace(known, changes=())
    links = _behind_trunks(links, trunks, known.beside)
    trunks = tuple(_as_wide_as_its_links(t, links.values()) for t in trunks)
    before = known.topology
    was, old = _fastest(before.links), {key(k): k.bandwidth for k in before.links}
    now = _fastest(links.values())
    raised = _fastest(k for n, k in links.items() if k.bandwidth > old.get(n, 0.0))
    hosts = tuple(_host(h, was, now, raised) for h in before.hosts)
    ordered = tuple(links[name] for name in sorted(links))
    topology = Topology(
        hosts=hosts,
        links=ordered,
        trunks=tuple(sorted(trunks, key=lambda t: (t.sources, t.targets))),
        version=before.version + 1,
    )
    return dataclasses.replace(known, topology=topology, changes=tuple(changes))


def _behind_trunks(
    links: dict[LinkKey, Link], trunks: Iterable[Trunk], beside: Collection[LinkKey]
) -> dict[LinkKey, Link]:
    """Links measured only beside others that share their trunk: alone each would reach as much as the best of them."""
    result, fastest = dict(links), _fastest(links.values())
    for trunk in trunks:
        crossing = [n for n in links if n[0] in trunk.sources and n[2] in trunk.targets]
        alone = [links[n].bandwidth for n in crossing if n not in beside]
        for name in [n for n in crossing if n in beside and alone]:
            bound = min(trunk.bandwidth, max(alone), fastest[name[:2]], fastest[name[2:]])
            result[name] = dataclasses.replace(links[name], bandwidth=max(links[name].bandwidth, bound))
    return result


def _as_wide_as_its_links(trunk: Trunk, links: Iterable[Link]) -> Trunk:
    widest = max((k.bandwidth for k in links if k.source in trunk.sources and k.target in trunk.targets), default=0.0)
    return trunk if widest <= trunk.bandwidth else dataclasses.replace(trunk, bandwidth=widest)


def _host(host: Host, before: dict[End, float], now: dict[End, float], raised: dict[End, float]) -> Host:
    """A NIC carries what its fastest link carries, unless it has evidence of its own; a link proves what it carries."""
    nics = []
    for nic in host.nics:
        end = host.node, nic.name
        own = nic.bandwidth is not None and differs(nic.bandwidth, before.get(end))
        known = nic.bandwidth if own else now.get(end)
        bandwidth = max(known or 0.0, raised.get(end, 0.0)) or None
        nics.append(dataclasses.replace(nic, bandwidth=bandwidth))
    return dataclasses.replace(host, nics=tuple(nics))


def _fastest(links: Iterable[Link]) -> dict[End, float]:
    """The fastest link at each NIC, whichever way."""
    best: dict[End, float] = {}
    for link in links:
        for end in ((link.source, link.source_nic), (link.target, link.target_nic)):
            best[end] = max(best.get(end, 0.0), link.bandwidth)
    return best
