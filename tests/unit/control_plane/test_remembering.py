"""What a control plane remembers of losses when it starts anew, and of a run that ended."""

import pytest
from imagined_failures import RUN, Cluster

from atoll.control_plane import events as ev
from atoll.fault.budgets import Cause
from atoll.schema import messages as m
from atoll.schema.views import RunState


@pytest.fixture
def cluster():
    found = Cluster(nodes=("h", "a1", "a2", "a3", "a4"), workers=3)
    found.go(5)
    return found


def starve(cluster, short):
    """The kernel kills a worker for memory."""
    proc = cluster.proc(short)
    cluster.end(proc, status=-9)
    queue = cluster.hosts[proc.node].queue
    exited = next(f for f in queue if isinstance(f, m.TrainerExited))
    queue[queue.index(exited)] = m.TrainerExited(
        trainer=exited.trainer, run=RUN, pid=1, exit_status=-9, out_of_memory=True
    )


def causes(cluster):
    return [loss.cause for loss in cluster.run.losses]


def test_memory_that_ran_out_is_remembered_over_commits_and_not_over_a_restart(cluster):
    starve(cluster, "t1")
    cluster.go(8)
    assert causes(cluster) == [Cause.MEMORY]
    cluster.restart()
    assert causes(cluster) == []


def test_memory_that_runs_out_after_each_of_two_restarts_ends_no_run(cluster):
    for victim in ("t1", "t2"):
        cluster.restart()
        cluster.go(1)
        cluster.run.step = 0  # steps are long: none was told yet
        starve(cluster, victim)
        cluster.tick()
        assert cluster.run.losses[-1].step == 1
        cluster.go(8)
    assert cluster.run.state is RunState.RUNNING


def test_corruption_is_remembered_over_commits_and_a_restart(cluster):
    cluster.flip("t1")
    cluster.go(8)
    assert causes(cluster) == [Cause.CORRUPT]
    before = cluster.run.losses
    cluster.restart()
    assert cluster.run.losses == before


def test_losses_that_a_commit_would_forget_are_forgotten_by_a_restart(cluster):
    cluster.kill("t1")
    cluster.go(0.2)
    assert causes(cluster) == [Cause.HARDWARE]
    cluster.restart()
    assert causes(cluster) == []


def test_run_that_ended_keeps_little_of_what_it_was_judged_by(cluster):
    cluster.kill("t1")
    cluster.go(20)
    assert len(cluster.run.told) > 64
    cluster.kill("t0")
    cluster.go(0.2)
    run = cluster.run
    assert run.losses
    assert run.blames
    assert run.comparisons.agreed
    cluster.do(ev.StopAsked(request="s", run=RUN, reason="enough"))
    cluster.go(60)
    assert run.state is RunState.STOPPED
    assert len(run.told) == 64
    assert max(run.told) == run.step
    assert run.speeds.rows == ()
    assert run.pace.p99_s is None
    assert all(t.process is None for t in run.trainers.values())
    assert (run.losses, run.blames, run.comparisons.agreed) == ([], [], 0)


def test_steps_that_were_done_again_are_the_newest_words(cluster):
    cluster.go(20)
    redone = cluster.run.step - 50
    first, epoch = cluster.run.member_ids()[0], cluster.run.epoch
    cluster.run.epoch = epoch + 1  # as after a return to an earlier step
    fact = m.StepCommitted(trainer=first, step=redone, epoch=epoch + 1, at=0.0, step_s=0.1, samples=1, again=True)
    cluster.do(ev.AgentSaid(node="a1", fact=m.TrainerSaid(run=RUN, fact=fact)))
    assert list(cluster.run.told)[-1] == redone


def test_step_that_is_told_again_after_the_end_is_no_news(cluster):
    cluster.go(20)
    first, epoch = cluster.run.member_ids()[0], cluster.run.epoch
    cluster.do(ev.StopAsked(request="s", run=RUN, reason="enough"))
    cluster.go(60)
    assert cluster.run.state.ended
    last, notes = cluster.run.last, len(cluster.notes)
    fact = m.StepCommitted(trainer=first, step=last.step, epoch=epoch, at=0.0, step_s=0.1, samples=1, again=True)
    cluster.do(ev.AgentSaid(node="a1", fact=m.TrainerSaid(run=RUN, fact=fact)))
    assert cluster.run.last == last
    assert len(cluster.notes) == notes
