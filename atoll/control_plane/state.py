"""What the control plane knows: records applied, and beside them the facts that agents say again after a restart.

`Cluster.apply` is the only way the durable part changes, so that replay is restart. Volatile fields are marked; they
start unknown after a replay and are filled by `AgentHello`, `ClusterListed` and the facts that follow.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import assert_never

from atoll.control_plane import records as r
from atoll.control_plane.lifecycle import END_OF_GOAL, Move, after
from atoll.errors import TransitionError
from atoll.fault.balance import Rhythm
from atoll.fault.budgets import Loss
from atoll.fault.facts import Blame, ProcessFacts, Wait
from atoll.fault.jumps import Jumps
from atoll.fault.pace import Pace
from atoll.fault.process import ProcessTrack
from atoll.fault.replicas import Comparisons
from atoll.fault.speeds import Speeds
from atoll.schema.ids import NO_EPOCH, NO_STEP, Epoch, Incarnation, NodeId, RunId, SeatId, Step, TrainerId
from atoll.schema.messages import Member, ServerReady
from atoll.schema.queues import Sharing
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door, Topology
from atoll.schema.views import CheckpointView, MetricPoint, RunState

# Of the times at which others disturbed a run, so many are remembered: more than any budget counts.
DISTURBANCES = 100
NO_INCARNATION = Incarnation(0)
# Withdrawn copies of so many steps are remembered: those of older ones were deleted long ago.
_WITHDRAWN_KEPT = 64
# Of a run that ended, the epochs of so many last steps.
_TOLD_KEPT = 64


@dataclass(slots=True)
class Trainer:
    """One process of a run. `presumed`: a member before a restart, and its agent has not spoken since."""

    trainer: TrainerId
    run: RunId
    seat: SeatId
    node: NodeId
    began: r.TrainerBegan | None = None
    ended: r.TrainerEnded | None = None
    gone: bool = False
    founder: bool = False
    # volatile
    asked: bool = False
    ready: bool = False
    host: str = ""
    port: int = 0
    doors: tuple[Door, ...] = ()
    joined: Epoch = NO_EPOCH
    presumed: bool = False
    server: ServerReady | None = None
    missing_since: float | None = None
    fenced_at: float | None = None
    track: ProcessTrack = field(default_factory=ProcessTrack)
    process: ProcessFacts | None = None
    steps: bool = False
    busy_until: float = 0.0
    flipped: bool = False

    @property
    def active(self) -> bool:
        """True while it has, or may get, a part in the run."""
        return self.ended is None

    @property
    def holds(self) -> bool:
        """True once it may hold the run's state: it joined an epoch, or is of the first one (or of one begun anew)."""
        return self.founder or self.joined > NO_EPOCH


@dataclass(slots=True)
class Seat:
    """Resources held for one trainer."""

    seat: SeatId
    run: RunId
    node: NodeId
    # Its trainer goes, and nobody comes: the run was made smaller, or moves, and it stays until it is replaced.
    leaving: bool = False
    replaced: bool = False
    # volatile
    alive: bool = False
    creating: bool = False
    retry_at: float = 0.0
    refill_at: float = 0.0
    devices: tuple[int, ...] = ()
    working_dir: str = ""


@dataclass(slots=True)
class SaveFailures:
    """Saves that did not become durable: how many ever, and how many since the last that did; the last few by step."""

    ever: int = 0
    row: int = 0
    last: tuple[Step, ...] = ()


