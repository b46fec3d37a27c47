"""The training session of one trainer: its loop over steps, and how it finds together with new members (law 1, 2, 6).

Between steps, and wherever a step was left in doubt, the session joins the newest epoch (`EpochLink.join`), tells the
others what it knows, and follows what `regroup.decide` concludes from all reports: apply or discard the step in doubt,
send or receive state. The acknowledgement that follows closes the regroup: when it completes, everything committed
before is settled on all members. If the epoch ends during any of this, the same begins again in the next, with the same
report: nothing is forgotten before the round that makes it superfluous.

One main thread does all this; the link thread only aborts communicators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from atoll.checkpoint.torch_state import Flat
from atoll.errors import DeviceError, InternalError, StateError, UserError
from atoll.fault.backup import Backup
from atoll.fault.inject import failpoint, offer
from atoll.schema.codec import decode_as, encode
from atoll.schema.ids import Epoch
from atoll.schema.ids import Step as StepNumber
from atoll.schema.messages import EpochJoined
from atoll.workers.account import plan_line
from atoll.workers.busy_runtime import FIRST_STEP, FIRST_STEP_S, Announcements
from atoll.workers.data import Rows
from atoll.workers.epoch_runtime import EpochLink
from atoll.workers.fs_account import AccountFile
from atoll.workers.host import Host
from atoll.workers.outcome_runtime import Outcomes
from atoll.workers.peers import Comm, Connect, completed
from atoll.workers.regroup import Decision, Report, decide
from atoll.workers.samples import Plan, share
from atoll.workers.saving_runtime import Saving, flat_state, load_flat, with_standing
from atoll.workers.torch_backup import Backups
from atoll.workers.torch_engine import Engine
from atoll.workers.torch_learning import Classroom
from atoll.workers.torch_loader import Loader, LocalLoader, SpawnedLoader, Spot, check_rows
from atoll.workers.torch_managed import Managed
from atoll.workers.torch_parts import Parts, Standing, Suspended
from atoll.workers.torch_regroup import receive_state, send_state
from atoll.workers.torch_replicas import Replicas
from atoll.workers.torch_step import Step
from atoll.workers.transaction import StepEvent, StepState

if TYPE_CHECKING:
    from atoll.checkpoint.torch_read import Take
    from atoll.workers.torch_built import Build, Built
    from atoll.workers.torch_sharded import Sharded

# The acknowledgement of the step before is a message already on its way, or its sender is gone.
_LAST_WORDS_S = 2.0


class Session:
    """Everything between the user's function and its peers."""

    def __init__(self, host: Host, connect: Connect, device: torch.device) -> None:
        self.device = device
        self.managed = Managed(device, self._update)
        self.saving = Saving(host)
        self.standing = Standing()
        self.link = EpochLink(host, connect)
        self.announcements = Announcements(host)
        self.classroom = Classroom(self.managed, self.announcements)
        self.replicas = Replicas(host, self.managed, device)
        self._host = host
        self._account = AccountFile(host.identity.run_dir, host.identity.trainer)
        self._outcomes = Outcomes(host, self._account)
        self._shares: tuple[range, ...] = ()
        self._plan: Plan | None = None
        self._loader: Loader | None = None
        self._engine: Engine | None = None
        self._open: Step | None = None
        self._waited_s = 0.0
        self.sharded: Sharded | None = None
        self._secure = False
        self.suspended = False
        self._backups = Backups()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def begin(self, rows: Rows, plan: Plan, loaders: int, backup: Backup = 0) -> None:
        """The managed objects are complete and the data known: ready for a membership."""
        if self._plan is not None:
            raise UserError(
                "a run has one ctx.steps loop: a worker that joins later could not find its place in a second"
            )
        if not self.managed.modules and self.sharded is None:
            raise StateError("nothing to train: call ctx.manage(model=..., optimizer=...) before ctx.steps")
        check_rows(rows)
        if self.sharded is None:
            flat_state(self.managed.state(), plan, 0)  # refuse what cannot be saved now, not at the first checkpoint
        if self.sharded is not None and backup != 0:
            raise UserError(f"backup={backup!r}: every worker needs every other where they hold one model together")
        self._plan, self._backups = plan, Backups(backup)
        self.replicas.begin()
        if self._host.identity.spec.chaos:
            offer(self.managed.flip_bit)
        self._outcomes.tokens_per_row = getattr(rows, "tokens_per_row", 0)
        self._loader = SpawnedLoader(rows, plan, loaders, self._following) if loaders else LocalLoader(rows, plan)
        parts = Parts(
            host=self._host,
            link=self.link,
            plan=plan,
            managed=self.managed,
            loader=self._loader,
            saving=self.saving,
            account=self._account,
            outcomes=self._outcomes,
            standing=self.standing,
            announcements=self.announcements,
            classroom=self.classroom,
            replicas=self.replicas,
            backups=self._backups,
            sharded=self.sharded,
        )
        self._engine = Engine(parts, self.device, self._resolve)

    def steps(self) -> Iterator[Step]:
        """The steps to try, until the last is settled on all members."""
        plan, engine = self._begun()
        begun = False
        while True:
            if not self.link.joined:
                self._regroup(None)
            if self.classroom.learners and not self._learn_on(plan):
                continue
            self._outcomes.settle()
            if self.link.comm.size > 1:
                self._host.heard()
            if self.standing.stopping or self.standing.committed >= plan.steps:
                if self._is_secure() and self._outcomes.drain():
                    self._suspend(plan)
                    break
                self._regroup(None)  # which may lead back to an earlier step
                continue
            if not begun:
                begun = True
                self.announcements.begin(FIRST_STEP, FIRST_STEP_S)
            self._open = self._next(engine)
            yield self._open
            self._pass_boundary(engine)

    def _suspend(self, plan: Plan) -> None:
        """What the program does after its loop is for the end of the run, which this is not."""
        if self.standing.suspending and self.standing.committed < plan.steps:
            self.suspended = True
            raise Suspended

    def _next(self, engine: Engine) -> Step:
        mine = self._shares[self.link.comm.rank]
        padding = 0 if self.sharded is None else max(map(len, self._shares)) - len(mine)
        return engine.make(mine, padding)

    def _pass_boundary(self, engine: Engine) -> None:
        step, self._open = self._open, None
        if step is not None:
            engine.boundary(step)
            self._waited_s = step.wait_s

    def _drain(self) -> None:
        """Until every step is settled, and no loss takes one back."""
        while not (self._is_secure() and self._outcomes.drain()):
            self._regroup(None)

    def _is_secure(self) -> bool:
        """Whether the copies of a sharded model are of its last state. False when the epoch ended."""
        if self.sharded is not None and self.standing.has_state and not self._secure:
            self._secure = self.link.joined and self.sharded.secure(self.standing.committed)
            return self._secure
        return True

    def finish(self) -> None:
        """After the user's function: leave together. Members that joined meanwhile stop where this one did."""
        if self._engine is not None:
            if self._open is not None and self._open.entered:
                self._pass_boundary(self._engine)
            self.standing.stopping = True
            self._drain()
            if self.link.joined:
                self._engine.leave()
        self.link.leave()
        self.saving.finish()

    def settle_what_is_decided(self) -> None:
        """Before a failure is told: show the steps that came before it, if the members that voted for them still say so."""
        self._outcomes.settle(within_s=_LAST_WORDS_S)

    def close(self) -> None:
        """Let go of everything."""
        self.link.close()
        if self._loader is not None:
            self._loader.close()
        if self._engine is not None:
            self._engine.shut()
        self.saving.close()
        self._account.close()

    def _begun(self) -> tuple[Plan, Engine]:
        if self._plan is None or self._engine is None:
            raise InternalError("the session has not begun: ctx.steps was not entered")
        return self._plan, self._engine

    @contextlib.contextmanager
    def _update(self, optimizer: Optimizer) -> Iterator[bool]:
        if self._engine is None:
            raise UserError("a managed optimizer.step belongs inside `with step:` of ctx.steps")
        with self._engine.update(optimizer) as wanted:
            yield wanted

    def _following(self, spot: Spot) -> Spot | None:
        """The grain that this rank computes after `spot`, as things stand."""
        plan, _ = self._begun()
        mine = self._shares[self.link.comm.rank]
        step, grain = spot
        if grain + 1 < mine.stop:
            return step, grain + 1
        return (step + 1, mine.start) if step < plan.steps and mine else None

    # -- regroup -------------------------------------------------------------------------------------------------------

    def _resolve(self, step: Step) -> None:
        self._regroup(step)

    def _regroup(self, in_doubt: Step | None) -> None:
        """Join the newest epoch and stand where all its members stand."""
        plan, engine = self._begun()
        self._secure = False
        while True:
            comm = self.link.join()
            failpoint("in-regroup")
            work = comm.all_gather(encode(self._report(comm, in_doubt, plan)))
            if not completed(work):
                continue
            reports = [decode_as(Report, payload) for payload in work.result]
            decision = decide(reports)
            self.classroom.close()
            self.replicas.regrouped(reports, decision, comm.rank, sharded=self.sharded is not None)
            self.standing.shown = max(self.standing.shown, decision.shown)
            if self._follow(decision, comm, in_doubt):
                break
        self.standing.stopping = self.standing.stopping or decision.stopping
        self.standing.suspending = self.standing.suspending or decision.suspending
        if in_doubt is not None and _is_open(in_doubt):
            engine.commit_as(in_doubt, StepEvent.APPLY, decision.sums)
        self._share_out(plan, comm)
        self._outcomes.regrouped(comm, self.standing.committed, decision.unsettled)
        self.saving.regrouped(comm, self.classroom.learners)
        self._host.tell(
            EpochJoined(
                trainer=self._host.identity.trainer,
                epoch=Epoch(comm.epoch),
                step=StepNumber(self.standing.committed + 1),
                detours=comm.detours(),
            )
        )

    def _report(self, comm: Comm, in_doubt: Step | None, plan: Plan) -> Report:
        standing = self.standing
        return Report(
            rank=comm.rank,
            has_state=standing.has_state,
            committed=standing.committed,
            prepared=in_doubt.index if in_doubt is not None and _is_open(in_doubt) else None,
            stopping=standing.stopping,
            suspending=standing.suspending,
            shown=max(standing.shown, standing.committed),
            sums=standing.sums,
            unsettled=self._outcomes.unsettled,
            state_bytes=self._size_of_state(plan) if standing.has_state and self.sharded is None else 0,
            replayable=self.sharded is None
            and self.managed.replayable
            and not standing.stopping
            and standing.committed < plan.steps,
            numeric=self.replicas.numeric,
        )

    def _size_of_state(self, plan: Plan) -> int:
        return flat_state(self.managed.state(), plan, 0).size_bytes()

    def _share_out(self, plan: Plan, comm: Comm) -> None:
        self._shares = share(plan.grains, self.classroom.weights(comm))
        self._backups.regrouped(comm, [len(s) for s in self._shares], self.standing.committed)
        if self._loader is not None:
            self._loader.restart()

    def _follow(self, decision: Decision, comm: Comm, in_doubt: Step | None) -> bool:
        """Do this member's part. False when the epoch ended meanwhile.

        A step in doubt that is to be applied stays in doubt here: its update comes after the regroup, and until then
        this member must not pass for a holder of the newer state.
        """
        plan, engine = self._begun()
        if in_doubt is not None and _is_open(in_doubt) and comm.rank not in decision.apply:
            engine.abandon(in_doubt)
        if self.sharded is not None:
            return self._follow_sharded(self.sharded, decision, comm, in_doubt)
        if decision.fresh and comm.rank == decision.source:
            # One member reads and sends to the others: two might find two different checkpoints to be the newest.
            self._hold(self.saving.restore(self.managed, plan, epoch=comm.epoch), plan)
        if decision.learn:
            return self._open_lessons(decision, comm, plan)
        if decision.receive and comm.rank == decision.source:
            return send_state(comm, flat_state(self.managed.state(), plan, self.standing.committed), decision.receive)
        if comm.rank in decision.receive:
            flat = receive_state(comm, decision.source)
            if flat is None:
                return False
            self._hold(self._load(flat, plan), plan)
        return True

    def shard(self, build: Build, size: int | None, copy_every: int) -> Built:
        """The model is `build`'s, sharded over `size` members (None: over all), and copied each `copy_every` steps."""
        if self.sharded is not None or self._plan is not None:
            raise StateError("ctx.manage(build) was called twice, or after ctx.steps; build everything in one function")
        if self.device.type != "cpu":
            raise DeviceError(f"a sharded model is trained on CPUs only so far, and this worker has {self.device}")

        from atoll.workers.torch_shard_access import Access  # noqa: PLC0415 - as below
        from atoll.workers.torch_sharded import Sharded  # noqa: PLC0415 - torch's sharding takes a second to import

        def state() -> dict[str, Any]:
            return with_standing(self.managed.state(), self._begun()[0], self.standing.committed)

        def load(flat: Flat) -> int:
            return self._load(flat, self._begun()[0])

        def found(epoch: int, take: Take) -> Flat | None:
            return self.saving.found(epoch=epoch, take=take)

        seed = self._host.identity.spec.seed
        access = Access(
            state=state, load=load, found=found, opened=self.saving.opened, before_change=self.saving.before_update
        )
        self.sharded = Sharded(build, size, self.managed, seed, access, copy_every=copy_every)
        return self.sharded.built

    def _follow_sharded(self, sharded: Sharded, decision: Decision, comm: Comm, in_doubt: Step | None) -> bool:
        """As `_follow`, where each member holds a shard. False when the epoch ended meanwhile."""
        from atoll.workers.torch_shard_access import Task  # noqa: PLC0415 - as in `shard`

        plan, engine = self._begun()
        step = in_doubt if in_doubt is not None and _is_open(in_doubt) else None

        def update_now() -> None:
            if step is not None:
                engine.update_now(step, decision.sums)

        def give_up() -> None:
            if step is not None:
                engine.abandon(step)

        task = Task(
            step=decision.step,
            fresh=decision.fresh,
            applying=step is not None,
            line=step.transaction.epoch if step is not None else 0,
            update_now=update_now,
            give_up=give_up,
        )
        stand = sharded.follow(comm, task)
        if sharded.take_new() or (stand is not None and stand != decision.step):
            engine.renew()
        if stand is None:
            return False
        self.replicas.shard = sharded.shard
        if not self.standing.has_state or stand != decision.step:
            self._hold(stand, plan)
        return True

    def _open_lessons(self, decision: Decision, comm: Comm, plan: Plan) -> bool:
        """Joiners learn while the others train on. False when the epoch ended meanwhile."""
        self.classroom.open(decision, comm)
        if comm.rank in decision.teachers:
            flat = flat_state(self.managed.state(), plan, self.standing.committed)
            return self.classroom.teach(decision, comm, flat)
        if comm.rank in decision.receive:
            begun = self.classroom.learn(decision, comm)
            if begun is None:
                return False
            self._hold(self._load(begun, plan), plan, whole=False)
        return True

    def _learn_on(self, plan: Plan) -> bool:
        """Between two steps of an epoch with learners. False when it ended meanwhile."""
        comm, standing = self.link.comm, self.standing
        last = standing.stopping or standing.committed >= plan.steps
        if not self.classroom.catch_up(waited_s=self._waited_s, last=last):
            return False
        due = self.classroom.due(last=last)
        if not due:
            return True
        flat = flat_state(self.managed.state(), plan, standing.committed)
        failed = self.classroom.examine(comm, flat, due)
        if failed is None or (failed and not self._give_whole(comm, flat, failed, plan)):
            return False
        if comm.rank in due:
            standing.has_state = True
            self.replicas.given(self.classroom.teacher, standing.committed)
        self._share_out(plan, comm)
        return True

    def _give_whole(self, comm: Comm, flat: Flat, failed: frozenset[int], plan: Plan) -> bool:
        """Replaying led elsewhere: those who failed get the state while all wait. False when the epoch ended."""
        if comm.rank == self.classroom.teacher:
            return send_state(comm, flat, sorted(failed))
        if comm.rank in failed:
            whole = receive_state(comm, self.classroom.teacher)
            if whole is None:
                return False
            self._load(whole, plan)
        return True

    def _load(self, flat: Flat, plan: Plan) -> int:
        """Fill the managed objects. The step of the state."""
        self.saving.before_update()  # a checkpoint of what is there may not be staged yet
        return load_flat(flat, self.managed, plan)

    def _hold(self, step: int, plan: Plan, *, whole: bool = True) -> None:
        """This member has the state after `step` now, or learns it from here on."""
        self.standing.has_state = whole
        self.standing.committed = step
        epoch = self.link.epoch
        self._account.write(plan_line(plan, begin=step, epoch=epoch, line=self.saving.line(epoch)))


def _is_open(step: Step) -> bool:
    return step.transaction.state is StepState.IN_DOUBT
