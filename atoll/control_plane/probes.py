"""Which nodes probe one another, when; and what is known of the network between them.

One *job* is under way at a time: a survey of pairs that nobody measured (many pairs side by side, each node in one), the
check of one suspected trunk (its pairs one by one, then together), or one pair whose last reading is old. A node that
works for a run is probed for 1 % of its time at most, and what it shows beside that work is a lower bound only. Nothing
here is journaled: after a restart agents say their last results again, and what they do not know is measured.

Times are those of the core's clock (`clock`), but `at`, which people read, in Unix seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from atoll.collectives.attribution import fold, merged
from atoll.collectives.islands import Island, islands
from atoll.collectives.knowledge import Knowledge, LinkKey, Reading, key, meet, take
from atoll.collectives.probing import (
    Check,
    Lane,
    at_worst,
    check_together,
    checks,
    doubtful,
    lane_of,
    lanes,
    side_by_side,
    unexplained,
)
from atoll.control_plane.suspects import SUSPECT_LIMIT_S, Suspects, told_of
from atoll.fault.slow_links import RESTORED
from atoll.schema.ids import NodeId, RunId
from atoll.schema.messages import AgentHello, PeerProbed, ProbePeer
from atoll.schema.topology import Change, Detour, Door, Host, Link, Observation, Topology, What

# Agents that come together are surveyed together.
SETTLE_S = 1.0
# A network changes rarely, and links that carry a job's traffic tell by themselves.
REFRESH_S = 300.0
# A pair that did not meet may be on networks that are not joined: asked again, now and then.
RETRY_S = 120.0
# Trunks are asked after as seldom as they change; their checks are the longest probes.
RECHECK_S = 1800.0
# So many doubtful readings are cleared up, one by one, before trunks are looked for; more than that point to trunks.
DOUBTS_FIRST = 64
# A link that reads slow twice in a row is slow.
DOUBTS = 2
BUSY_SHARE = 0.01
# Long enough to be measured; several pairs have to overlap for most of a check.
BURST_S, CHECK_BURST_S = 0.03, 0.4
# What an agent may take for one probe, and how much later its answer is given up.
LIMIT_S, ANSWER_S = 5.0, 3.0
# How often to look for something to do while there is nothing.
LOOK_S = 0.5
# Traffic that reaches this share of what is known of a link confirms it.
FRESH = 0.8
# The words of all trainers of a collective on the same window come within this time of the first, and are taken together.
# Two windows of a small model at a slow link are a second apart.
WINDOW_S = 0.3
# A link on which traffic was slow carries none from then on, as plans go around it: it is asked soon whether it is well.
SLOW_AGAIN_S = 20.0


@dataclass(slots=True)
class _Job:
    """Probes under way. `answers` of `check` are taken together."""

    waiting: dict[str, Lane]
    until: float
    check: Check | None = None
    answers: list[Link] = field(default_factory=list)


@dataclass(slots=True)
class _Site:
    """A node's NICs and doors, and when it may be probed again while it works."""

    host: Host
    doors: dict[str, Door]
    ready_at: float
    attached: bool = True
    busy_until: float = 0.0


