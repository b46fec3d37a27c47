"""`atoll chaos` against a cluster in memory that loses what it is told to hurt."""

import pytest

from atoll import cli_chaos
from atoll.schema.harm import Harm
from atoll.schema.spec import JobSpec

PLAN = '[[faults]]\nat_s = 0\nwhat = "kill"\nwhom = "rank 0"\n[[faults]]\nat_step = 3\nwhat = "stop"\nwhom = "spare"\n'


@pytest.fixture
def run(cluster, monkeypatch):
    """A run that trains, at step 4, and allows chaos."""
    monkeypatch.setattr(cli_chaos, "STEADY_STEPS", 0)
    monkeypatch.setattr(cli_chaos, "_TOLD_S", 0.0)
    return add_run(cluster, chaos=True)


def add_run(cluster, *, chaos):
    spec = JobSpec(name="tiny", working_dir="/w", file="train.py", workers=2, chaos=chaos)
    run = cluster.control._submit(spec)["run"]
    for step in range(1, 5):
        cluster.reader.commit(run, step, loss=1.0)
    return run


def harms(cluster):
    return [(b["wish"]["trainer"], Harm(b["wish"]["harm"])) for method, b in cluster.control.asked if method == "harm"]


def lose_what_is_hurt(cluster, run, text):
    """A harm is ordered at 5 s; new members commit step 9 at 9 s and one each second from then on."""
    answered = cluster.control.invoke

    async def invoke(method, body):
        if method == "harm" and cluster.reader.views[run].epoch == 1:
            cluster.reader.tell(run, body["wish"]["trainer"], "lost", text)
            cluster.reader.become(run, epoch=2)
            for step in range(9, 20):
                cluster.reader.commit(run, step, loss=1.0)
        return await answered(method, body)

    cluster.control.invoke = invoke


def test_plan_is_carried_out_and_says_what_it_did_to_whom(atoll, cluster, run, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    code, out, _ = atoll("chaos", "run", "plan.toml", run)
    assert code == 0
    first = next(t.trainer for t in cluster.reader.views[run].trainers if t.rank == 0)
    assert harms(cluster) == [(first, Harm.KILL)]
    assert f"kill {first}" in out
    assert "stop nobody (spare)" in out


def test_run_that_does_not_say_chaos_is_refused(atoll, cluster, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    run = add_run(cluster, chaos=False)
    for words in (("run", "plan.toml", run), ("table", run)):
        code, _, err = atoll("chaos", *words)
        assert code == 2
        assert "does not allow chaos" in err
    assert harms(cluster) == []


def test_plan_that_is_not_there_is_one_line(atoll, cluster, run):
    code, _, err = atoll("chaos", "run", "nowhere.toml", run)
    assert code != 0
    assert "cannot read the plan nowhere.toml" in err


def test_table_has_what_a_loss_cost(atoll, cluster, run):
    lose_what_is_hurt(cluster, run, "killed by SIGKILL")
    code, out, _ = atoll("chaos", "table", run, "--trials", "1", "--kind", "rank 0 SIGKILL")
    assert code == 0
    # The next commit came 4 s after the order; a step of the new members takes 1 s.
    assert "rank 0 SIGKILL: 3.00 s" in out


def test_kind_that_is_none_is_refused_with_those_that_are(atoll, cluster, run):
    code, _, err = atoll("chaos", "table", run, "--kind", "flood")
    assert code == 2
    assert "no kind 'flood'" in err
    assert "worker SIGKILL" in err
