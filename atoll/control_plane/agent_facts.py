"""What agents report, taken in: a fact changes what is known, `settle` then decides.

Every handler may see the same fact twice, from a stream and again from the next `AgentHello`, and a fact of a trainer
that has no part any more: such a process is fenced, or forgotten once it is gone.
"""

from __future__ import annotations

import signal
from typing import assert_never

from atoll.control_plane import corruption, network, rebalance, saved, watching
from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.desk import Desk, Node
from atoll.control_plane.settle import begin_stop, end_trainer, settle, tell_stop
from atoll.control_plane.state import Run, Trainer
from atoll.control_plane.story import brief
from atoll.errors import AtollError, CheckpointError, UserError
from atoll.fault.budgets import after_commit, cause_of_exit, cause_of_failure
from atoll.fault.facts import Blame
from atoll.fault.links import MEMORY_S
from atoll.schema import messages as m
from atoll.schema.ids import NO_EPOCH, NodeId, RunId, TrainerId
from atoll.schema.views import MetricPoint, RunState

# Enough of a log to read the last traceback in a one-line answer.
TAIL_CHARS = 400
# What an agent says of a trainer whose parent is gone too, so that nobody was told its status.
EXIT_UNKNOWN = 255
# Steps are said again within seconds; at a hundred a second these are the last ten.
REMEMBERED_STEPS = 1000


def _tree(root: type[AtollError]) -> dict[str, int]:
    found = {root.code: root.exit_code}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


MEASURED = (m.StepCommitted, m.ReplicaDigested, m.LinksObserved, m.Waiting, m.Busy)
Measured = m.StepCommitted | m.ReplicaDigested | m.LinksObserved | m.Waiting | m.Busy
# What is worth knowing of a run that ended already: it happened before, and was on its way here meanwhile.
LATE = (m.StepCommitted, m.CheckpointCommitted, m.CheckpointCopied, m.CopyProposed, m.CopyWithdrawn)
# What says nothing of a run that went back since.
UNDONE = (m.StepCommitted, m.CheckpointCommitted, m.CheckpointCopied, m.CopyProposed, m.ReplicaDigested)
EXIT_CODES = _tree(AtollError)
# A checkpoint that one trainer finds damaged is so for whoever takes its place.
FATAL = frozenset({*_tree(UserError), CheckpointError.code})


def attached(desk: Desk, hello: m.AgentHello) -> None:
    """An agent is here: adopt what it holds, and say to it all that still holds."""
    node = desk.nodes.setdefault(hello.node, Node(node=hello.node))
    desk.room_changed = desk.room_changed or node.lost
    node.attached, node.heard_at, node.pid, node.lost = True, desk.clock, hello.pid, False
    node.heard_since = desk.clock
    node.known, node.attached_at, node.doors = True, desk.clock, hello.beats
    node.listens, node.ears, desk.attaches = None, None, desk.attaches + 1
    desk.note(
        None,
        hello.node,
        "agent-attached",
        f"process {hello.pid}, holds {len(hello.trainers)} trainer{'s' * (len(hello.trainers) != 1)}",
    )
    keep = tuple(f.trainer for f in hello.trainers if _kept(desk, f))
    desk.send(hello.node, m.Adopt(incarnation=desk.cluster.incarnation, keep=keep))
    # All that stands first, then what ended: an epoch raised for a loss counts with every spare that is ready.
    for found in hello.trainers:
        _absorb(desk, found)
    network.attached(desk, hello)
    _mark_missing(desk, hello)
    for run in desk.cluster.open_runs():
        _say_again(desk, run, hello.node)
    for found in hello.trainers:
        _absorb_end(desk, found)
    for run in desk.cluster.open_runs():
        settle(desk, run)


def _kept(desk: Desk, found: m.FoundTrainer) -> bool:
    run, trainer = _lookup(desk, found.run, found.trainer)
    if run is None or trainer is None or run.state.ended:
        return False
    return trainer.ended is None or trainer.ended.end in {r.End.FINISHED, r.End.SUSPENDED}


