import dataclasses
import json
import re
import subprocess
import sys

import pytest
from imagined_network import imagined_network

from atoll.schema.checkpoints import Tier, TierState, TierView
from atoll.schema.codec import to_plain
from atoll.schema.spec import JobSpec
from atoll.schema.views import CheckpointView, NodeView, RunState

SCRIPT = """
import sys
import atoll

def train(ctx):
    pass

def other(ctx):
    pass

if __name__ == "__main__":
    atoll.run(train, workers=3, config={"lr": 0.1, "args": sys.argv[1:]}, checkpoint_every=5)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    return file


def submitted(cluster):
    return [body["spec"] for method, body in cluster.control.asked if method == "submit"]


def add_run(cluster, **changes):
    cluster.control._submit(JobSpec(name="tiny", working_dir="/w", file="train.py", model="build", workers=2))
    cluster.reader.become("tiny-1", **changes)
    return "tiny-1"


def test_submit_prints_the_run_id_and_nothing_else(atoll, cluster, script):
    code, out, _ = atoll("submit", "train.py")
    assert (code, out) == (0, f"{cluster.only_run}\n")
    spec = submitted(cluster)[0]
    assert (spec["workers"], spec["function"], spec["file"], spec["detach"]) == (3, "train", "train.py", True)
    assert spec["working_dir"] == str(script.parent.resolve())


def test_flags_of_the_command_line_win_over_those_of_the_script(atoll, cluster, script):
    atoll("submit", "train.py:other", "-w", "2", "--checkpoint-every", "0", "--set", "lr=0.5", "--", "--fast", "x")
    spec = submitted(cluster)[0]
    assert (spec["workers"], spec["function"], spec["checkpoint_every"]) == (2, "other", 0)
    assert spec["config"] == {"lr": 0.5, "args": ["--fast", "x"]}


def test_script_without_a_call_of_run_is_run_by_its_function_train(atoll, cluster, tmp_path):
    (tmp_path / "bare.py").write_text("def train(ctx):\n    pass\n")
    assert atoll("submit", "bare.py", "--spares", "0")[0] == 0
    spec = submitted(cluster)[0]
    assert (spec["file"], spec["function"], spec["spares"]) == ("bare.py", "train", 0)


def test_attached_run_shows_progress_and_ends_with_the_runs_exit_code(atoll, cluster, script):
    real = cluster.control._submit

    def finish(spec):
        answer = real(spec)
        run = answer["run"]
        cluster.reader.tell(run, f"{run}-t1", "lost", "killed by signal 9")
        cluster.reader.commit(run, 1, loss=2.5, heldout_loss=2.75, tokens=64.0)
        cluster.reader.become(run, state=RunState.SUCCEEDED, exit_code=0)
        return answer

    cluster.control._submit = finish
    code, out, _ = atoll("run", "train.py")
    assert code == 0
    assert "t1 lost: killed by signal 9" in out
    assert "step 1  loss 2.5000  held-out loss 2.7500  tokens/s 640" in out
    assert f"dashboard: {cluster.url}/runs/{cluster.only_run}" in out
    assert f"run {cluster.only_run} succeeded" in out


def test_failed_run_shows_the_programs_traceback_and_one_line_with_the_next_step(atoll, cluster, script):
    real = cluster.control._submit

    def fail(spec):
        answer = real(spec)
        run = answer["run"]
        cluster.reader.tell(run, f"{run}-t0", "failed", "ValueError: no data")
        log = 'hello\nTraceback (most recent call last):\n  File "train.py", line 3\nValueError: no data\nbye\n'
        cluster.control.logs[f"{run}-t0"] = log.encode()
        cluster.reader.become(run, state=RunState.FAILED, exit_code=2, reason="ValueError: no data (program-failed)")
        return answer

    cluster.control._submit = fail
    code, out, err = atoll("run", "train.py")
    assert code == 2
    assert 'Traceback (most recent call last):\n  File "train.py", line 3\nValueError: no data\n' in out
    assert "bye" not in out
    run = cluster.only_run
    assert f"atoll: run {run} failed: ValueError: no data (program-failed); see `atoll logs {run}`" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "nowhere.py"], 2, "nowhere.py; give the path"),
        (["run", "empty.py"], 2, "neither calls atoll.run nor has a function 'train'"),
        (["run", "empty.py:fit"], 2, "nor has a function 'fit'"),
        (["submit", "train.py", "-w", "0"], 2, "workers=0: at least 1, at most 65536 (invalid-spec)"),
        (["submit", "train.py", "--set", "lr"], 2, "write KEY=VALUE"),
        (["status", "nope"], 2, "no run 'nope'"),
        (["logs", "nope"], 2, "no run 'nope'"),
        (["stop", "nope"], 2, "(not-found)"),
        (["story", "mars"], 2, "no event about 'mars'"),
        (["serve", "nope"], 2, "no run 'nope'"),
        (["checkpoints", "ls", "nope"], 2, "no run 'nope'"),
    ],
)
@pytest.mark.usefixtures("cluster", "script")
def test_bad_input_is_one_line_with_an_exit_code_and_no_traceback(atoll, tmp_path, arguments, code, words):
    (tmp_path / "empty.py").write_text("")
    ended, _, err = atoll(*arguments)
    assert ended == code
    assert err.count("\n") == 1
    assert err.startswith("atoll: ")
    assert words in err


def test_no_cluster_and_no_token_each_say_what_to_do(atoll, monkeypatch):
    assert "run `atoll up`" in atoll("ls")[2]
    monkeypatch.setenv("ATOLL_ADDRESS", "http://127.0.0.1:1")
    code, _, err = atoll("ls")
    assert (code, "no token" in err) == (2, True)


def test_wrong_token_is_refused_with_exit_code_two(atoll, cluster, monkeypatch):
    monkeypatch.setenv("ATOLL_TOKEN", "wrong")
    code, _, err = atoll("ls")
    assert code == 2
    assert err.rstrip().endswith("(unauthorized)")


def test_script_that_raises_is_shown_from_its_own_first_line_on(atoll, cluster, tmp_path):
    (tmp_path / "bad.py").write_text("def f():\n    raise ValueError('mine')\n\nf()\n")
    code, _, err = atoll("run", "bad.py")
    assert code == 1
    assert err.startswith('Traceback (most recent call last):\n  File "' + str(tmp_path / "bad.py"))
    assert "runpy" not in err


def test_ls_and_status_show_runs_as_table_and_as_json(atoll, cluster):
    assert "no runs yet" in atoll("ls")[1]
    run = add_run(cluster)
    cluster.reader.commit(run, 7, loss=1.25)
    assert "tiny-1" in atoll("ls")[1]
    assert json.loads(atoll("ls", "--json")[1])[0]["step"] == 7
    assert "1.25" in atoll("status", run)[1]
    assert json.loads(atoll("status", run, "--json")[1])["spec"]["name"] == "tiny"


def test_status_of_the_cluster_lists_nodes_and_links_for_a_browser(atoll, cluster):
    cluster.reader.hosts = [
        NodeView(node="node-1", address="127.0.0.1", alive=True, cpus=2.0, gpus=0.0, cpus_free=0.4, agent=True)
    ]
    assert "0.4 of 2" in atoll("status")[1]
    assert atoll("status", "--link")[1] == f"{cluster.url}/?token=cli-test-token\n"


def test_logs_name_the_trainer_and_stop_asks_the_control_plane(atoll, cluster):
    run = add_run(cluster)
    cluster.control.logs = {f"{run}-t0": b"zero\n", f"{run}-t1": b"one\n"}
    assert atoll("logs", run)[1] == "==> tiny-1-t0 <==\nzero\n==> tiny-1-t1 <==\none\n"
    assert atoll("logs", run, "-t", "tiny-1-t1")[1] == "one\n"
    assert "stops at its next step boundary" in atoll("stop", run, "--reason", "enough")[1]
    assert cluster.control.asked[-1] == ("stop", {"run": run, "reason": "enough"})


def test_story_doctor_and_checkpoints_print_what_the_cluster_knows(atoll, cluster):
    run = add_run(cluster)
    cluster.reader.tell(run, "tiny-1-t0", "lost", "gone", cause="c1")
    cluster.reader.saved.append(CheckpointView(run=run, step=10, path="/c", bytes=2048, seconds=0.5, at=1.0))
    assert "tiny-1-t0  lost: gone  [c1]" in atoll("story", "c1")[1]
    assert "disk" in atoll("doctor")[1]
    assert "2.0 KiB" in atoll("checkpoints", "ls", run)[1]


def test_copies_of_checkpoints_are_listed_where_there_are_any(atoll, cluster):
    run = add_run(cluster)
    saved = CheckpointView(run=run, step=10, path="/c", bytes=2048, seconds=0.5, at=1.0)
    local = TierView(tier=Tier.LOCAL, state=TierState.WHOLE)
    cluster.reader.saved.append(dataclasses.replace(saved, tiers=(local,)))
    assert "COPIES" not in atoll("checkpoints", "ls", run)[1]
    remote = TierView(tier=Tier.REMOTE, state=TierState.FAILED)
    cluster.reader.saved.append(dataclasses.replace(saved, step=20, tiers=(local, remote)))
    assert "local whole, remote failed" in atoll("checkpoints", "ls", run)[1]


@pytest.mark.parametrize(("flag", "kept"), [("auto", "auto"), ("25", 25)])
def test_interval_of_checkpoints_is_a_number_or_auto(atoll, cluster, script, flag, kept):
    atoll("submit", "train.py", "--checkpoint-every", flag, "--checkpoint-remote", "s3://bucket/kept")
    spec = submitted(cluster)[0]
    assert (spec["checkpoint_every"], spec["checkpoint_remote"]) == (kept, "s3://bucket/kept")


def test_serve_submits_the_training_spec_with_its_checkpoint_and_prints_how_to_ask(atoll, cluster):
    saved = CheckpointView(run="tiny-1", step=10, path="/c/step-00000010", bytes=1, seconds=0.5, at=1.0)
    run = add_run(cluster, checkpoint=saved)
    real = cluster.control._submit

    def answer(spec):
        told = real(spec)
        cluster.reader.become(told["run"], endpoint="http://127.0.0.1:9")
        return told

    cluster.control._submit = answer
    code, out, _ = atoll("serve", run, "--detach", "--model", "tiny")
    assert code == 0
    spec = submitted(cluster)[0]
    assert (spec["kind"], spec["model"], spec["resume"]) == ("serve", "build", "/c/step-00000010")
    assert f"curl -N {cluster.url}/v1/completions" in out
    assert "cli-test-token" not in out


def test_serving_a_run_without_a_checkpoint_says_so(atoll, cluster):
    assert "no durable checkpoint; set checkpoint_every" in atoll("serve", add_run(cluster))[2]


def test_serving_a_directory_needs_the_file_that_builds_the_model(atoll, cluster, tmp_path):
    (tmp_path / "c").mkdir()
    assert "--function FILE.py:FUNCTION" in atoll("serve", "c")[2]


def test_import_of_atoll_loads_neither_ray_torch_nor_a_web_library():
    probe = "import sys, atoll; print(sorted({'ray','torch','fastapi','httpx','rich','asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version_and_help_import_nothing_heavy():
    probe = (
        "import sys; from atoll import cli\n"
        "sys.argv = ['atoll', 'version']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'ray','torch','fastapi','httpx'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[1] == "[]"


def test_topology_prints_islands_hosts_nics_and_links(atoll, cluster, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    cluster.reader.network = imagined_network(1e9)
    code, out, _ = atoll("topology")
    assert code == 0
    assert "island 1: 9.2 Gbit/s inside, 940 Mbit/s to the others, 20 us" in out
    assert "node-a island=east" in out
    assert "ib0 10.1.0.4/24: 9.2 Gbit/s" in out
    assert "node-z: no faster link than 940 Mbit/s to anyone" in out
    assert "node-b - node-z: no link measured: 10.0.0.9:4000: no answer in time" in out
    first = next(line for line in out.splitlines() if line.startswith("node-a eth0"))
    assert first.split()[2:9] == ["node-b", "eth0", "940", "Mbit/s", "940", "Mbit/s", "400"]


def test_topology_as_json_is_the_view(atoll, cluster):
    cluster.reader.network = imagined_network(1e9)
    _, out, _ = atoll("topology", "--json")
    assert json.loads(out) == to_plain(cluster.reader.network)


def test_topology_without_agents_says_where_to_look(atoll, cluster):
    code, out, _ = atoll("topology")
    assert (code, "atoll status" in out) == (0, True)


def test_topology_leaves_out_fast_links_until_asked(atoll, cluster, monkeypatch):
    monkeypatch.setattr("atoll.cli_topology.LINKS_SHOWN", 3)
    cluster.reader.network = imagined_network(1e9)
    _, out, _ = atoll("topology")
    assert "8 faster ones" in out
    assert "faster ones" not in atoll("topology", "--links")[1]


def test_metrics_are_printed_as_a_table_and_whole_for_programs(cluster, atoll):
    add_run(cluster)
    for step in range(1, 31):
        cluster.reader.commit("tiny-1", step, **({"loss": 1 / step} if step != 2 else {}))
    code, out, _ = atoll("metrics", "tiny-1")
    assert (code, len(out.splitlines())) == (0, 21)
    assert out.split()[:3] == ["STEP", "STEP_S", "SAMPLES"]
    _, out, _ = atoll("metrics", "tiny-1", "--format", "csv", "--last", "29")
    assert out.splitlines()[0] == "step,at,step_s,samples,members,epoch,loss"
    assert re.fullmatch(r"2,2\.0,0\.1,16,\d+,\d+,", out.splitlines()[1])
    _, out, _ = atoll("metrics", "tiny-1", "--format", "jsonl", "--after-step", "29")
    assert json.loads(out)["metrics"] == {"loss": 1 / 30}
    assert atoll("metrics", "tiny-1", "--format", "xml")[0] == 2


def test_validate_tells_faults_with_lines_and_prints_the_schema(atoll, tmp_path):
    (tmp_path / "train.py").write_text("def train(ctx): pass")
    (tmp_path / "good.toml").write_text('file = "train.py"\nworkers = "2..4"\n')
    (tmp_path / "bad.yaml").write_text("file: train.py\nwrokers: 4\n")
    assert atoll("validate", "good.toml") == (
        0, "good.toml: ok: good, train of train.py, 2 to 4 workers of 0.4 CPU, 1 spare\n", ""
    )  # fmt: skip
    code, _, err = atoll("validate", "good.toml", "bad.yaml")
    assert (code, err) == (2, "bad.yaml:2: wrokers = 4: no such key; the nearest valid key is 'workers'\n")
    code, out, _ = atoll("validate", "--schema")
    assert json.loads(out)["properties"]["workers"]["default"] == 1
    assert atoll("run", "bad.yaml")[0] == 2
    assert "takes no arguments" in atoll("run", "good.toml", "--", "x")[2]


def test_job_file_is_submitted_with_flags_on_top(cluster, atoll, tmp_path):
    (tmp_path / "train.py").touch()
    (tmp_path / "good.toml").write_text('file = "train.py"\nworkers = 2\n[config]\na = 1\nb = 2\n')
    code, out, _ = atoll("submit", "good.toml", "--workers", "3", "--set", "b=7")
    spec = cluster.reader.views[out.strip()].spec
    assert (code, spec.workers, spec.config, spec.detach) == (0, 3, {"a": 1, "b": 7}, True)


def test_driver_of_a_ray_job_prints_what_its_trainers_write(cluster, atoll, script, monkeypatch):
    told = {"metadata": {"job_submission_id": "raysubmit_1", "atoll.workers": "2", "atoll.config.lr": "0.5"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    real = cluster.control._submit

    def finish(spec):
        answer = real(spec)
        cluster.control.logs["raysubmit_1-t0"] = b"hello\nwor"
        cluster.control.logs["raysubmit_1-t1"] = b""
        cluster.reader.become("raysubmit_1", state=RunState.SUCCEEDED, exit_code=0)
        return answer

    cluster.control._submit = finish
    code, out, err = atoll("run", "train.py")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("(t")] == ["(t0) hello", "(t0) wor"]
    spec = submitted(cluster)[0]
    assert (spec["workers"], spec["run_id"], spec["config"]["lr"]) == (2, "raysubmit_1", 0.5)
