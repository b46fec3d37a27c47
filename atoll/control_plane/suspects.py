"""Lanes that members of a run could not use when they met, and whether they are well again.

A lane on which a pair should have met and did not is *suspect*: members are not told of it while the pair has another, so
that nobody waits for it at the next meeting, and it is probed every few seconds, with a short limit. A dead lane carries
nothing, so that asking it costs a working node nothing; after two good probes in a row it counts again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from atoll.collectives.fabric import best_links
from atoll.collectives.knowledge import CHANGE
from atoll.collectives.probing import Lane, lane_of
from atoll.schema.ids import NodeId, RunId
from atoll.schema.topology import Detour, Link, Topology, Trunk

# Members of a larger run are told the best link of each pair only: it goes into the journal with their epoch.
ALL_LINKS = 32
# Soon enough that a cut of seconds costs a run little; each try may hold a node's prober for the limit.
ASK_S = 4.0
# A kernel that can be reached answers at once; the burst takes some hundredths of a second.
SUSPECT_LIMIT_S = 1.0
# One answer may fall into a gap of a link that comes and goes.
GOOD = 2
# What is measured beside a job's traffic is a lower bound: a lane that carries this share of what it did is well.
WELL = 0.3


@dataclass(slots=True)
class _Suspect:
    before: float
    asked_at: float
    good: int = 0


class Suspects:
    """All of a cluster."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, _Suspect] = {}
        # Told by members, and well again, since last taken.
        self._detours: list[tuple[RunId, int, Lane]] = []
        self._well: set[Lane] = set()

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._lanes

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, lane: Lane, before: float, clock: float) -> bool:
        """`lane`, which carried `before` bytes/s, did not answer. False where that was known."""
        if lane in self._lanes:
            return False
        self._lanes[lane] = _Suspect(before, clock)
        return True

    def keep(self, lanes: Collection[Lane]) -> None:
        """Others have no NICs any more."""
        self._lanes = {lane: s for lane, s in self._lanes.items() if lane in lanes}

    def due(self, clock: float, free: Collection[NodeId]) -> Lane | None:
        """The lane to be asked now, if any: the one that waited longest."""
        ready = [
            (s.asked_at, lane.source, lane.target, lane)
            for lane, s in self._lanes.items()
            if clock - s.asked_at >= ASK_S and all(n in free for n in lane.nodes)
        ]
        return min(ready, key=lambda one: one[:3])[3] if ready else None

    def asked(self, lane: Lane, clock: float) -> None:
        """Its probe begins."""
        self._lanes[lane].asked_at = clock

    def probed(self, lane: Lane, links: Iterable[Link]) -> bool:
        """Its probe has ended with `links`, or none. True when it is well again, and no suspect any more."""
        suspect = self._lanes.get(lane)
        if suspect is None:
            return False
        found = [k.bandwidth for k in links]
        suspect.good = suspect.good + 1 if found and min(found) >= WELL * suspect.before else 0
        if suspect.good < GOOD:
            return False
        del self._lanes[lane]
        self._well.add(lane)
        return True

    def met(self, run: RunId, epoch: int, detours: Iterable[Detour], topology: Topology, clock: float) -> bool:
        """Members of a run met by other NICs than they should have. True where a lane is suspect now that was not."""
        news = False
        for link in (k for d in detours for k in avoided(d, topology)):
            lane = lane_of(link)
            self._detours.append((run, epoch, lane))
            self._well.discard(lane)
            news = self.add(lane, link.bandwidth, clock) or news
        return news

    def take_detours(self) -> list[tuple[RunId, int, Lane]]:
        """(run, epoch, lane) of what `met` was told since the last call."""
        taken, self._detours = self._detours, []
        return taken

    def take_well(self) -> set[Lane]:
        """Those that turned out to be well since the last call."""
        taken, self._well = self._well, set()
        return taken

    def without(self, links: Collection[Link]) -> tuple[Link, ...]:
        """`links` without those of suspects whose pair has others."""
        well = {(k.source, k.target) for k in links if lane_of(k) not in self._lanes}
        return tuple(k for k in links if lane_of(k) not in self._lanes or (k.source, k.target) not in well)


def avoided(detour: Detour, topology: Topology) -> list[Link]:
    """The links on which that pair would have met, had they answered: those better than the one that it met on."""
    ends = (detour.source, detour.target)
    links = [k for k in topology.links if (k.source, k.target) == ends]
    met = next((k for k in links if (k.source_nic, k.target_nic) == (detour.source_nic, detour.target_nic)), None)
    return [k for k in links if met is not None and k.bandwidth > met.bandwidth * CHANGE]


def told_of(whole: Topology, nodes: Collection[NodeId], suspects: Suspects) -> Topology | None:
    """What members on `nodes` are told of the network among them, or None while that is nothing."""
    links = suspects.without([k for k in whole.links if k.source in nodes and k.target in nodes])
    if not links:
        return None
    if len(nodes) > ALL_LINKS:
        links = tuple(best_links(dataclasses.replace(whole, links=links)).values())
    return Topology(
        hosts=tuple(h for h in whole.hosts if h.node in nodes),
        links=links,
        trunks=tuple(t for t in (_within(t, nodes) for t in whole.trunks) if t is not None),
        version=whole.version,
    )


def _within(trunk: Trunk, nodes: Collection[NodeId]) -> Trunk | None:
    sources, targets = (tuple(n for n in side if n in nodes) for side in (trunk.sources, trunk.targets))
    return Trunk(sources=sources, targets=targets, bandwidth=trunk.bandwidth) if sources and targets else None
