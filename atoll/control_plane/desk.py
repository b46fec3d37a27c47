"""The core's working surface while it handles one event.

Decisions are recorded here: applied at once, so that what follows sees them, and collected for one `Persist` that goes
before every other effect. Each record also becomes a line of the story under the stimulus that caused it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.collectives.islands import Island
from atoll.control_plane import effects as fx
from atoll.control_plane.arbiter.decisions import Decisions
from atoll.control_plane.arbiter.model import Usage
from atoll.control_plane.events import NodeSeen
from atoll.control_plane.ledger import Ledger
from atoll.control_plane.placement import Room, needs, units
from atoll.control_plane.probes import Probes
from atoll.control_plane.records import CLUSTER_RECORDS, Record
from atoll.control_plane.state import Cluster, Run, Trainer
from atoll.control_plane.story import brief, told
from atoll.fault.facts import Ears
from atoll.fault.limits import PAUSE_S
from atoll.fault.slow_links import SlowLinks
from atoll.fault.strain import Strain
from atoll.schema.ids import NodeId, RunId
from atoll.schema.messages import AgentBeat, AgentCommand, Membership, TellTrainer, TrainerCommand, WatchPeers
from atoll.schema.offers import MachineOffer
from atoll.schema.topology import Door, Topology


@dataclass(slots=True)
class Node:
    """A host as Ray and its agent describe it; all of it volatile.

    `heard_since`: since when its agent was heard without a pause. `unmet_s`: for how long in all another host than ours was
    heard since this one was lost; `unmet`: of each run with members here, one that holds its state. Both begin anew where
    none was heard for a while.
    """

    node: NodeId
    seen: NodeSeen | None = None
    attached: bool = False
    pid: int = 0
    heard_at: float = 0.0
    heard_since: float = 0.0
    ask_agent_at: float = 0.0
    lost: bool = False
    lost_at: float = 0.0
    known: bool = False
    attached_at: float = 0.0
    unmet_s: float = 0.0
    unmet: dict[RunId, float] = field(default_factory=dict)
    doors: tuple[Door, ...] = ()
    listens: WatchPeers | None = None
    ears: Ears | None = None
    beat: AgentBeat | None = None
    shown: tuple[object, ...] = ()

    def heard(self, at: float) -> None:
        """Its agent said something."""
        if at - self.heard_at > PAUSE_S:
            self.heard_since = at
        self.heard_at, self.known = at, True

    @property
    def usable(self) -> bool:
        """True where Ray would place a seat."""
        return self.seen is not None and self.seen.alive and not self.lost

    @property
    def local(self) -> bool:
        """True of the control plane's own host."""
        return self.seen is not None and self.seen.local


@dataclass(slots=True)
class Desk:
    """State and clock of the core, and what the event in hand led to so far."""

    cluster: Cluster = field(default_factory=Cluster)
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    clock: float = 0.0
    now: float = 0.0
    cause: str = ""
    room_changed: bool = False
    closing: bool = False
    probes: Probes = field(default_factory=Probes)
    # What the detector is given beside the facts of nodes and runs (`watching`).
    watchers: dict[NodeId, tuple[NodeId, ...]] = field(default_factory=dict)
    beat_key: str = ""
    ring_of: tuple[Island, frozenset[NodeId], int] | None = None
    attaches: int = 0
    strain: Strain = field(default_factory=Strain)
    steady_at: float = 0.0
    counted_at: float = 0.0
    others_heard_at: float = 0.0
    topology_shown_at: float = 0.0
    islands_of: Topology | None = None
    islands_told: tuple[tuple[NodeId, ...], ...] = ()
    slow_links: SlowLinks = field(default_factory=SlowLinks)
    # What queues and their users had of the cluster lately; a new control plane begins anew.
    usage: dict[tuple[str, str | None], Usage] = field(default_factory=dict)
    decide_at: float = 0.0
    # What an autoscaler would start, as it last said.
    offers: tuple[MachineOffer, ...] = ()
    offered_until: float = 0.0
    accounted_at: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    decided: Decisions | None = None
    records: list[Record] = field(default_factory=list)
    effects: list[fx.Effect] = field(default_factory=list)
    touched: dict[RunId, None] = field(default_factory=dict)

    def record(self, record: Record) -> None:
        """Decide: apply now, persist before any effect is carried out."""
        self.cluster.apply(record)
        self.records.append(record)
        run = None if isinstance(record, CLUSTER_RECORDS) else record.run
        if run is not None:
            self.touched[run] = None
        line = told(record)
        if line is not None:
            self.note(run, *line)

    def note(self, run: RunId | None, subject: str, kind: str, text: str) -> None:
        """Add a line to the story."""
        told_text = brief(run, text) if run is not None else text
        self.effects.append(fx.Note(run=run, subject=subject, kind=kind, text=told_text, cause=self.cause, at=self.now))

    def do(self, effect: fx.Effect) -> None:
        """Have something done after the records are durable."""
        self.effects.append(effect)

    def send(self, node: NodeId, command: AgentCommand) -> None:
        """Command an agent, if it is attached; whoever attaches later is told anew."""
        known = self.nodes.get(node)
        if known is not None and known.attached:
            self.effects.append(fx.Send(node=node, command=command))

    def tell(self, trainer: Trainer, command: TrainerCommand) -> None:
        """Command a trainer through its agent."""
        self.send(trainer.node, TellTrainer(trainer=trainer.trainer, command=command))

    def tell_membership(self, run: Run, trainer: Trainer) -> None:
        """Say the current epoch to one of its members."""
        if trainer.trainer in run.member_ids():
            membership = Membership(
                run=run.run, epoch=run.epoch, members=run.members, reason=run.reason, topology=run.topology
            )
            self.tell(trainer, membership)

    def touch(self, run: Run) -> None:
        """The run's view changed."""
        self.touched[run.run] = None

    def rooms(self) -> list[Room]:
        """What each usable node that is not drained has, less what seats reserve."""
        held = self._held()
        return [_room(n, held) for n in self.nodes.values() if self._offers(n)]

    def room(self, node: Node) -> Room | None:
        """The same of one node; None where it takes nobody."""
        return _room(node, self._held()) if self._offers(node) else None

    def offering(self) -> list[NodeId]:
        """The nodes that take somebody, as far as there is room."""
        return [node.node for node in self.nodes.values() if self._offers(node)]

    def _offers(self, node: Node) -> bool:
        return node.usable and node.node not in self.cluster.drains

    def _held(self) -> dict[NodeId, tuple[int, int]]:
        held: dict[NodeId, tuple[int, int]] = {}
        for run in self.cluster.open_runs():
            cpus, gpus = needs(run.spec)
            for seat in run.seats.values():
                before = held.get(seat.node, (0, 0))
                held[seat.node] = (before[0] + cpus, before[1] + gpus)
        return held


def _room(node: Node, held: Mapping[NodeId, tuple[int, int]]) -> Room:
    seen = node.seen
    cpus, gpus = (units(seen.cpus), units(seen.gpus)) if seen is not None else (0, 0)
    taken = held.get(node.node, (0, 0))
    return Room(node=node.node, cpus=cpus, gpus=gpus, cpus_free=cpus - taken[0], gpus_free=gpus - taken[1])
