import json

import pytest

from atoll import cli_sharing_tables as tables
from atoll.cli_sharing import read_sharing
from atoll.errors import SpecError
from atoll.schema.queues import Sharing
from atoll.schema.sharing_views import GoodputView, PlanView, QueueView, RejectedView, TopView, WhyView, YieldView
from atoll.schema.views import RunState

JOB = 'file = "train.py"\nworkers = "2..4"\npriority = 70\n'
QUEUES = """
[[flavor]]
name = "fast"
selector = { zone = ["x", "!y"] }
[[queue]]
name = "lab"
weight = 2.0
[[queue.quota]]
flavor = "fast"
gpus = 8
borrow_gpus = 4
[settings]
grow_after_s = 30.0
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "train.py").write_text("def train(ctx): ...\n")
    (tmp_path / "job.toml").write_text(JOB)
    return "job.toml"


def lines(found):
    return "\n".join(str(one) for one in found)


def test_plan_asks_for_the_job_of_the_file_and_says_what_would_be(atoll, cluster, job):
    code, out, _ = atoll("plan", job)
    assert (code, out.splitlines()[0]) == (0, "it starts now, with 2 workers")
    ((method, body),) = cluster.control.asked
    assert (method, body["spec"]["workers"], body["spec"]["min_workers"], body["spec"]["priority"]) == (
        "plan",
        4,
        2,
        70,
    )


def test_plan_of_what_can_never_run_fails(atoll, cluster, job, monkeypatch):
    from atoll.control_plane import rest_memory
    from atoll.schema.codec import to_plain

    never = PlanView(verdict="never", reason="5 CPU more are needed", queue="default", wanted=9)
    monkeypatch.setitem(rest_memory._FIXED, "plan", to_plain(never))
    code, out, _ = atoll("plan", job)
    assert code == 1
    assert "it can never run here\n  5 CPU more are needed" in out


def test_why_of_a_run_and_of_one_that_is_not_there(atoll, cluster, job):
    cluster.control._submit(_spec())
    assert "is running: queue default, priority 50" in atoll("why", cluster.only_run)[1]
    code, _, err = atoll("why", "nobody")
    assert (code, "no run 'nobody'" in err) == (2, True)


def test_top_once_shows_queues_runs_and_nodes(atoll, cluster):
    cluster.control._submit(_spec())
    out = atoll("top", "--once")[1]
    assert "QUEUE" in out
    assert cluster.only_run in out
    assert json.loads(atoll("top", "--json")[1])["queues"] == []


def test_wishes_reach_the_control_plane(atoll, cluster):
    cluster.control._submit(_spec())
    run = cluster.only_run
    assert (
        atoll("resize", run, "3")[1] == f"{run} goes on with 3 workers, with more than now as soon as there is room\n"
    )
    assert atoll("suspend", run)[0] == 0
    assert atoll("resume", run, "--reason", "now")[0] == 0
    assert cluster.control.asked == [
        ("resize", {"run": run, "workers": 3, "reason": "asked by `atoll resize`"}),
        ("suspend", {"run": run, "reason": "asked by `atoll suspend`"}),
        ("resume", {"run": run, "reason": "now"}),
    ]


def test_queues_are_read_from_a_file_and_set(atoll, cluster, tmp_path):
    (tmp_path / "queues.toml").write_text(QUEUES)
    assert atoll("queues", "set", "queues.toml")[1] == "queues: lab\n"
    ((method, body),) = cluster.control.asked
    assert (method, body["sharing"]["queue"][0]["quota"][0]["gpus"]) == ("set_queues", 8)
    assert "default" in atoll("queues", "show")[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("weight", "wieght"), "queue 'lab': there is no key 'wieght'; the nearest is 'weight'"),
        (("gpus = 8", "gpu = 8"), "quota: there is no key 'gpu'; the nearest is 'gpus'"),
        (('flavor = "fast"', 'flavor = "slow"'), "quota of flavor 'slow', which is not there; flavors: fast"),
        (("2.0", "-1.0"), "weight=-1.0: a number above 0"),
        (("grow_after_s = 30.0", "grow_after_s = -1.0"), "settings.grow_after_s=-1.0"),
        (("[[queue]]", "[[queue]"), "queues.toml: "),
        (("2.0", '"much"'), "queues.toml: Sharing.queue[0].weight"),
    ],
)
def test_fault_in_a_file_of_queues_is_named_with_what_would_be_right(tmp_path, change, words):
    (tmp_path / "queues.toml").write_text(QUEUES.replace(*change))
    with pytest.raises(SpecError) as caught:
        read_sharing(tmp_path / "queues.toml")
    assert words in str(caught.value)


def test_plan_that_waits_names_who_gives_way_and_when_it_starts():
    view = PlanView(
        verdict="waits",
        reason="as asked: no room",
        queue="default",
        wanted=2,
        position=1,
        waiting=3,
        starts_at=30.0,
        yields=(
            YieldView(run="gpt", before=4, after=2, reason="wanted"),
            YieldView(run="old", before=2, after=0, reason="wanted"),
        ),
    )
    told = lines(tables.plan(view, 10.0))
    assert "it waits, 1 of 3 in line; it starts in 20 s at the latest" in told
    assert "gpt shrinks from 4 to 2: wanted" in told
    assert "old is suspended at a checkpoint: wanted" in told


def test_plan_that_starts_counts_its_nodes():
    view = PlanView(
        verdict="starts",
        reason="room",
        queue="q",
        workers=3,
        wanted=4,
        nodes=("a", "a", "b"),
        spares=("b",),
        step_s=0.25,
        price_per_hour=7.5,
    )
    told = lines(tables.plan(view, 0.0))
    assert "with 3 of 4 workers" in told
    assert "workers   2 on a, 1 on b" in told
    assert "0.25 s a step" in told
    assert "7.50 an hour" in told


def test_why_of_a_run_that_waits_lists_its_alternatives():
    view = WhyView(
        run="gpt",
        state=RunState.QUEUED,
        queue="lab",
        priority=50,
        reason="",
        workers=0,
        wanted=2,
        position=2,
        waiting=2,
        share=0.5,
        fair_share=0.25,
        rejected=(RejectedView(option="1. anywhere", kind="no-room", reason="room for 0"),),
    )
    told = lines(tables.why(view, 0.0))
    assert "2 of 2 in line; nobody can tell when it starts" in told
    assert "50.0% of the cluster lately, 25.0% are fair" in told
    assert "1. anywhere: room for 0" in told


def test_goodput_is_the_useful_part_of_what_was_held():
    view = GoodputView(by="run", name="gpt", useful=6.0, starting=1.0, lost=1.0, idle=9.0, queued=5.0)
    assert view.goodput == 0.75
    assert GoodputView(by="device", name="cpu", idle=9.0).goodput == 1.0
    queue = QueueView(
        name="lab", weight=1.0, cohort="", share=0.5, lately=0.1, fair_share=1.0, running=1, waiting=0, quotas=("a",)
    )
    shown = list(tables.top(TopView(at=10.0, since=0.0, queues=(queue,), goodput=(view,))))
    assert [table.row_count for table in shown] == [1, 1]


def test_sharing_of_nobodys_making_has_one_queue():
    assert [queue.name for queue in Sharing().queue] == ["default"]
    assert "default" in str(next(iter(tables.queues(Sharing()))).columns[0]._cells)


def _spec():
    from atoll.schema.spec import JobSpec

    return JobSpec(name="tiny", working_dir="/w", file="train.py", workers=2)
