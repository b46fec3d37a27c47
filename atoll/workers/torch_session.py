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

import torch

from atoll.errors import InternalError, StateError, UserError
from atoll.fault.inject import failpoint
from atoll.schema.codec import decode_as, encode
from atoll.schema.ids import Epoch
from atoll.schema.ids import Step as StepNumber
from atoll.schema.messages import EpochJoined
from atoll.workers.account import plan_line
from atoll.workers.data import Rows
from atoll.workers.epoch_runtime import EpochLink
from atoll.workers.fs_account import AccountFile
from atoll.workers.host import Host
from atoll.workers.outcome_runtime import Outcomes
from atoll.workers.peers import Comm, Connect, completed
from atoll.workers.regroup import Decision, Report, decide
from atoll.workers.samples import Plan, share
from atoll.workers.saving_runtime import Saving, flat_state, load_flat
from atoll.workers.torch_engine import Engine, Parts, Standing
from atoll.workers.torch_loader import Loader, LocalLoader, SpawnedLoader, Spot, check_rows
from atoll.workers.torch_managed import Managed
from atoll.workers.torch_regroup import receive_state, send_state
from atoll.workers.torch_step import Step
from atoll.workers.transaction import StepEvent, StepState

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
        self._host = host
        self._account = AccountFile(host.identity.run_dir, host.identity.trainer)
        self._outcomes = Outcomes(host, self._account)
        self._shares: tuple[range, ...] = ()
        self._plan: Plan | None = None
        self._loader: Loader | None = None
        self._engine: Engine | None = None
        self._open: Step | None = None

    # -- the loop ------------------------------------------------------------------------------------------------------

    def begin(self, rows: Rows, plan: Plan, loaders: int) -> None:
        """The managed objects are complete and the data known: ready for a membership."""
        if self._plan is not None:
            raise UserError(
                "a run has one ctx.steps loop: a worker that joins later could not find its place in a second"
            )
        if not self.managed.modules:
            raise StateError("nothing to train: call ctx.manage(model=..., optimizer=...) before ctx.steps")
        check_rows(rows)
        flat_state(self.managed.state(), plan, 0)  # refuse what cannot be saved now, not at the first checkpoint
        self._plan = plan
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
        )
        self._engine = Engine(parts, self.device, self._resolve)

    def steps(self) -> Iterator[Step]:
        """The steps to try, until the last is settled on all members."""
        plan, engine = self._begun()
        while True:
            if not self.link.joined:
                self._regroup(None)
            self._outcomes.settle()
            if self.link.comm.size > 1:
                self._host.heard()
            if self.standing.stopping or self.standing.committed >= plan.steps:
                break
            self._open = engine.make(self._shares[self.link.comm.rank])
            yield self._open
            self._pass_boundary(engine)
        self._drain()

    def _pass_boundary(self, engine: Engine) -> None:
        step, self._open = self._open, None
        if step is not None:
            engine.boundary(step)

    def _drain(self) -> None:
        while not self._outcomes.drain():
            self._regroup(None)

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
    def _update(self) -> Iterator[None]:
        if self._engine is None:
            raise UserError("a managed optimizer.step belongs inside `with step:` of ctx.steps")
        with self._engine.update():
            yield

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
        while True:
            comm = self.link.join()
            failpoint("in-regroup")
            work = comm.all_gather(encode(self._report(comm, in_doubt)))
            if not completed(work):
                continue
            decision = decide([decode_as(Report, payload) for payload in work.result])
            if self._follow(decision, comm, in_doubt):
                break
        self.standing.stopping = self.standing.stopping or decision.stopping
        if in_doubt is not None and _is_open(in_doubt):
            engine.commit_as(in_doubt, StepEvent.APPLY, decision.sums)
        self._shares = share(plan.grains, [m.weight for m in comm.members])
        if self._loader is not None:
            self._loader.restart()
        self._outcomes.regrouped(comm, self.standing.committed, decision.unsettled)
        self.saving.regrouped(comm)
        self._host.tell(
            EpochJoined(
                trainer=self._host.identity.trainer,
                epoch=Epoch(comm.epoch),
                step=StepNumber(self.standing.committed + 1),
            )
        )

    def _report(self, comm: Comm, in_doubt: Step | None) -> Report:
        standing = self.standing
        return Report(
            rank=comm.rank,
            has_state=standing.has_state,
            committed=standing.committed,
            prepared=in_doubt.index if in_doubt is not None and _is_open(in_doubt) else None,
            stopping=standing.stopping,
            sums=standing.sums,
            unsettled=self._outcomes.unsettled,
        )

    def _follow(self, decision: Decision, comm: Comm, in_doubt: Step | None) -> bool:
        """Do this member's part. False when the epoch ended meanwhile.

        A step in doubt that is to be applied stays in doubt here: its update comes after the regroup, and until then
        this member must not pass for a holder of the newer state.
        """
        plan, engine = self._begun()
        if in_doubt is not None and _is_open(in_doubt) and comm.rank not in decision.apply:
            engine.abandon(in_doubt)
        if decision.fresh and comm.rank == decision.source:
            # One member reads and sends to the others: two might find two different checkpoints to be the newest.
            self._hold(self.saving.restore(self.managed, plan), plan)
        if decision.receive and comm.rank == decision.source:
            return send_state(comm, flat_state(self.managed.state(), plan, self.standing.committed), decision.receive)
        if comm.rank in decision.receive:
            flat = receive_state(comm, decision.source)
            if flat is None:
                return False
            self._hold(load_flat(flat, self.managed, plan), plan)
        return True

    def _hold(self, step: int, plan: Plan) -> None:
        """This member has the state after `step` now."""
        self.standing.has_state = True
        self.standing.committed = step
        self._account.write(plan_line(plan, begin=step, epoch=self.link.epoch))


def _is_open(step: Step) -> bool:
    return step.transaction.state is StepState.IN_DOUBT
