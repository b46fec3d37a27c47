"""Any schedule of joins and losses: the samples of committed steps are those of an undisturbed run.

A run is played with the pure parts alone (samples, share, transaction, regroup, account): every member is what a session
keeps between calls, the schedule says who dies when, who learns the vote's outcome, and who joins.
"""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.workers.account import committed_line, fed_line, merge, plan_line
from atoll.workers.regroup import Report, decide
from atoll.workers.samples import Plan, share
from atoll.workers.transaction import StepEvent, StepState, Transaction


@dataclass
class Trainer:
    name: int
    weight: float
    committed: int = 0
    has_state: bool = False
    open: Transaction | None = None
    waiting: list = None

    def report(self, rank):
        doubtful = self.open is not None and self.open.state is StepState.IN_DOUBT
        return Report(
            rank=rank,
            has_state=self.has_state,
            committed=self.committed,
            prepared=self.open.step if doubtful else None,
            unsettled=tuple((step, epoch, 0) for step, epoch in self.waiting),
        )

    def commit(self, event):
        self.open = self.open.after(event)
        self.committed = self.open.step
        self.waiting.append((self.open.step, self.open.epoch))


class Run:
    def __init__(self, plan, weights):
        self.plan, self.epoch, self.made = plan, 0, 0
        self.lines = [plan_line(plan, begin=0, epoch=1)]
        self.members = []
        self.join(weights)

    def join(self, weights):
        for weight in weights:
            self.members.append(Trainer(name=self.made, weight=weight, waiting=[]))
            self.made += 1

    def settle(self, trainer):
        """This member learnt that all members of its epoch know: effects become visible."""
        self.lines += [committed_line(step, epoch, 0) for step, epoch in trainer.waiting]
        trainer.waiting = []

    def regroup(self):
        self.epoch += 1
        decision = decide([t.report(r) for r, t in enumerate(self.members)])
        for rank, trainer in enumerate(self.members):
            doubtful = trainer.open is not None and trainer.open.state is StepState.IN_DOUBT
            if rank in decision.apply:
                trainer.commit(StepEvent.APPLY)
            elif doubtful:
                trainer.open = trainer.open.after(StepEvent.DISCARD)
            if rank in decision.receive or decision.fresh:
                trainer.committed, trainer.has_state = decision.step, True
            assert trainer.committed == decision.step
            trainer.waiting = sorted({*trainer.waiting, *((step, epoch) for step, epoch, _ in decision.unsettled)})

    def try_step(self, fate):
        """One try. Those who die before their vote end the try; others may learn its outcome or not."""
        step = self.members[0].committed + 1
        grains = share(self.plan.grains, [t.weight for t in self.members])
        for rank, trainer in enumerate(self.members):
            trainer.open = Transaction(step=step, epoch=self.epoch)
            ids = [i for g in grains[rank] for i in self.plan.grain(step, g)]
            if fate.fed(rank):
                self.lines.append(fed_line(step, self.epoch, 0, ids))
                trainer.open = trainer.open.after(StepEvent.CAST)
        everyone = all(t.open.state is StepState.PREPARED for t in self.members)
        for rank, trainer in enumerate(self.members):
            if everyone and fate.learns(rank):
                trainer.commit(StepEvent.PASSED)
            else:
                trainer.open = trainer.open.after(StepEvent.EPOCH_ENDED)
        all_know = all(t.committed == step for t in self.members)
        for rank, trainer in enumerate(self.members):
            if all_know and fate.acknowledged(rank):
                self.settle(trainer)
        return all_know and not fate.dies and not fate.joins

    def change(self, fate):
        survivors = [t for r, t in enumerate(self.members) if r not in fate.dies]
        self.members = survivors
        self.join(fate.joins)
        if not survivors or fate.front:
            self.members = [*self.members[len(survivors) :], *survivors]
        self.regroup()
        if fate.closes:
            for trainer in self.members:
                self.settle(trainer)


@dataclass
class Fate:
    dies: frozenset
    silent: frozenset
    deaf: frozenset
    late: frozenset
    joins: list
    front: bool
    closes: bool

    def fed(self, rank):
        return not (rank in self.silent and (self.dies or self.joins))

    def learns(self, rank):
        return rank not in self.deaf or not (self.dies or self.joins)

    def acknowledged(self, rank):
        return rank not in self.late


RANKS = st.frozensets(st.integers(0, 4), max_size=4)
FATES = st.builds(
    Fate,
    dies=RANKS,
    silent=RANKS,
    deaf=RANKS,
    late=RANKS,
    joins=st.lists(st.sampled_from([0.5, 1.0, 2.0]), max_size=2),
    front=st.booleans(),
    closes=st.booleans(),
)
CALM = Fate(frozenset(), frozenset(), frozenset(), frozenset(), [], front=False, closes=True)


@settings(max_examples=120, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=5),
    fates=st.lists(FATES, max_size=12),
    size=st.integers(5, 60),
    grains=st.integers(1, 6),
)
def test_samples_of_commits_are_those_of_an_undisturbed_run(weights, fates, size, grains):
    plan = Plan(seed=7, size=size, global_batch=2 * grains, micro_batch=2, steps=40)
    run = Run(plan, weights)
    run.regroup()
    for fate in fates:
        # Who holds state cannot all be lost: that is a checkpoint's matter.
        if {r for r in range(len(run.members)) if r not in fate.dies} and not run.try_step(fate):
            run.change(fate)
    run.try_step(CALM)
    run.regroup()
    for trainer in run.members:
        run.settle(trainer)
    account = merge(run.lines)
    assert account.steps == run.members[0].committed
    assert (account.lost, account.repeated, account.gaps, account.problems) == (0, 0, (), ())


@given(
    before=st.lists(st.sampled_from([1.0, 3.0]), min_size=1, max_size=6),
    after=st.lists(st.sampled_from([1.0, 3.0]), min_size=1, max_size=6),
    step=st.integers(1, 1000),
)
def test_samples_of_a_step_do_not_depend_on_the_members(before, after, step):
    plan = Plan(seed=1, size=997, global_batch=24, micro_batch=3, steps=2000)
    fed = [[i for own in share(plan.grains, w) for g in own for i in plan.grain(step, g)] for w in (before, after)]
    assert fed[0] == fed[1] == list(plan.samples(step))
