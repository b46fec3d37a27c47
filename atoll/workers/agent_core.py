"""What an agent knows and answers: its trainers, from the wish for a fork until their end is journaled.

The core folds events into effects and decides three things.

- Whom it obeys. The highest incarnation of the control plane that adopted it is written down; a frame of a lower one is
  refused, so a control plane that was thought dead cannot command trainers that its successor leads (law 1).
- Which trainers may live. `Adopt` names those to keep: all others are killed. So is a process that says it is a trainer
  whose record names another process, or whose end was reported already: "ended" is proof, and stays true.
- What is said, and said again. Process facts and trainers' own words leave in the order they came; while no control
  plane listens they wait in an `Outbox`. `AgentHello` tells the state, so that commands and facts may be lost with a
  connection. A record ends with `ForgetTrainer`, or with the death of a trainer that nobody keeps.

A membership and a wish to stop are kept for a trainer whose link is down and told when it connects.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import assert_never

from atoll.schema.harm import INWARD
from atoll.schema.ids import Epoch, Incarnation, NodeId, RunId, TrainerId
from atoll.schema.messages import (
    Adopt,
    AgentCommand,
    AgentFact,
    AgentHello,
    Examine,
    FenceTrainer,
    ForgetTrainer,
    FoundTrainer,
    Inject,
    LeaveNode,
    Membership,
    Misbehave,
    PeerProbed,
    PeersWatched,
    ProbePeer,
    ReadLog,
    StartTrainer,
    StopAtBoundary,
    TellTrainer,
    TrainerCommand,
    TrainerHello,
    TrainerSaid,
    TrainerStarted,
    Versions,
    WatchPeers,
)
from atoll.schema.topology import Door, Nic
from atoll.workers.agent_messages import (
    Answer,
    Attached,
    CommandCame,
    Connected,
    Detached,
    Effect,
    Ended,
    Event,
    Fork,
    Forked,
    ForkFailed,
    Hurt,
    Kill,
    Leave,
    Probe,
    Probed,
    Refuse,
    Said,
    Save,
    Saved,
    SavedTrainer,
    Send,
    Tell,
    Watch,
    Watched,
    WatchRing,
    log_path,
    run_dir_of,
)
from atoll.workers.outbox import Item, Outbox
from atoll.workers.trainer_records import Record, exited, found_by, is_measurement, noted, status_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """What the agent says of itself."""

    node: NodeId
    pid: int
    address: str
    state_dir: str
    home: str
    versions: Versions
    nics: tuple[Nic, ...] = ()
    doors: tuple[Door, ...] = ()
    beats: tuple[Door, ...] = ()


class AgentCore:
    """The agent's mind. `handle` is all there is to call; `saved`, `living` and `log_of` may be read."""

    def __init__(self, me: Self, saved: Saved | None = None) -> None:
        saved = saved or Saved(incarnation=Incarnation(0))
        self._me = me
        self._incarnation = saved.incarnation
        self._records = {s.found.trainer: Record(found=s.found, run_dir=s.run_dir) for s in saved.trainers}
        self._outbox: Outbox[AgentFact] = Outbox(may_drop=is_measurement)
        self._adopted = False
        # By own NIC and peer's: the last results, which a new control plane has not heard.
        self._probes: dict[tuple[str, NodeId, str], PeerProbed] = {}

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """What to do about `event`, in this order. `now` is monotonic."""
        match event:
            case Attached():
                self._outbox.rewind(now=now)
                return [Send(fact=self._hello())]
            case Detached():
                self._adopted = False
                self._outbox.rewind(now=now)
                effects: list[Effect] = []
            case CommandCame():
                effects = self._obey(event)
            case Forked():
                effects = self._forked(event)
            case ForkFailed():
                effects = self._ended(Ended(trainer=event.trainer, exit_status=None, log_tail=event.problem))
            case Ended():
                effects = self._ended(event)
            case Connected():
                effects = self._connected(event.hello)
            case Said():
                effects = self._said(event)
            case Probed() | Watched():
                effects = self._probed(event.fact) if isinstance(event, Probed) else self._watched(event, now)
            case _:
                assert_never(event)
        return effects + self._drain(now)

    def saved(self) -> Saved:
        """What the next agent of this node has to know."""
        trainers = [SavedTrainer(found=r.found, run_dir=r.run_dir) for r in self._records.values()]
        return Saved(incarnation=self._incarnation, trainers=tuple(trainers))

    def living(self) -> tuple[FoundTrainer, ...]:
        """Trainers whose end is not proven, forks under way included."""
        return tuple(r.found for r in self._records.values() if not r.ended)

    def log_of(self, trainer: TrainerId, run: RunId) -> str:
        """The path of a trainer's log; also of one that is forgotten."""
        record = self._records.get(trainer)
        return log_path(record.run_dir if record else run_dir_of(self._me.home, run), trainer)

    # -- the control plane's commands ----------------------------------------------------------------------------------

    def _obey(self, event: CommandCame) -> list[Effect]:
        if event.incarnation < self._incarnation:
            return [Refuse(reason=f"incarnation {event.incarnation} speaks, {self._incarnation} was adopted")]
        return self._execute(event.command)

    def _execute(self, command: AgentCommand) -> list[Effect]:  # noqa: PLR0911 - one line a command
        match command:
            case Adopt():
                return self._adopt(command)
            case StartTrainer():
                return self._start(command)
            case FenceTrainer():
                return self._fence(command)
            case TellTrainer():
                return self._tell(command.trainer, command.command)
            case ForgetTrainer():
                return self._forget(command.trainer)
            case ReadLog() | Examine():
                log = self.log_of(command.trainer, command.run) if isinstance(command, ReadLog) else ""
                return [Answer(question=command, log=log)]
            case ProbePeer():
                return [Probe(order=command)]
            case WatchPeers() | Inject():
                return self._hurt(command) if isinstance(command, Inject) else [WatchRing(order=command)]
            case LeaveNode():
                kills = [k for r in self._living_records() for k in self._kill(r, command.reason)]
                return [*kills, Leave(reason=command.reason)]
            case _:
                assert_never(command)

    def _adopt(self, command: Adopt) -> list[Effect]:
        if command.incarnation < self._incarnation:
            return [Refuse(reason=f"incarnation {command.incarnation} wants to adopt, {self._incarnation} did before")]
        self._incarnation = command.incarnation
        self._adopted = True
        effects: list[Effect] = [Save()]
        for record in [r for r in self._records.values() if not r.under_way and r.found.trainer not in command.keep]:
            record.kept = False
            if record.ended:
                self._drop(record.found.trainer)
            else:
                effects += self._kill(record, f"incarnation {command.incarnation} does not keep it")
        return effects

    def _start(self, command: StartTrainer) -> list[Effect]:
        if command.trainer in self._records:
            return []  # said again: the process, or its end, was or will be reported
        found = FoundTrainer(
            trainer=command.trainer,
            run=command.run,
            seat=command.seat,
            pid=0,
            start_ticks=0,
            epoch=Epoch(0),
            ready=False,
        )
        run_dir = command.run_dir or run_dir_of(self._me.home, command.run)
        self._records[command.trainer] = Record(found=found, run_dir=run_dir)
        # Written down before the fork: an agent that dies in between leaves a name to look for, never a lost process.
        return [Save(), Fork(start=dataclasses.replace(command, run_dir=run_dir))]

    def _fence(self, command: FenceTrainer) -> list[Effect]:
        record = self._records.get(command.trainer)
        if record is not None and not record.ended:
            return self._kill(record, command.reason)
        # Each fork is on record before it happens: what is not there was never forked, or its end is journaled.
        status = record.found.exit_status if record else None
        self._put(command.trainer, exited(command.trainer, command.run, record.found.pid if record else 0, status))
        return []

    def _kill(self, record: Record, reason: str) -> list[Effect]:
        record.wanted = False
        if not record.forked:
            return []  # killed as soon as its pid is known
        return [Kill(pid=record.found.pid, start_ticks=record.found.start_ticks, reason=reason)]

    def _tell(self, trainer: TrainerId, command: TrainerCommand) -> list[Effect]:
        record = self._records.get(trainer)
        if record is None or record.ended:
            return []
        if isinstance(command, StopAtBoundary):
            record.stop = command
        elif isinstance(command, Membership) and (record.membership is None or command.epoch > record.membership.epoch):
            record.membership = command
        return [Tell(trainer=trainer, command=command)] if record.connected else []

    def _hurt(self, order: Inject) -> list[Effect]:
        """The control plane asked whether the run allows it; what is inside the process its own spec asks again."""
        record = self._records.get(order.trainer)
        if record is None or record.ended or not record.forked:
            return []
        if order.harm in INWARD:
            command = Misbehave(harm=order.harm, for_s=order.for_s, place=order.place)
            return [Tell(trainer=order.trainer, command=command)] if record.connected else []
        return [Hurt(order=order, pid=record.found.pid, start_ticks=record.found.start_ticks)]

    def _forget(self, trainer: TrainerId) -> list[Effect]:
        record = self._records.get(trainer)
        if record is None:
            return []
        if not record.ended:
            record.kept = False  # forgotten with its death
            return []
        self._drop(trainer)
        return [Save()]

    # -- processes -----------------------------------------------------------------------------------------------------

    def _forked(self, event: Forked) -> list[Effect]:
        record = self._records.get(event.trainer)
        if record is None or record.ended or (record.forked and record.found.pid != event.pid):
            return [Kill(pid=event.pid, start_ticks=event.start_ticks, reason="no record wants this process")]
        return self._exists(record, event.pid, event.start_ticks)

    def _exists(self, record: Record, pid: int, ticks: int) -> list[Effect]:
        if record.forked:
            return []
        trainer = record.found.trainer
        record.found = dataclasses.replace(record.found, pid=pid, start_ticks=ticks)
        self._put(trainer, TrainerStarted(trainer=trainer, run=record.found.run, pid=pid, start_ticks=ticks))
        effects: list[Effect] = [Save(), Watch(trainer=trainer, run=record.found.run, pid=pid, start_ticks=ticks)]
        return effects if record.wanted else effects + self._kill(record, "fenced before it was forked")

    def _ended(self, event: Ended) -> list[Effect]:
        record = self._records.get(event.trainer)
        if record is None or record.ended:
            return []
        status = status_of(record.found, event.exit_status)
        record.found = dataclasses.replace(record.found, exit_status=status)
        record.connected = False
        told = exited(event.trainer, record.found.run, record.found.pid, status, event.log_tail)
        fact = dataclasses.replace(told, out_of_memory=event.out_of_memory)
        if not record.kept:
            self._drop(event.trainer)
        self._put(event.trainer, fact)
        return [Save()]

    def _drop(self, trainer: TrainerId) -> None:
        del self._records[trainer]
        self._outbox.forget(trainer)

    # -- trainers' words -----------------------------------------------------------------------------------------------

    def _connected(self, hello: TrainerHello) -> list[Effect]:
        record = self._records.get(hello.trainer)
        if record is None:
            record = self._records[hello.trainer] = Record(found=found_by(hello), run_dir=self._run_dir(hello.run))
        if record.ended or (record.forked and record.found.pid != hello.pid):
            return [Kill(pid=hello.pid, start_ticks=hello.start_ticks, reason="its record names another process")]
        effects = self._exists(record, hello.pid, hello.start_ticks)
        epoch = max(record.found.epoch, hello.epoch)
        record.found = dataclasses.replace(record.found, epoch=epoch, ready=record.found.ready or hello.ready)
        record.connected = True
        return effects + self._told_again(record, hello)

    def _run_dir(self, run: RunId) -> str:
        return run_dir_of(self._me.home, run)

    def _told_again(self, record: Record, hello: TrainerHello) -> list[Effect]:
        commands: list[TrainerCommand] = []
        if record.membership is not None and record.membership.epoch > hello.epoch:
            commands.append(record.membership)
        if record.stop is not None:
            commands.append(record.stop)
        return [Tell(trainer=hello.trainer, command=command) for command in commands]

    def _said(self, event: Said) -> list[Effect]:
        record = self._records.get(event.trainer)
        if record is None or record.ended:
            return []
        before = record.found
        record.found, key = noted(before, event.fact)
        said = TrainerSaid(run=record.found.run, fact=event.fact)
        self._outbox.put(Item(owner=event.trainer, fact=said, key=key))
        return [Save()] if record.found != before else []

    # -- links ---------------------------------------------------------------------------------------------------------

    def _probed(self, fact: PeerProbed) -> list[Effect]:
        """Not for the outbox: whoever does not hear it now hears it with the next `AgentHello`."""
        for link in fact.links:
            name = link.source_nic, link.target, link.target_nic
            # What was reached beside others says less than what was reached alone.
            if link.source == self._me.node and (not fact.beside or name not in self._probes):
                self._probes[name] = fact
        return [Send(fact=fact)] if self._adopted else []

    def _watched(self, event: Watched, now: float) -> list[Effect]:
        """Not for the outbox either: what is told later would be wrong, and the next look comes soon."""
        if not self._adopted:
            return []
        living, late_s = {found.trainer for found in self.living()}, now - event.at
        return [
            Send(fact=dataclasses.replace(fact, behind_s=max(fact.behind_s, late_s)))
            for fact in event.facts
            if isinstance(fact, PeersWatched) or fact.trainer in living
        ]

    # -- saying --------------------------------------------------------------------------------------------------------

    def _hello(self) -> AgentHello:
        return AgentHello(
            node=self._me.node,
            pid=self._me.pid,
            address=self._me.address,
            state_dir=self._me.state_dir,
            versions=self._me.versions,
            last_incarnation=self._incarnation,
            # A fork under way is no process yet: said as `TrainerStarted` once it is, and a start said again is known.
            trainers=tuple(r.found for r in self._records.values() if not r.under_way),
            nics=self._me.nics,
            doors=self._me.doors,
            probes=tuple(self._probes.values()),
            beats=self._me.beats,
        )

    def _put(self, trainer: TrainerId, fact: AgentFact) -> None:
        self._outbox.put(Item(owner=trainer, fact=fact))

    def _drain(self, now: float) -> list[Effect]:
        sends: list[Effect] = []
        while self._adopted and (fact := self._outbox.take(now=now)) is not None:
            sends.append(Send(fact=fact))
        return sends

    def _living_records(self) -> list[Record]:
        return [r for r in self._records.values() if not r.ended]