def _absorb(desk: Desk, found: m.FoundTrainer) -> None:
    run, trainer = _lookup(desk, found.run, found.trainer)
    if run is not None and trainer is not None and not trainer.gone:
        trainer.missing_since, trainer.asked, trainer.presumed = None, True, False
        began(desk, run, trainer, found.pid, found.start_ticks)
        trainer.joined = max(trainer.joined, found.epoch)
        trainer.ready = trainer.ready or found.ready
        if found.host:
            trainer.host, trainer.port, trainer.doors = found.host, found.port, found.doors
        desk.touch(run)


def _absorb_end(desk: Desk, found: m.FoundTrainer) -> None:
    if found.outcome is not None:
        said(desk, m.TrainerSaid(run=found.run, fact=found.outcome))
    if found.exit_status is not None:
        exited(
            desk, m.TrainerExited(trainer=found.trainer, run=found.run, pid=found.pid, exit_status=found.exit_status)
        )


def _mark_missing(desk: Desk, hello: m.AgentHello) -> None:
    reported = {f.trainer for f in hello.trainers}
    for run in desk.cluster.open_runs():
        for trainer in run.trainers.values():
            if trainer.node != hello.node or trainer.gone or trainer.trainer in reported:
                continue
            if trainer.began is None:
                trainer.asked = False
            else:
                trainer.missing_since = desk.clock


def _say_again(desk: Desk, run: Run, node: NodeId) -> None:
    for trainer in run.active():
        if trainer.node == node:
            desk.tell_membership(run, trainer)
            if run.state is RunState.STOPPING:
                tell_stop(desk, run, trainer)


def detached(desk: Desk, node_id: NodeId, evidence: str) -> None:
    """An agent's stream ended: a fact, not a verdict."""
    node = desk.nodes.get(node_id)
    if node is not None and node.attached:
        node.attached = False
        node.heard_at = desk.clock
        desk.probes.detached(node_id)
        desk.note(None, node_id, "agent-detached", evidence)


def _lookup(desk: Desk, run_id: RunId, trainer_id: TrainerId) -> tuple[Run | None, Trainer | None]:
    run = desk.cluster.runs.get(run_id)
    return run, run.trainers.get(trainer_id) if run is not None else None


def began(desk: Desk, run: Run, trainer: Trainer, pid: int, start_ticks: int) -> None:
    """The trainer's process exists."""
    if trainer.began is None:
        desk.record(r.TrainerBegan(run=run.run, trainer=trainer.trainer, pid=pid, start_ticks=start_ticks, at=desk.now))


def started(desk: Desk, node: NodeId, fact: m.TrainerStarted) -> None:
    """A process was forked for a trainer."""
    run, trainer = _lookup(desk, fact.run, fact.trainer)
    if run is None or trainer is None:
        desk.send(node, m.FenceTrainer(run=fact.run, trainer=fact.trainer, reason="no such trainer is known"))
        return
    began(desk, run, trainer, fact.pid, fact.start_ticks)
    settle(desk, run)


def exited(desk: Desk, fact: m.TrainerExited) -> None:
    """Proof of death. Whoever did not say how it ended before was lost."""
    run, trainer = _lookup(desk, fact.run, fact.trainer)
    if run is None or trainer is None:
        for node in desk.nodes.values():
            desk.send(node.node, m.ForgetTrainer(trainer=fact.trainer))
        return
    how = exit_text(fact.exit_status)
    if trainer.active:
        tail = fact.log_tail.strip()[-TAIL_CHARS:]
        end = r.End.DISMISSED if run.state is RunState.STOPPING else r.End.LOST
        how = f"{how} for memory" if fact.out_of_memory else how
        told = f"{how}; its log ends: {tail}" if tail and not trainer.ready else how
        cause = cause_of_exit(fact.exit_status, out_of_memory=fact.out_of_memory)
        end_trainer(desk, run, trainer, end, told, cause)
    gone(desk, run, trainer, how)
    settle(desk, run)


