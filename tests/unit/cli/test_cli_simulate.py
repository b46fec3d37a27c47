"""`atoll simulate`: figures as a table or JSON, a report in a folder, and words for what is wrong."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from atoll.cli import app
from atoll.errors import ScriptNotFound, SpecError

SMALL = ["simulate", "--nodes", "6", "--island", "2", "--jobs", "30"]


def ran(*words: str, **more):
    return CliRunner().invoke(app, [*SMALL, *words], catch_exceptions=False, **more)


def test_all_policies_are_compared_on_the_same_jobs():
    done = ran("--json", "--seed", "4")
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert [p["policy"] for p in found["policies"]] == ["atoll", "fifo", "fifo-backfill"]
    assert {p["jobs"] for p in found["policies"]} == {24}


def test_same_seed_prints_the_same():
    assert ran("--json", "--seed", "4").stdout == ran("--json", "--seed", "4").stdout != ran("--json").stdout


def test_table_has_a_row_for_each_policy(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ran("--policy", "fifo,fifo-backfill").stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["POLICY", "fifo", "fifo-backfill"]
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_report_holds_figures_jobs_and_curves(tmp_path):
    folder = tmp_path / "found"
    done = ran("--policy", "fifo", "--report", str(folder))
    assert sorted(p.name for p in folder.iterdir()) == [
        "held.svg",
        "jct.svg",
        "jobs.jsonl",
        "report.json",
        "waiting.svg",
    ]
    assert json.loads((folder / "report.json").read_text())["policies"][0]["policy"] == "fifo"
    assert len((folder / "jobs.jsonl").read_text().splitlines()) == 30
    assert str(folder) in done.stdout.replace("\n", "")


def test_record_is_simulated_in_place_of_a_law(tmp_path):
    file = tmp_path / "jobs.csv"
    file.write_text("submitted_s,workers,duration_s\n0,1,60\n10,2,60\n20,4,60\n")
    found = json.loads(ran("--workload", str(file), "--json").stdout)
    assert found["jobs"] == 3
    assert found["law"] == str(file)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--policy", "fifo,best"], SpecError, "--policy 'best': one of atoll, atoll-plain, atoll-as-asked"),
        (["--types", "v100,h100"], SpecError, "--types 'h100': one of v100, p100, k80"),
        (["--law", "zipf"], SpecError, "--law 'zipf': one of gavel, helios"),
        (["--policy", ","], SpecError, "--policy is empty"),
        (["--workload", "nowhere.csv"], ScriptNotFound, "cannot read the workload nowhere.csv"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, error, said):
    with pytest.raises(error, match=r".") as raised:
        ran(*words)
    assert said in str(raised.value)


def test_bar_counts_jobs_on_a_terminal_and_is_silent_elsewhere(capfd, monkeypatch):
    from atoll.cli_bars import counted

    with counted("fifo", 5, "jobs") as told:
        told(3)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with counted("fifo", 5, "jobs") as told:
        told(5)
    assert "5/5" in capfd.readouterr().err