@dataclass(slots=True)
class Run:
    """One execution of a job."""

    run: RunId
    spec: JobSpec
    run_dir: str
    secret: str
    submitted_at: float
    # How many workers it is to have now, from the spec's least to what it asked for, and at most.
    size: int
    most: int
    state: RunState = RunState.QUEUED
    reason: str = ""
    epoch: Epoch = NO_EPOCH
    members: tuple[Member, ...] = ()
    topology: Topology | None = None
    trainers: dict[TrainerId, Trainer] = field(default_factory=dict)
    trainers_made: int = 0
    seats: dict[SeatId, Seat] = field(default_factory=dict)
    seats_made: int = 0
    # When it was placed, by which alternative, when its size last changed, and when others were the cause.
    placed_at: float = 0.0
    placed_reason: str = ""
    size_reason: str = ""
    option: int = 0
    changed_at: float | None = None
    disturbed: list[float] = field(default_factory=list)
    # How often it was sent back into the queue, and when it came there last.
    suspensions: int = 0
    held: bool = False
    queued_at: float | None = None
    start_failures: int = 0
    losses: list[Loss] = field(default_factory=list)
    checkpoint: r.CheckpointKept | None = None
    kept: list[r.CheckpointKept] = field(default_factory=list)
    # Which record of a remote copy counts, by step, and which never will.
    copied: dict[Step, str] = field(default_factory=dict)
    withdrawn: dict[Step, tuple[str, ...]] = field(default_factory=dict)
    rewound: r.RunRewound | None = None
    rewinds: int = 0  # in a row to that step
    stopping: r.RunStopping | None = None
    ended_at: float | None = None
    # volatile
    beat_at: float = 0.0
    holder_heard_at: float = 0.0
    links_until: float | None = None
    stopping_at: float = 0.0
    impatient: bool = False
    step: Step = NO_STEP
    last: MetricPoint | None = None
    # Samples of a whole step and bytes of gradients that it adds up, as its trainers told.
    batch: int = 0
    sync_bytes: int = 0
    told: dict[Step, Epoch] = field(default_factory=dict)
    saved: CheckpointView | None = None
    copies: dict[Step, CheckpointView] = field(default_factory=dict)
    failures: SaveFailures = field(default_factory=SaveFailures)
    blames: list[Blame] = field(default_factory=list)
    waits: dict[TrainerId, Wait] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    committed_at: float = 0.0
    # Nodes that the members do not hear, and when that was last so: whoever lives there does not join.
    apart: dict[NodeId, float] = field(default_factory=dict)
    speeds: Speeds = field(default_factory=Speeds)
    # Samples a second of one worker alone, by device.
    measured: dict[str, float] = field(default_factory=dict)
    jumps: Jumps = field(default_factory=Jumps)
    comparisons: Comparisons = field(default_factory=Comparisons)
    rhythm: Rhythm = field(default_factory=Rhythm)
    avoided: dict[NodeId, float] = field(default_factory=dict)

    def active(self) -> list[Trainer]:
        """Trainers with a part in the run, oldest first."""
        return [t for t in self.trainers.values() if t.active]

    def tenant(self, seat: SeatId) -> Trainer | None:
        """The trainer that lives, or is to live, in `seat`."""
        return next((t for t in self.trainers.values() if t.seat == seat and not (t.ended and t.gone)), None)

    def member_ids(self) -> list[TrainerId]:
        """The current members in rank order."""
        return [m.trainer for m in self.members]

    @property
    def suspending(self) -> bool:
        """True while it leaves its seats to go on later."""
        return self.stopping is not None and self.stopping.goal is RunState.QUEUED

    def lacking(self, shunned: Collection[NodeId] = ()) -> int:
        """How many seats it is short of, those on `shunned` nodes and those that are left not counted."""
        held = sum(1 for seat in self.seats.values() if not seat.leaving and seat.node not in shunned)
        return self.size + self.spec.spares - held

    def finished(self) -> bool:
        """True once any trainer's function returned: the last step is decided everywhere, no more will come."""
        return any(t.ended is not None and t.ended.end is r.End.FINISHED for t in self.trainers.values())


@dataclass(slots=True)
class Drain:
    """A node that trainers leave. `left`: all of them are proven gone."""

    until: float
    reason: str
    notice: str = ""
    left: bool = False


