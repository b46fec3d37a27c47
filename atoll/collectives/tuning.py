"""Plans follow the links as they are: windows of traffic, told to all, folded by all, and when what they show takes effect.

All ranks call the same operations in the same order, so all count the same windows without a word. At the end of each the
ranks exchange what their links carried; what that shows (`attribution`) changes the network for all in the same way. Its
plans are used from the next window but one: by then the exchange has long been over, and nobody waits for it.

New plans are on trial: if nothing more was found for some windows, and these are not faster than the one that brought the
first of the new plans, it was not the network that was slow, and what was thought before holds again.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll.collectives.attribution import MIN_BYTES, fold
from atoll.collectives.fabric import best_links
from atoll.collectives.knowledge import Knowledge
from atoll.collectives.network import Network, network_on
from atoll.collectives.planner import Planner
from atoll.collectives.telemetry import Trace
from atoll.schema.ids import NodeId
from atoll.schema.topology import Change, Observation, Topology

# A window has at least so many operations, and as many bytes as keep the slowest link busy for so long where half of the
# ranks cross at once. Links of all speeds are measured well by it, a slow one is known after some steps of a small model,
# and the exchange of a few hundred bytes is about a hundredth of what the window itself takes.
WINDOW_OPERATIONS = 2
WINDOW_BUSY_S = 0.08
# More teaches nothing more of the fastest links.
WINDOW_BYTES = 16 << 20
# While operations take about what was predicted, no link is slower or faster than was thought, whatever it looks like.
AS_PLANNED = (0.8, 1.25)
# What new plans must bring, or they go; and for how many windows nothing is concluded after they went.
WORTH = 1.05
# One until they are in use, two for what they show to be sure, two more: one cause may hide behind another.
TRIAL_WINDOWS = 5
DISTRUST_WINDOWS = 16
# Smaller operations are ruled by latency: they are not counted.
COUNTED_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one rank tells the others of a window: see `Tuning.pace` and `Tuning.rate`, and what its links carried."""

    pace: float | None
    observations: tuple[Observation, ...]
    rate: float | None = None


class Tuning:
    """What one rank knows of the network, window by window. Counting happens on the caller's thread, the rest on the loop's.

    `changes`: all that was changed so far, with reasons. `windows`: how many are over.
    """

    def __init__(self, network: Network, coded: Mapping[str, float]) -> None:
        self.changes: list[Change] = []
        self._network, self._coded = network, coded
        self._knowledge = Knowledge(topology=in_use(network.topology))
        self._planners = {0: Planner(network.fabric, network.groups, coded=coded)}
        # The generation of each operation that has not asked for plans, oldest first, and of those that have. Behind a slow
        # link they may be many windows' worth.
        self._counted: deque[int] = deque()
        self._asked: Counter[int] = Counter()
        self._told = 0
        self._trial: _Trial | None = None
        self._distrusted = 0
        self._took_bytes = 0
        # As the epoch began, whatever is learned later: all ranks must count the same windows.
        self._window_bytes = window_bytes(self._knowledge.topology, len(network.nodes))
        self._operations, self._bytes = 0, 0
        self._took_s, self._expected_s = 0.0, 0.0
        self.windows = 0

    @property
    def network(self) -> Network:
        """As known now."""
        return self._network

    @property
    def newest(self) -> Planner:
        """The planner of the network as known now."""
        return self._planners[self._told]

    # -- on the caller's thread --------------------------------------------------------------------------------------

    def count(self, size_bytes: int) -> int:
        """An operation of `size_bytes` begins; returns by which generation of plans."""
        if size_bytes >= COUNTED_BYTES:
            self._operations += 1
            self._bytes += size_bytes
        generation = max(0, self.windows - 1)
        if self._network.topology.links:  # else no window ever ends
            self._counted.append(generation)
        return generation

    def window_ends(self) -> bool:
        """True where a window is over with this operation: the caller then has the ranks exchange observations."""
        enough = self._operations >= WINDOW_OPERATIONS and self._bytes >= self._window_bytes
        if not enough or not self._network.topology.links:
            return False
        self._operations, self._bytes = 0, 0
        self.windows += 1
        return True

    # -- on the loop's thread ----------------------------------------------------------------------------------------

    def planner(self, generation: int) -> Planner:
        """The planner of a generation, once for each operation of it; its window must have been told."""
        self._asked[generation] += 1
        return self._planners[generation]

    def took(self, trace: Trace) -> None:
        """An operation is over."""
        if trace.expected_s is not None and trace.ended_s is not None:
            self._expected_s += trace.expected_s
            self._took_s += trace.ended_s - trace.planned_s
            self._took_bytes += trace.size_bytes

    def said(self, observations: tuple[Observation, ...]) -> Told:
        """What this rank has to tell since it was last asked.

        `pace`: how long its operations took against what their plans promised; `rate`: bytes of theirs a second.
        """
        pace = self._took_s / self._expected_s if self._expected_s else None
        rate = self._took_bytes / self._took_s if self._took_s else None
        self._took_s, self._expected_s, self._took_bytes = 0.0, 0.0, 0
        return Told(pace=pace, rate=rate, observations=observations)

    def told(self, said: Sequence[Told]) -> bool:
        """What all ranks saw in one window; True where it was not as planned, so that it says something of links."""
        # Who comes last waits for nobody: its time is the operation's.
        pace = min((s.pace for s in said if s.pace is not None), default=1.0)
        rate = max((s.rate for s in said if s.rate is not None), default=0.0)
        telling = not AS_PLANNED[0] <= pace <= AS_PLANNED[1]
        planner = self._learned(said, rate) if telling else None
        if planner is None:
            planner = self._tried(rate)
        self._told += 1
        self._planners[self._told] = planner or self._planners[self._told - 1]
        self._forget()
        return telling

    def _forget(self) -> None:
        """What nobody will ask for any more: the windows that are over are those told here or more."""
        while self._counted and self._asked[self._counted[0]] > 0:
            self._asked[self._counted.popleft()] -= 1
        self._asked = +self._asked
        oldest = min(self._counted[0] if self._counted else self._told, self._told - 1)
        for generation in [g for g in self._planners if g < oldest]:
            del self._planners[generation]

    def _learned(self, said: Sequence[Told], rate: float) -> Planner | None:
        """The planner for what the window shows, where that is new."""
        if self._distrusted > 0:
            self._distrusted -= 1
            return None
        before, known = self._network, self._knowledge
        observations = tuple(o for s in said for o in s.observations)
        self._knowledge = fold(known, fairly(known.topology, observations))
        if self._knowledge.topology.version == known.topology.version:
            return None
        self._network = network_on(before.nodes, self._knowledge.topology)
        if self._trial is None:
            self._trial = _Trial(
                network=before,
                knowledge=known,
                planner=self._planners[self._told],
                rate=rate,
                changes=len(self.changes),
            )
        self._trial.windows = TRIAL_WINDOWS
        self.changes.extend(self._knowledge.changes)
        self._knowledge = dataclasses.replace(self._knowledge, changes=())
        return Planner(self._network.fabric, self._network.groups, coded=self._coded)

    def _tried(self, rate: float) -> Planner | None:
        """The planner to go back to, where the new ones brought nothing."""
        trial = self._trial
        if trial is None:
            return None
        if trial.windows > 0:
            trial.windows -= 1
            return None
        self._trial = None
        if rate >= WORTH * trial.rate:
            return None
        self._network = trial.network
        self._knowledge = dataclasses.replace(trial.knowledge, suspicions=())
        self._distrusted = DISTRUST_WINDOWS
        del self.changes[trial.changes :]
        return trial.planner