class Probes:
    """The network as known, and the probes under way. All times are handed in."""

    def __init__(self) -> None:
        self.known = Knowledge()
        self.measured: dict[LinkKey, float] = {}
        self.problems: dict[tuple[NodeId, NodeId], str] = {}
        self.changed = False
        # False while surveys, checks and second looks are due; old links that are measured again do not count.
        self.settled = True
        self._sites: dict[NodeId, _Site] = {}
        self._job: _Job | None = None
        self._count = 0
        self._tried: dict[Lane, float] = {}
        self._checked: dict[frozenset[tuple[NodeId, ...]], float] = {}
        self._repeated: set[frozenset[tuple[NodeId, ...]]] = set()
        self._check: tuple[Check, list[Lane]] | None = None
        self._lanes: tuple[Lane, ...] = ()
        self._seen: list[Observation] = []
        self._window_at = 0.0
        self._idle_until = 0.0
        # What agents told of links whose other end is not here yet.
        self._claims: dict[LinkKey, tuple[Reading, float]] = {}
        self._doubted: tuple[Knowledge, tuple[tuple[Lane, bool], ...]] = (self.known, ())
        self._cleared: dict[Lane, list[float]] = {}
        # What surveys found beside others, until a check has told why.
        self._crowded: dict[LinkKey, float] = {}
        # Links on which traffic was slow, and what they carried before.
        self._slowed: dict[LinkKey, float] = {}
        self.suspects, self._asked_ill = Suspects(), False
        self._looked: tuple[tuple[int, int], tuple[Check, ...]] = ((-1, 0), ())
        self._tree: tuple[Topology | None, Island] = (None, islands(Topology(hosts=())))

    # -- facts -------------------------------------------------------------------------------------------------------

    def attached(self, hello: AgentHello, labels: dict[str, str], *, clock: float, now: float) -> None:
        """An agent is here, with NICs, doors, and results of its own that may be news."""
        if not hello.nics:
            return
        host = Host(node=hello.node, nics=hello.nics, labels=labels)
        site = _Site(host=host, doors={d.nic: d for d in hello.doors}, ready_at=clock + SETTLE_S)
        before = self._sites.get(hello.node)
        if before is not None:
            site.busy_until = before.busy_until
        self._sites[hello.node] = site
        self._idle_until, self.settled = 0.0, False
        for fact in hello.probes:
            readings = [Reading(link=k, alone=not fact.beside) for k in fact.links]
            self._claims |= {key(reading.link): (reading, fact.at) for reading in readings}
        self._meet()
        self._believe(clock, now)

    def detached(self, node: NodeId) -> None:
        """Its stream ended: what is known of it stays, but nobody probes it."""
        if node in self._sites:
            self._sites[node].attached = False

    def labelled(self, node: NodeId, labels: dict[str, str]) -> None:
        """Ray listed the node with these labels."""
        site = self._sites.get(node)
        if site is not None and site.host.labels != labels:
            site.host = Host(node=node, nics=site.host.nics, labels=labels)
            self._meet()

    def lost(self, node: NodeId) -> None:
        """The node is gone, and its links with it."""
        if self._sites.pop(node, None) is not None:
            self._meet()

    def probed(self, fact: PeerProbed, *, clock: float, busy: Collection[NodeId]) -> list[Change]:
        """A probe has ended. Returns what that changed, if people should know."""
        job = self._job
        lane = job.waiting.pop(fact.request, None) if job is not None else None
        if job is None or lane is None:
            return []
        better: list[Change] = []
        for node in lane.nodes:
            if node in busy and node in self._sites and (fact.links or lane not in self.suspects):
                self._sites[node].busy_until = clock + fact.seconds / BUSY_SHARE
        if self.suspects.probed(lane, fact.links):
            self._revise()
        self._note_problem(lane, fact)
        if job.check is not None:
            job.answers += fact.links
        else:
            # A job may have begun meanwhile.
            alone = not fact.beside and not self._beside(lane, busy)
            here = [k for k in fact.links if self._joins(k)]
            slow = {key(k) for k in self._slow_links()}
            self._take([Reading(link=k, alone=alone) for k in here], at=fact.at)
            better = self._better(slow)
            if fact.beside and not any(n in busy for n in lane.nodes):
                self._crowded |= {key(k): k.bandwidth for k in here}
        return better if job.waiting else better + self._finish(clock)

    def _better(self, slow: Collection[LinkKey]) -> list[Change]:
        """What the last readings changed of links that traffic had found slow: whoever was told of that is told of this."""
        nodes = {(name[0], name[2]) for name in slow}
        return [c for c in self.known.changes if (c.sources[:1] + c.targets[:1]) in nodes and c.what is What.LINK]

    def observed(self, observations: Iterable[Observation], *, clock: float) -> None:
        """A trainer told of its links; taken in with what others say at the same time."""
        if not self._seen:
            self._window_at = clock
        self._seen += observations

    def met(self, run: RunId, epoch: int, detours: Iterable[Detour], *, clock: float) -> None:
        """Members of a run met around links that should have carried them: these are suspect."""
        if self.suspects.met(run, epoch, detours, self.known.topology, clock):
            self._revise()

    def tick(
        self, *, clock: float, now: float, busy: Collection[NodeId]
    ) -> tuple[list[Change], list[tuple[NodeId, ProbePeer]]]:
        """What real traffic changed, and which probes begin now."""
        changes = self._fold(clock, now)
        if self._job is not None:
            if clock < self._job.until:
                return changes, []
            changes += self._finish(clock)
        if clock < self._idle_until:
            return changes, []
        free = {n for n, s in self._sites.items() if self._free(n, s, clock, busy)}
        ill = self.suspects.due(clock, [n for n, s in self._sites.items() if s.attached])
        # Turn about: while much of a network is cut there is always one to ask, and others wait for their first probe.
        self._asked_ill = ill is not None and not self._asked_ill
        orders = self._next(free, clock, busy) if len(free) > 1 and not self._asked_ill else []
        if ill is not None and not orders:
            self.suspects.asked(ill, clock)
            return changes, self._begin((ill,), clock, busy, limit_s=SUSPECT_LIMIT_S)
        self._idle_until = clock if orders else clock + LOOK_S
        return changes, orders

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def tree(self) -> Island:
        """The islands."""
        if self._tree[0] is not self.known.topology:
            self._tree = (self.known.topology, islands(self.known.topology))
        return self._tree[1]

    def unmeasured(self) -> int:
        """How many pairs of nodes still wait for their first probe."""
        return len({frozenset(w.nodes) for w in self._lanes if w not in self._tried and not self._is_known(w)})

    def settling(self, nodes: Collection[NodeId]) -> bool:
        """Whether what is known of the network among `nodes` is about to become better."""
        return not self.settled and any(set(w.nodes).issubset(nodes) for w in self._lanes)

    def part(self, nodes: Collection[NodeId]) -> Topology | None:
        """What is known of the network among `nodes`, or None while that is nothing."""
        return told_of(self.known.topology, nodes, self.suspects)

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _free(self, node: NodeId, site: _Site, clock: float, busy: Collection[NodeId]) -> bool:
        return site.attached and bool(site.doors) and clock >= (site.busy_until if node in busy else site.ready_at)

    def _next(self, free: Collection[NodeId], clock: float, busy: Collection[NodeId]) -> list[tuple[NodeId, ProbePeer]]:
        new = [w for w in self._lanes if not self._is_known(w) and clock - self._tried.get(w, -RETRY_S) >= RETRY_S]
        survey = side_by_side(new, free)
        self.settled = False
        if survey:
            return self._begin(survey, clock, busy)
        idle = set(free) - set(busy)
        doubts = self._doubts(clock)
        early = side_by_side([w for w, first in doubts if first], idle, 1) if len(doubts) <= DOUBTS_FIRST else ()
        orders = [] if early else self._next_of_check(idle, clock, busy)
        if orders:
            return orders
        doubted = early or side_by_side([w for w, _ in doubts], idle, 1)
        if doubted:
            self._cleared.setdefault(doubted[0], []).append(clock)
            return self._begin(doubted, clock, busy)
        self.settled = True
        old = [w for w in self._lanes if clock - self._tried.get(w, -REFRESH_S) >= self._lasts(w) and self._is_known(w)]
        oldest = side_by_side(sorted(old, key=lambda w: self._tried.get(w, -REFRESH_S)), free)[:1]
        return self._begin(oldest, clock, busy) if oldest else []

    def _lasts(self, lane: Lane) -> float:
        """For how long a reading of it is believed."""
        return SLOW_AGAIN_S if any(lane_of(k) == lane for k in self._slow_links()) else REFRESH_S

    def _slow_links(self) -> list[Link]:
        """Links that were found slow by traffic and are not known to be well again."""
        if self._slowed:
            found = [k for k in self.known.topology.links if k.bandwidth < RESTORED * self._slowed.get(key(k), 0.0)]
            self._slowed = {key(k): self._slowed[key(k)] for k in found}
            return found
        return []

    def _next_of_check(
        self, idle: Collection[NodeId], clock: float, busy: Collection[NodeId]
    ) -> list[tuple[NodeId, ProbePeer]]:
        if self._check is None:
            due = [c for c in self._checks() if clock - self._checked.get(c.pair, -RECHECK_S) >= RECHECK_S]
            ready = [c for c in due if all(n in idle for w in c.lanes for n in w.nodes)]
            if not ready:
                return []
            self._check = (ready[0], list(ready[0].lanes))
        check, one_by_one = self._check
        if any(n not in idle for w in check.lanes for n in w.nodes):
            self._check = None  # begun anew when its nodes have time
            return []
        if one_by_one:
            return self._begin((one_by_one.pop(0),), clock, busy)
        self._check, self._checked[check.pair] = None, clock
        return self._begin(check.lanes, clock, busy, check)

    def _checks(self) -> tuple[Check, ...]:
        """Trunks to look for: what pairs reached beside others counts here, also where they reach more alone."""
        state = (self.known.topology.version, len(self._crowded))
        if self._looked[0] != state:
            self._looked = (state, checks(at_worst(self.known.topology, self._crowded)))
        return self._looked[1]

    def _doubts(self, clock: float) -> list[tuple[Lane, bool]]:
        """Doubtful readings, each looked into twice at most; and whether a lane was never probed alone."""
        if self._doubted[0] is not self.known:
            self._doubted = (self.known, doubtful(self.known))
        spans = {w: [at for at in self._cleared.get(w, ()) if clock - at < RECHECK_S] for w, _ in self._doubted[1]}
        return [(w, first) for w, first in self._doubted[1] if len(spans[w]) < DOUBTS]

    def _begin(
        self,
        chosen: Sequence[Lane],
        clock: float,
        busy: Collection[NodeId],
        check: Check | None = None,
        *,
        limit_s: float = LIMIT_S,
    ) -> list[tuple[NodeId, ProbePeer]]:
        job = self._job = _Job(waiting={}, until=clock + limit_s + ANSWER_S, check=check)
        orders = []
        for lane in chosen:
            door = self._sites[lane.target].doors.get(lane.target_nic)
            self._tried[lane] = clock
            if door is None:
                continue
            self._count += 1
            order = ProbePeer(
                request=f"probe-{self._count}",
                peer=lane.target,
                nic=lane.source_nic,
                host=self._address(lane),
                door=door,
                burst_s=CHECK_BURST_S if check else BURST_S,
                limit_s=limit_s,
                steady=check is not None,
                beside=len(chosen) > 1 or self._beside(lane, busy),
            )
            job.waiting[order.request] = lane
            orders.append((lane.source, order))
        if not orders:
            self._job = None
        return orders

    def _address(self, lane: Lane) -> str:
        return next(n.host for n in self._sites[lane.source].host.nics if n.name == lane.source_nic)

    # -- taking in ---------------------------------------------------------------------------------------------------

    def _finish(self, clock: float) -> list[Change]:
        """The job is over; whoever did not answer is asked again later."""
        job, self._job = self._job, None
        if job is None or job.check is None:
            return []
        for lane in job.check.lanes:
            self._tried[lane] = clock
        self.known = check_together(self.known, job.check, job.answers)
        self.changed = self.changed or bool(self.known.changes)
        pair = job.check.pair
        ways = [t for t in self.known.topology.trunks if pair == {t.sources, t.targets}]
        if pair not in self._repeated and (len(ways) == 1 or unexplained(self.known, job.check, self._crowded)):
            # A trunk one way only, or none where pairs are slow, is more often a check whose pairs missed each other.
            self._repeated.add(pair)
            self._checked.pop(pair, None)
        else:
            self._repeated.discard(pair)
            self._crowded = {k: rate for k, rate in self._crowded.items() if not job.check.parts(k[0], k[2])}
        return list(self.known.changes)

    def _take(self, readings: list[Reading], *, at: float) -> None:
        self.known = take(self.known, readings)
        self.changed = self.changed or bool(readings)
        for reading in readings:
            self.measured[key(reading.link)] = at

    def _believe(self, clock: float, now: float) -> None:
        """Take in what agents told of links between nodes that are here."""
        for name, (reading, at) in sorted(self._claims.items(), key=lambda claim: claim[0]):
            if self._joins(reading.link):
                del self._claims[name]
                if at > self.measured.get(name, 0.0):
                    self._take([reading], at=at)
                    self._tried[lane_of(reading.link)] = clock - max(0.0, now - at)

    def _joins(self, link: Link) -> bool:
        """Whether both ends are NICs that are here."""
        ends = ((link.source, link.source_nic), (link.target, link.target_nic))
        return all(n in self._sites and any(nic.name == name for nic in self._sites[n].host.nics) for n, name in ends)

    def _fold(self, clock: float, now: float) -> list[Change]:
        if not self._seen or clock < self._window_at + WINDOW_S:
            return []
        seen, self._seen = merged(self._seen), []
        bandwidths = {key(k): k.bandwidth for k in self.known.topology.links}
        for o in seen:
            name = (o.source, o.source_nic, o.target, o.target_nic)
            # Traffic near what is known of a link measures it as well as a probe does.
            if o.busy_s > 0 and o.bytes / o.busy_s >= bandwidths.get(name, float("inf")) * FRESH:
                self.measured[name] = now
                self._tried[lane_of(o)] = clock
        self.known = fold(self.known, seen)
        self._slowed |= {
            name: max(bandwidths[name], self._slowed.get(name, 0.0))
            for k in self.known.topology.links
            if (name := key(k)) in bandwidths and k.bandwidth < bandwidths[name]
        }
        self.changed = self.changed or bool(self.known.changes)
        return [c for c in self.known.changes if c.what is not What.FOUND]

    def _beside(self, lane: Lane, busy: Collection[NodeId]) -> bool:
        """Whether a job's traffic may have taken its share of what this probe measured."""
        if any(n in busy for n in lane.nodes):
            return True
        ways = (lane.nodes, lane.nodes[::-1])
        crossed = [t for t in self.known.topology.trunks for a, b in ways if a in t.sources and b in t.targets]
        return any(n in busy for t in crossed for n in (*t.sources, *t.targets))

    def _note_problem(self, lane: Lane, fact: PeerProbed) -> None:
        if fact.links:
            self.problems.pop(lane.nodes, None)
        else:
            self.problems[lane.nodes] = fact.problem
            self.changed = True

    def _meet(self) -> None:
        hosts = [s.host for s in self._sites.values()]
        before = self.known.topology
        self.known = meet(self.known, hosts)
        if self.known.topology is before:
            return
        self.changed = True
        self._lanes = lanes(hosts)
        self.suspects.keep(self._lanes)
        alive = {key(k) for k in self.known.topology.links}
        self._crowded = {name: rate for name, rate in self._crowded.items() if name in alive}
        self.measured = {name: at for name, at in self.measured.items() if name in alive}
        self._tried = {w: at for w, at in self._tried.items() if w in set(self._lanes) and self._is_known(w)}
        self.problems = {pair: p for pair, p in self.problems.items() if all(n in self._sites for n in pair)}

    def _revise(self) -> None:
        """What members are told has changed."""
        topology = self.known.topology
        self.known = dataclasses.replace(
            self.known, topology=dataclasses.replace(topology, version=topology.version + 1)
        )
        self.changed = True

    def _is_known(self, lane: Lane) -> bool:
        return (lane.source, lane.source_nic, lane.target, lane.target_nic) in self.measured