def gone(desk: Desk, run: Run, trainer: Trainer, evidence: str) -> None:
    """The process is proven gone: once journaled, its agent need not say it again."""
    if not trainer.gone:
        desk.record(r.TrainerGone(run=run.run, trainer=trainer.trainer, evidence=evidence, at=desk.now))
    desk.send(trainer.node, m.ForgetTrainer(trainer=trainer.trainer))


def exit_text(status: int) -> str:
    """An exit status in words."""
    if status == EXIT_UNKNOWN:
        return "ended, how is unknown"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def said(desk: Desk, fact: m.TrainerSaid) -> bool:
    """A trainer's own fact. True where it may complete a verdict."""
    run, trainer = _lookup(desk, fact.run, fact.fact.trainer)
    inner = fact.fact
    if run is None or trainer is None or (run.state.ended and not isinstance(inner, LATE)):
        return False
    if isinstance(inner, UNDONE) and corruption.undone(run, trainer):
        return False
    if isinstance(inner, MEASURED):
        return _measured(desk, run, trainer, inner)
    match inner:
        case m.TrainerHello() | m.TrainerReady() | m.EpochJoined() | m.PeerDown():
            _standing_fact(desk, run, trainer, inner)
        case m.CheckpointCommitted() | m.CheckpointFailed() | m.CheckpointCopied() | m.CheckpointIntervalChosen():
            saved.said(desk, run, trainer, inner)
        case m.CopyProposed() | m.CopyWithdrawn():
            saved.said(desk, run, trainer, inner)
        case m.ServerReady():
            trainer.server, trainer.ready, run.start_failures = inner, True, 0
            trainer.host, trainer.port = inner.host, inner.port
            if run.state is RunState.PLACED:
                desk.record(r.RunServing(run=run.run, at=desk.now))
        case m.TrainerFinished() | m.TrainerFailed():
            _outcome(desk, run, trainer, inner)
        case _:
            assert_never(inner)
    desk.touch(run)
    settle(desk, run)
    return False


def _measured(desk: Desk, run: Run, trainer: Trainer, fact: Measured) -> bool:
    """What decides nothing by itself."""
    match fact:
        case m.StepCommitted():
            _committed(desk, run, trainer, fact)
            rebalance.committed(desk, run, trainer, fact)
        case m.ReplicaDigested():
            return corruption.digested(desk, run, fact)
        case m.LinksObserved():
            network.observed(desk, fact)
        case m.Waiting():
            return watching.waiting(desk, run, trainer, fact)
        case m.Busy():
            watching.busy(desk, trainer, fact)
        case _:
            assert_never(fact)
    return False


def _standing_fact(
    desk: Desk, run: Run, trainer: Trainer, fact: m.TrainerHello | m.TrainerReady | m.EpochJoined | m.PeerDown
) -> None:
    match fact:
        case m.TrainerHello():
            trainer.ready = trainer.ready or fact.ready
            trainer.missing_since = None
            began(desk, run, trainer, fact.pid, fact.start_ticks)
            if fact.epoch < run.epoch:
                desk.tell_membership(run, trainer)
        case m.TrainerReady():
            if not trainer.ready:
                desk.note(run.run, trainer.trainer, "ready", f"warm, listens at {fact.host}:{fact.port}")
            trainer.ready, trainer.host, trainer.port, trainer.doors = True, fact.host, fact.port, fact.doors
            run.start_failures = 0
        case m.EpochJoined():
            if fact.epoch > trainer.joined:
                desk.note(run.run, trainer.trainer, "joined", f"epoch {fact.epoch} from step {fact.step}")
                if fact.epoch == run.epoch:
                    network.joined(desk, run, fact)
                    run.comparisons.stood(fact.step - 1)
            trainer.joined = max(trainer.joined, fact.epoch)
        case m.PeerDown():
            _blame(desk, run, trainer, fact)
        case _:
            assert_never(fact)