@dataclass(slots=True, kw_only=True)
class _Trial:
    """What was before new plans. They are judged after `windows` more windows."""

    network: Network
    knowledge: Knowledge
    planner: Planner
    rate: float
    changes: int
    windows: int = 0


def window_bytes(topology: Topology, ranks: int) -> int:
    """How many bytes of operations make a window on these links."""
    slowest = min((k.bandwidth for k in topology.links), default=math.inf)
    return round(min(WINDOW_BYTES, max(MIN_BYTES * ranks, WINDOW_BUSY_S * slowest * ranks / 2)))


def in_use(topology: Topology) -> Topology:
    """The links by which the members of an epoch have met: when one of these turns slow, its pair has no other."""
    best = best_links(topology)
    return dataclasses.replace(topology, links=tuple(k for k in topology.links if best[k.source, k.target] == k))


def fairly(topology: Topology, observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """The observations without what slowed all links alike.

    Hosts whose processors are overloaded feed every link too slowly; no plan avoids that, and a plan must not follow from
    it. What the usual link reaches of what is known of it, or its NICs together of theirs, counts as the whole. Where
    fewer than half of the hosts were seen sending, nobody knows what is usual.
    """
    if 2 * len({o.source for o in observations}) < len(topology.hosts):
        return tuple(observations)
    shares = sorted(_shares(topology, observations))
    usual = shares[len(shares) // 2] if shares else 1.0
    if not 0.0 < usual < 1.0:
        return tuple(observations)
    return tuple(dataclasses.replace(o, busy_s=o.busy_s * usual, best=o.best / usual) for o in observations)


def _shares(topology: Topology, observations: Sequence[Observation]) -> list[float]:
    """For each observed link: its rate, or that of all from its NIC or to it, as a share of what is known."""
    links = {(k.source, k.source_nic, k.target, k.target_nic): k.bandwidth for k in topology.links}
    nics = {(h.node, n.name): n.bandwidth for h in topology.hosts for n in h.nics if n.bandwidth}
    nics |= {
        (h.node, n.name): _fastest(topology, h.node, n.name) for h in topology.hosts for n in h.nics if not n.bandwidth
    }
    seen = [o for o in observations if o.busy_s > 0 and (o.source, o.source_nic, o.target, o.target_nic) in links]
    out: defaultdict[tuple[NodeId, str], float] = defaultdict(float)
    into: defaultdict[tuple[NodeId, str], float] = defaultdict(float)
    for o in seen:
        out[o.source, o.source_nic] += o.bytes / o.busy_s
        into[o.target, o.target_nic] += o.bytes / o.busy_s
    trunks = [
        (t, sum(o.bytes / o.busy_s for o in seen if o.source in t.sources and o.target in t.targets) / t.bandwidth)
        for t in topology.trunks
    ]
    return [
        max(
            o.bytes / o.busy_s / links[o.source, o.source_nic, o.target, o.target_nic],
            out[o.source, o.source_nic] / nics.get((o.source, o.source_nic), math.inf),
            into[o.target, o.target_nic] / nics.get((o.target, o.target_nic), math.inf),
            *(share for t, share in trunks if o.source in t.sources and o.target in t.targets),
        )
        for o in seen
    ]


def _fastest(topology: Topology, node: NodeId, nic: str) -> float:
    ends = [k.bandwidth for k in topology.links if (node, nic) in {(k.source, k.source_nic), (k.target, k.target_nic)}]
    return max(ends, default=math.inf)
