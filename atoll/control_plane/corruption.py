"""What follows when replicas differ: who goes, which node is blamed, which steps are in doubt, and where a run goes back to.

A corrupt replica is lost like any other: the majority goes on and a spare takes its place. What the run committed since
its replicas last agreed holds gradients that were computed from the corrupt weights; all members applied the same sums,
so they are one state, but a tainted one. By default the story says so and the run goes on. With `corrupt="rollback"` it
returns to its newest checkpoint from before, and so it does where no majority can tell who is right, a few times. Without
such a checkpoint a divided run stops: to go on would be to choose a state by lot.
"""

from __future__ import annotations

from atoll.control_plane.desk import Desk
from atoll.control_plane.records import CheckpointKept, End, RunRewound
from atoll.control_plane.settle import begin_stop, end_trainer
from atoll.control_plane.state import Run, Trainer
from atoll.errors import InternalError
from atoll.fault.budgets import Cause
from atoll.fault.facts import Digest
from atoll.fault.replicas import Comparisons, odd_ones
from atoll.fault.verdicts import Corrupt, Divided
from atoll.schema.ids import Step, TrainerId
from atoll.schema.messages import ReplicaDigested
from atoll.schema.spec import ROLLBACK
from atoll.schema.views import RunState

# Once is a cosmic ray; a host whose memory did it twice does it again.
BLAMED_AFTER = 2
# For the rest of nearly any run; who repairs a host restarts it, and with it its name.
BLAMED_S = 7 * 24 * 3600.0
# Where nobody can be named, nobody is replaced: what divides replicas again and again, between the same two
# checkpoints, is the program or a host that stays.
RETURNS = 3


def digested(desk: Desk, run: Run, fact: ReplicaDigested) -> bool:
    """A member tells what it holds. True where that completes a comparison that calls for a verdict."""
    told = Digest(trainer=fact.trainer, numeric=fact.numeric, value=fact.weights, rest=fact.rest, shard=fact.shard)
    compared = run.comparisons.take(fact.epoch, fact.step, fact.of, told)
    if compared is None:
        return False
    if run.comparisons.found is compared:
        return True
    odd = odd_ones(compared.digests)
    if odd and not run.comparisons.rest_differs:
        run.comparisons.rest_differs = True
        which = f"{', '.join(odd)} differ{'s' * (len(odd) == 1)}"
        text = (
            f"after step {fact.step} buffers or frozen parameters of {which} from the others'; the weights are the same"
        )
        desk.note(run.run, run.run, "buffers-differ", text)
    return False


def corrupt(desk: Desk, run: Run, verdict: Corrupt) -> None:
    """The majority says who is wrong."""
    run.comparisons.concluded()
    if run.state is not RunState.RUNNING:
        return
    members = set(run.member_ids())
    for name in verdict.trainers:
        trainer = run.trainers[name]
        cause = Cause.HARDWARE if trainer.flipped else Cause.CORRUPT
        end_trainer(desk, run, trainer, End.LOST, f"corrupt: {verdict.evidence}", cause)
        _blame(desk, run, name, members)
    back = _checkpoint(run, verdict.agreed) if run.spec.corrupt == ROLLBACK and not run.finished() else None
    if back is not None:
        _rewind(desk, run, back, verdict.evidence)
        return
    names = ", ".join(verdict.trainers)
    since = f"{verdict.agreed + 1}" if verdict.agreed else "1 (none was compared before)"
    wish = "; no checkpoint that is kept is from before" if run.spec.corrupt == ROLLBACK else ""
    text = f"steps {since} to {verdict.step} hold gradients that {names} may have computed from corrupt weights{wish}"
    desk.note(run.run, run.run, "tainted", text)


def divided(desk: Desk, run: Run, verdict: Divided) -> None:
    """Nobody can tell who is wrong."""
    run.comparisons.concluded()
    if run.state is not RunState.RUNNING:
        return
    back = _checkpoint(run, verdict.agreed)
    returns = run.rewinds if back is not None and run.rewound is not None and run.rewound.step == back.step else 0
    if run.spec.corrupt == ROLLBACK and back is not None and returns < RETURNS and not run.finished():
        _rewind(desk, run, back, verdict.evidence)
        return
    known = (
        f"the checkpoint of step {back.step} is from before ({back.path})"
        if back is not None
        else "no checkpoint is known to be from before"
    )
    known += f", and it went back there {returns} times" if returns else ""
    reason = f"its replicas differ and nobody can tell which is right: {verdict.evidence}; {known}"
    begin_stop(desk, run, RunState.FAILED, reason, InternalError.exit_code)


def undone(run: Run, trainer: Trainer) -> bool:
    """Whether the trainer's part ended before the run went back: what it tells now is of steps that do not count."""
    return run.rewound is not None and trainer.ended is not None and trainer.ended.at <= run.rewound.at


def _blame(desk: Desk, run: Run, name: TrainerId, members: set[TrainerId]) -> None:
    node = run.trainers[name].node
    times = sum(1 for loss in run.losses if loss.cause is Cause.CORRUPT and loss.node == node)
    if times >= BLAMED_AFTER and any(run.trainers[t].node != node for t in members):
        run.avoided[node] = desk.clock + BLAMED_S
        desk.room_changed = True
        desk.note(
            run.run, node, "avoided", f"{times} replicas of this run became corrupt there; it takes no more of it"
        )


def _checkpoint(run: Run, agreed: int) -> CheckpointKept | None:
    """The newest checkpoint of a step after which, or after a later one, all replicas held the same."""
    return max((c for c in run.kept if c.step <= agreed), key=lambda c: c.step, default=None)


def _rewind(desk: Desk, run: Run, back: CheckpointKept, reason: str) -> None:
    """All begin anew from `back`: spares too, as each was told at its start what to begin from."""
    desk.record(RunRewound(run=run.run, step=back.step, path=back.path, epoch=run.epoch, reason=reason, at=desk.now))
    run.comparisons = Comparisons(agreed=back.step)
    run.step, run.last = Step(back.step), None
    # What is shown of later steps never happened.
    run.saved, run.copies = None, {step: view for step, view in run.copies.items() if step <= back.step}
    for trainer in run.active():
        end_trainer(desk, run, trainer, End.REWOUND, f"the run goes back to step {back.step}")