@dataclass(slots=True)
class Cluster:
    """All runs, in the order of submission, and the nodes that are drained. `notices`: what asked for it, ever."""

    incarnation: Incarnation = NO_INCARNATION
    runs: dict[RunId, Run] = field(default_factory=dict)
    drains: dict[NodeId, Drain] = field(default_factory=dict)
    notices: set[tuple[NodeId, str]] = field(default_factory=set)
    sharing: Sharing = field(default_factory=Sharing)
    # A cluster lives through many runs, and every event asks for those that have not ended.
    _open: dict[RunId, Run] = field(default_factory=dict, repr=False, compare=False)

    def apply(self, record: r.Record) -> None:
        """Change the durable state by one record. Raises `TransitionError` where the record cannot follow."""
        if isinstance(record, r.RunSubmitted):
            self._submitted(record)
            return
        if isinstance(record, r.NODE_RECORDS):
            self._node(record)
            return
        if isinstance(record, r.QueuesSet):
            self.sharing = record.sharing
            return
        run = self.runs.get(record.run)
        if run is None:
            raise TransitionError(f"{type(record).__name__} of unknown run {record.run}")
        _apply_to_run(run, record)
        if run.state.ended:
            self._open.pop(run.run, None)

    def _node(self, record: r.NodeRecord) -> None:
        match record:
            case r.NodeDraining():
                self.drains[record.node] = Drain(until=record.until, reason=record.reason, notice=record.notice)
                if record.notice:
                    self.notices.add((record.node, record.notice))
            case r.NodeDrained():
                self.drains[record.node].left = True
            case r.NodeUndrained():
                self.drains.pop(record.node, None)
            case _:
                assert_never(record)

    def _submitted(self, record: r.RunSubmitted) -> None:
        if record.run in self.runs:
            raise TransitionError(f"run {record.run} was submitted twice")
        self.runs[record.run] = self._open[record.run] = Run(
            run=record.run,
            spec=record.spec,
            run_dir=record.run_dir,
            secret=record.secret,
            submitted_at=record.at,
            size=record.spec.workers,
            most=record.spec.workers,
        )

    def seat(self, seat: SeatId) -> Seat | None:
        """The seat of that name, in whichever run; one that ended holds none."""
        return next((run.seats[seat] for run in self._open.values() if seat in run.seats), None)

    def open_runs(self) -> list[Run]:
        """Runs that have not ended."""
        return list(self._open.values())


def _apply_to_run(run: Run, record: r.RunRecord) -> None:
    match record:
        case r.SeatTaken() | r.SeatFreed():
            _apply_seat(run, record)
        case r.TrainerAssigned() | r.TrainerBegan() | r.TrainerEnded() | r.TrainerGone():
            _apply_trainer(run, record)
        case r.EpochRaised():
            _apply_epoch(run, record)
        case r.CopyDecided() | r.CopyWithdrawn():
            _apply_copy(run, record)
        case r.CheckpointKept() | r.RunRewound():
            _apply_checkpoint(run, record)
        case r.RunPlaced() | r.RunServing() | r.RunStopping() | r.RunSuspended() | r.RunEnded():
            _apply_move(run, record)
        case r.RunResized() | r.RunMoved():
            _apply_size(run, record)
        case r.RunHeld():
            run.held, run.reason = record.held, record.reason
        case r.RunSubmitted():
            raise TransitionError(f"run {run.run} was submitted twice")
        case _:
            assert_never(record)


def _apply_copy(run: Run, record: r.CopyDecided | r.CopyWithdrawn) -> None:
    if isinstance(record, r.CopyDecided):
        if record.step in run.copied or record.record in run.withdrawn.get(record.step, ()):
            raise TransitionError(f"run {run.run}: {record.record} of step {record.step} cannot count")
        run.copied[record.step] = record.record
        return
    if run.copied.get(record.step) == record.record:
        del run.copied[record.step]
    # Put last: those go that were withdrawn longest ago, for after a return low steps are withdrawn after high ones.
    run.withdrawn[record.step] = (*run.withdrawn.pop(record.step, ()), record.record)
    for old in list(run.withdrawn)[:-_WITHDRAWN_KEPT]:
        del run.withdrawn[old]


def _apply_size(run: Run, record: r.RunResized | r.RunMoved) -> None:
    run.size_reason, run.changed_at = record.reason, record.at
    for seat in record.leaving:
        run.seats[seat].leaving, run.seats[seat].replaced = True, isinstance(record, r.RunMoved)
    if isinstance(record, r.RunMoved):
        return
    run.size = record.workers
    run.most = record.workers if record.bound else run.most
    if record.most is not None:
        # Whoever asked for it waits: it is not held against the run that it changed a moment ago.
        run.most, run.changed_at = record.most, 0.0
    if record.yielded:
        run.disturbed = [*run.disturbed, record.at][-DISTURBANCES:]


def _apply_checkpoint(run: Run, record: r.CheckpointKept | r.RunRewound) -> None:
    if isinstance(record, r.CheckpointKept):
        run.checkpoint = record
        run.kept = [*(k for k in run.kept if k.step < record.step), record][-run.spec.keep_checkpoints :]
        return
    same = run.rewound is not None and run.rewound.step == record.step
    run.rewinds = run.rewinds + 1 if same else 1
    run.rewound, run.kept = record, [k for k in run.kept if k.step <= record.step]
    run.checkpoint = run.kept[-1]


