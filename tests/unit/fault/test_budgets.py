import pytest

from atoll.fault.budgets import Cause, Loss, after_commit, allowed, cause_of_exit, cause_of_failure, verdict


def loss(cause, *, trainer="t1", step=5, epoch=1, reason="boom"):
    return Loss(trainer=trainer, cause=cause, step=step, epoch=epoch, reason=reason)


@pytest.mark.parametrize(
    ("status", "oom", "cause"),
    [
        (-9, False, Cause.HARDWARE),
        (-15, False, Cause.HARDWARE),
        (255, False, Cause.HARDWARE),
        (-9, True, Cause.MEMORY),
        (-11, False, Cause.CRASH),
        (-6, False, Cause.CRASH),
        (1, False, Cause.CRASH),
        (0, False, Cause.CRASH),
    ],
)
def test_exit_status_tells_its_cause(status, oom, cause):
    assert cause_of_exit(status, out_of_memory=oom) is cause


def test_error_code_tells_its_cause():
    assert cause_of_failure("out-of-memory") is Cause.MEMORY
    assert cause_of_failure("peer-lost") is Cause.HARDWARE


def test_hardware_losses_are_borne_generously():
    many = [loss(Cause.HARDWARE) for _ in range(23)]
    assert verdict(many, workers=4) == ""
    assert verdict([*many, many[0]], workers=4).startswith("24 trainers were lost without one step committed")


def test_crashes_are_borne_once_for_each_worker():
    crashes = [loss(Cause.CRASH, trainer=f"t{i}") for i in range(5)]
    assert verdict(crashes[:4], workers=4) == ""
    assert verdict(crashes, workers=4).endswith("last t4 in step 5: boom")


def test_causes_have_budgets_of_their_own():
    mixed = [loss(Cause.CRASH) for _ in range(4)] + [loss(Cause.HARDWARE) for _ in range(23)]
    assert verdict(mixed, workers=4) == ""
    assert allowed(Cause.MEMORY, 4) < allowed(Cause.CRASH, 4) < allowed(Cause.HARDWARE, 4)


def test_memory_that_runs_out_in_the_same_step_twice_ends_the_run():
    first = loss(Cause.MEMORY, step=100)
    assert verdict([first], workers=4) == ""
    again = loss(Cause.MEMORY, trainer="t7", step=100, epoch=2, reason="killed by SIGKILL for memory")
    told = verdict([first, again], workers=4)
    assert told.startswith("out of memory in step 100 twice: t1 (boom), then t7 (killed by SIGKILL for memory)")
    assert "smaller micro_batch" in told


def test_memory_that_runs_out_in_other_steps_does_not():
    assert verdict([loss(Cause.MEMORY, step=s, epoch=s) for s in (10, 20, 30)], workers=4) == ""


def test_several_victims_of_one_shortage_count_once():
    assert verdict([loss(Cause.MEMORY, trainer=t) for t in ("t1", "t2", "t3")], workers=4) == ""


def test_memory_that_runs_out_on_all_workers_at_once_ends_the_run():
    told = verdict([loss(Cause.MEMORY, trainer=t) for t in ("t1", "t2")], workers=2)
    assert told.startswith("out of memory in step 5 on all 2 workers")


def test_only_memory_is_remembered_across_commits():
    losses = [loss(Cause.HARDWARE), loss(Cause.MEMORY), loss(Cause.CRASH)]
    assert [x.cause for x in after_commit(losses, workers=4)] == [Cause.MEMORY]


def test_replicas_that_differ_wherever_they_run_end_it_though_steps_are_committed_between():
    differ = [loss(Cause.CORRUPT, trainer=f"t{i}", step=100 * i) for i in range(12)]
    assert verdict(after_commit(differ[:11], workers=4), workers=4) == ""
    assert "12 replicas came to differ from the others, last t11" in verdict(after_commit(differ, workers=4), workers=4)


@pytest.mark.parametrize("workers", [1, 15, 200])
def test_budget_of_corruption_can_be_used_up_by_however_many_workers(workers):
    losses = []
    for i in range(allowed(Cause.CORRUPT, workers)):
        assert verdict(losses, workers=workers) == ""
        starved = [loss(Cause.MEMORY, step=1000 * i + 10 * j, epoch=j) for j in range(10)]
        losses = after_commit([*losses, loss(Cause.CORRUPT, step=i), *starved, loss(Cause.CRASH)], workers=workers)
    assert "replicas came to differ" in verdict(losses, workers=workers)
    longer = after_commit([*losses, *losses, *losses], workers=workers)
    assert len(longer) <= 32 + max(allowed(Cause.CORRUPT, workers), 32)


def test_replicas_that_differ_once_in_a_long_while_are_borne():
    differ = [loss(Cause.CORRUPT, step=1000 * i) for i in range(12)]
    assert verdict(differ, workers=4) == ""
