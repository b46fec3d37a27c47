"""The network at the core's desk: agents' facts go to `Probes`, its wishes become commands, its changes lines of the story."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.control_plane import effects as fx
from atoll.control_plane.desk import Desk
from atoll.control_plane.projection import topology_view
from atoll.control_plane.state import Run
from atoll.fault.slow_links import SlowLink
from atoll.schema.ids import NodeId
from atoll.schema.messages import AgentHello, EpochJoined, LinksObserved, PeerProbed
from atoll.schema.spec import JobKind
from atoll.schema.topology import Change, What
from atoll.schema.views import RunState

# What lines of the story about the network are told of.
SUBJECT = "network"
SHOW_S = 1.0
# How long the first epoch of a run waits for its nodes' links: eight hosts are surveyed and checked for trunks by then.
MEASURE_S = 8.0
# From this lateness of an agent or of this process on, what links carried says nothing of them.
STARVED_S = 0.25


def attached(desk: Desk, hello: AgentHello) -> None:
    """An agent is here, with its NICs."""
    seen = desk.nodes[hello.node].seen
    desk.probes.attached(hello, seen.labels if seen else {}, clock=desk.clock, now=desk.now)


def probed(desk: Desk, fact: PeerProbed) -> None:
    """A probe has ended."""
    _tell(desk, desk.probes.probed(fact, clock=desk.clock, busy=working(desk)))


def observed(desk: Desk, fact: LinksObserved) -> None:
    """A trainer told what its collectives showed. Hosts that are starved of processor time feed all links too slowly."""
    if desk.strain.worst(now=desk.clock) < STARVED_S:
        desk.probes.observed(fact.observations, clock=desk.clock)


def joined(desk: Desk, run: Run, fact: EpochJoined) -> None:
    """A member met the others, some of them by other NICs than it should have."""
    desk.probes.met(run.run, fact.epoch, fact.detours, clock=desk.clock)


def tick(desk: Desk) -> None:
    """Begin what probes are due, and show what changed."""
    changes, orders = desk.probes.tick(clock=desk.clock, now=desk.now, busy=working(desk))
    _tell(desk, changes)
    if not desk.closing:
        for node, order in orders:
            desk.send(node, order)
    _tell_islands(desk)
    if desk.probes.changed and desk.clock >= desk.topology_shown_at + SHOW_S:
        desk.probes.changed, desk.topology_shown_at = False, desk.clock
        desk.do(fx.ShowTopology(view=topology_view(desk)))


def working(desk: Desk) -> frozenset[NodeId]:
    """Nodes on which a run takes steps or answers requests."""
    return frozenset(
        t.node
        for run in desk.cluster.open_runs()
        if run.state in {RunState.RUNNING, RunState.STOPPING}
        for t in run.active()
        if t.server is not None or (run.spec.kind is JobKind.TRAIN and t.trainer in run.member_ids())
    )


def awaits_links(desk: Desk, run: Run, nodes: Iterable[NodeId]) -> str:
    """Why a run's first epoch should not begin yet: links of its nodes are about to be measured. Empty if it should."""
    if not desk.probes.settling(frozenset(nodes)):
        return ""
    if run.links_until is None:
        run.links_until = desk.clock + MEASURE_S
    return "" if desk.clock >= run.links_until else "the links between its nodes are being measured"


def _tell(desk: Desk, changes: Iterable[Change]) -> None:
    for change in changes:
        if change.what is not What.FOUND:
            desk.note(None, SUBJECT, change.what.value, str(change))
            _judge(desk, change)


def _judge(desk: Desk, change: Change) -> None:
    """Runs whose members use a place that became slow, or is well again, are told of it."""
    verdict = desk.slow_links.take(change)
    if verdict is None:
        return
    kind = "slow-link" if isinstance(verdict, SlowLink) else "link-restored"
    for run in desk.cluster.open_runs():
        nodes = {m.node for m in run.members}
        # What all of a NIC's links have in common has one end only.
        if all(not ends or not nodes.isdisjoint(ends) for ends in (change.sources, change.targets)):
            desk.note(run.run, run.run, kind, verdict.evidence)


def _tell_islands(desk: Desk) -> None:
    """Once all that is to be measured was: which nodes are near one another."""
    if desk.probes.known.topology is desk.islands_of or not desk.probes.settled:
        return
    desk.islands_of = desk.probes.known.topology
    tree = desk.probes.tree
    found = tuple(island.nodes for island in tree.innermost())
    if found != desk.islands_told and desk.probes.known.topology.links:
        desk.islands_told = found
        groups = " | ".join(" ".join(nodes) for nodes in found)
        desk.note(None, SUBJECT, "islands", f"{len(found)}: {groups}: {tree.reason}")