def _apply_seat(run: Run, record: r.SeatTaken | r.SeatFreed) -> None:
    if isinstance(record, r.SeatFreed):
        run.seats.pop(record.seat, None)
        return
    run.seats[record.seat] = Seat(seat=record.seat, run=run.run, node=record.node)
    run.seats_made += 1


def _apply_trainer(run: Run, record: r.TrainerAssigned | r.TrainerBegan | r.TrainerEnded | r.TrainerGone) -> None:
    if isinstance(record, r.TrainerAssigned):
        seat = run.seats[record.seat]
        run.trainers_made += 1
        run.trainers[record.trainer] = Trainer(trainer=record.trainer, run=run.run, seat=seat.seat, node=seat.node)
        return
    trainer = run.trainers[record.trainer]
    match record:
        case r.TrainerBegan():
            trainer.began = record
        case r.TrainerGone():
            trainer.gone = True
        case r.TrainerEnded():
            trainer.ended = record
            _count_loss(run, record)
        case _:
            assert_never(record)


def _count_loss(run: Run, record: r.TrainerEnded) -> None:
    if record.end is not r.End.LOST and record.end is not r.End.FAILED:
        return
    if record.was_ready:
        run.losses.append(
            Loss(
                trainer=record.trainer,
                cause=record.cause,
                step=record.step,
                epoch=run.epoch,
                reason=record.reason,
                node=run.trainers[record.trainer].node,
            )
        )
    else:
        run.start_failures += 1


def _apply_epoch(run: Run, record: r.EpochRaised) -> None:
    if record.epoch != run.epoch + 1:
        raise TransitionError(f"run {run.run}: epoch {record.epoch} cannot follow {run.epoch}")
    run.state = after(run.run, run.state, Move.START)
    if not any(run.trainers[t].active for t in run.member_ids()):
        for member in record.members:
            run.trainers[member.trainer].founder = True
    run.epoch, run.members, run.reason = record.epoch, record.members, record.reason
    run.topology = record.topology


def _apply_move(run: Run, record: r.RunPlaced | r.RunServing | r.RunStopping | r.RunSuspended | r.RunEnded) -> None:
    match record:
        case r.RunPlaced():
            run.state = after(run.run, run.state, Move.PLACE)
            run.placed_at, run.option, run.changed_at = record.at, record.option, record.at
            run.placed_reason, run.size_reason = record.reason, ""
            run.size = record.workers or run.most
        case r.RunSuspended():
            run.state = after(run.run, run.state, Move.SUSPEND)
            _begin_anew(run, record.at)
        case r.RunServing():
            run.state = after(run.run, run.state, Move.START)
        case r.RunStopping():
            run.state = after(run.run, run.state, Move.STOP)
            run.stopping, run.reason, run.held = record, record.reason, record.held
        case r.RunEnded():
            goal = run.stopping.goal if run.stopping else RunState.STOPPED
            run.state, run.ended_at = after(run.run, run.state, END_OF_GOAL[goal]), record.at
            _lay_down(run)
        case _:
            assert_never(record)


def _lay_down(run: Run) -> None:
    """A cluster lives through many runs: of one that ended, what served to judge it is given back."""
    _forget(run)
    run.apart, run.pace, run.jumps = {}, Pace(), Jumps()
    # Words on its last steps may still be on their way, said again.
    run.told = dict(list(run.told.items())[-_TOLD_KEPT:])
    for trainer in run.trainers.values():
        trainer.track, trainer.process = ProcessTrack(), None


def _forget(run: Run) -> None:
    """What was held against its trainers, and what they were judged by."""
    run.losses, run.blames, run.waits = [], [], {}
    run.speeds, run.comparisons, run.rhythm = Speeds(), Comparisons(), Rhythm()


def _begin_anew(run: Run, at: float) -> None:
    """Nothing is left of its trainers but what they saved; their names are not given again."""
    run.reason = run.stopping.reason if run.stopping is not None else ""
    run.stopping, run.members, run.topology, run.size = None, (), None, run.most
    run.trainers, run.start_failures = {}, 0
    run.suspensions, run.queued_at = run.suspensions + 1, at
    run.disturbed = [*run.disturbed, at][-DISTURBANCES:]
    run.links_until = None
    _forget(run)
    run.failures = SaveFailures(ever=run.failures.ever)