def _blame(desk: Desk, run: Run, trainer: Trainer, fact: m.PeerDown) -> None:
    run.blames = [b for b in run.blames if desk.clock - b.at <= MEMORY_S]
    if fact.epoch != run.epoch:
        return
    run.blames.append(
        Blame(at=desk.clock, peer=fact.peer, epoch=fact.epoch, evidence=fact.evidence, by=trainer.trainer)
    )
    desk.note(
        run.run, fact.peer, "peer-down", f"{trainer.trainer} lost its connection in epoch {fact.epoch}: {fact.evidence}"
    )


def _committed(desk: Desk, run: Run, trainer: Trainer, fact: m.StepCommitted) -> None:
    watching.committed(desk, run, trainer, fact)
    run.losses = after_commit(run.losses, workers=run.size)
    run.step = max(run.step, fact.step)
    first = bool(run.members) and run.members[0].trainer == trainer.trainer
    if not first and not fact.metrics:
        return
    # Said again after a regroup or a reconnection: the first word on a step counts, unless a later epoch did it anew.
    if run.told.get(fact.step, NO_EPOCH) >= fact.epoch:
        return
    run.told.pop(fact.step, None)
    run.told[fact.step] = fact.epoch  # the newest word last, also on a step that is done again
    if len(run.told) > REMEMBERED_STEPS:
        del run.told[next(iter(run.told))]
    if fact.again:
        desk.note(
            run.run, run.run, "step-again", f"step {fact.step}: undone by a return to an earlier one, now done again"
        )
    if fact.metrics.get(m.SKIPPED):
        desk.note(
            run.run, run.run, "step-skipped", f"step {fact.step}: a loss or gradient was not finite, so no update"
        )
    elif odd := run.jumps.take(fact.grad_norm):
        desk.note(run.run, run.run, "gradient-jump", f"step {fact.step}: {odd}")
    if fact.backup:
        desk.note(run.run, run.run, "backup-workers", f"from step {fact.step} on: {fact.backup}")
    point = MetricPoint(
        step=fact.step,
        at=fact.at,
        step_s=fact.step_s,
        samples=fact.samples,
        members=len(run.members),
        epoch=fact.epoch,
        metrics=fact.metrics,
    )
    if run.last is None or (point.epoch, point.step) > (run.last.epoch, run.last.step):
        run.last, run.sync_bytes = point, fact.sync_bytes
        # A step that goes on without its slowest has fewer that count.
        run.batch = max(run.batch, fact.samples)
    desk.do(fx.ShowMetric(run=run.run, point=point))
    desk.touch(run)


def _outcome(desk: Desk, run: Run, trainer: Trainer, fact: m.TrainerFinished | m.TrainerFailed) -> None:
    if not trainer.active:
        return
    run.step = max(run.step, fact.step)
    if isinstance(fact, m.TrainerFinished):
        end = r.End.SUSPENDED if fact.suspended else r.End.FINISHED
        how = "it left" if fact.suspended else "its function returned"
        end_trainer(desk, run, trainer, end, f"{how} after step {fact.step}")
        return
    when = f" after step {fact.step}" if fact.step else ""
    reason = f"{fact.problem} ({fact.code}{when})"
    if fact.code in FATAL or fact.code not in EXIT_CODES:
        end_trainer(desk, run, trainer, r.End.FAILED, reason)
        begin_stop(
            desk, run, RunState.FAILED, brief(run.run, f"{trainer.trainer}: {reason}"), EXIT_CODES.get(fact.code, 2)
        )
    else:
        end_trainer(desk, run, trainer, r.End.LOST, reason, cause_of_failure(fact.code))
