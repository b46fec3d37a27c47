import dataclasses
import io
import math

import pytest
from rich.console import Console

from atoll._client_logs import LogPiece
from atoll.cli_attach import LogLines, last_traceback
from atoll.cli_progress import Display, Progress
from atoll.cli_run import parse_settings, split_path
from atoll.cli_tables import ago, runs, size
from atoll.control_plane.rest_memory import running
from atoll.schema.spec import JobSpec
from atoll.schema.views import CheckpointView, EventView, MetricPoint, RunState


def a_point(step, *, at=None, **metrics):
    return MetricPoint(
        step=step, at=step if at is None else at, step_s=0.5, samples=16, members=4, epoch=1, metrics=metrics
    )


def an_event(kind, seq=1):
    return EventView(seq=seq, at=1.0, run="r", subject="r-t1", kind=kind, text="text")


def a_view(**changes):
    return running("r", JobSpec(name="r", working_dir="/", file="a.py", workers=2, **changes))


def test_rate_is_of_tokens_where_steps_report_them_and_of_samples_elsewhere():
    progress = Progress()
    assert progress.rate() == (0.0, "samples/s")
    progress.take(a_point(1))
    assert progress.rate() == (32.0, "samples/s")
    tokens = Progress()
    for step in range(1, 4):
        tokens.take(a_point(step, tokens=100.0))
    assert tokens.rate() == (200.0, "tokens/s")


def test_held_out_loss_stays_shown_between_the_steps_that_measure_it():
    progress = Progress()
    progress.take(a_point(1, loss=3.0, heldout_loss=3.5))
    progress.take(a_point(2, loss=2.0))
    assert dict(progress.facts())["held-out loss"] == "3.5000"
    assert dict(progress.facts())["loss"] == "2.0000"


def test_facts_name_members_epoch_and_the_last_durable_checkpoint():
    progress = Progress()
    progress.take(a_view())
    facts = dict(progress.facts())
    assert (facts["members"], facts["epoch"], facts["checkpoint"]) == ("2 of 2, 1 spare", "1", "none yet")


def test_bookkeeping_events_are_kept_quiet_and_losses_shown():
    progress = Progress()
    assert progress.take(an_event("seat-taken")) is None
    assert progress.take(an_event("lost", seq=9)) == "t1 lost: text"
    assert progress.after == 9


def test_regroup_is_told_once_however_many_members_join():
    progress = Progress()
    joined = [dataclasses.replace(an_event("joined", seq), text="epoch 2 from step 9") for seq in (1, 2)]
    assert [progress.take(event) for event in joined] == ["training goes on: epoch 2 from step 9", None]


def test_queued_run_says_what_it_waits_for():
    progress = Progress()
    progress.take(dataclasses.replace(a_view(), state=RunState.QUEUED, reason="waiting for room"))
    assert dict(progress.facts())["state"] == "queued, waiting for room"


def test_plain_display_prints_lines_and_a_status_every_few_seconds():
    out = io.StringIO()
    with Display(Console(file=out, width=40), "r", "http://127.0.0.1:1/runs/r") as display:
        display.show(an_event("epoch"))
        for step in range(1, 12):
            display.show(a_point(step, loss=1.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "r  dashboard: http://127.0.0.1:1/runs/r"
    assert lines[1] == "t1 epoch: text"
    assert [line.split()[3] for line in lines[2:]] == ["1", "6", "11", "11"]


def test_loss_that_is_no_number_can_be_shown():
    progress = Progress()
    progress.take(a_point(1, loss=math.nan))
    assert dict(progress.facts())["loss"] == "nan"


def test_terminal_display_draws_a_panel_and_leaves_the_lines():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with Display(console, "r", "http://d") as display:
        display.show(a_view())
        display.show(an_event("lost"))
    assert "members" in out.getvalue()
    assert "lost: text" in out.getvalue()


def test_last_traceback_ends_with_the_line_of_the_exception():
    log = "a\nTraceback (most recent call last):\n  File\n    x\nKeyError: 1\n\nmore\n"
    assert last_traceback(log) == "Traceback (most recent call last):\n  File\n    x\nKeyError: 1"
    assert last_traceback("nothing") == ""
    assert last_traceback("Traceback (most recent call last):") == "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py", ("a.py", None)),
        ("a.py:train", ("a.py", "train")),
        ("a.py:A.b", ("a.py", "A.b")),
        ("dir:x/a.py", ("dir:x/a.py", None)),
    ],
)
def test_path_and_function_are_told_apart(text, expected):
    assert split_path(text) == expected


def test_settings_are_json_or_text():
    assert parse_settings(["a=1", "b=x y", "c=[1, 2]", "d="]) == {"a": 1, "b": "x y", "c": [1, 2], "d": ""}


def test_sizes_and_ages_use_their_largest_unit():
    assert [size(n) for n in (12, 2048, 3 << 20, 5 << 40)] == ["12 B", "2.0 KiB", "3.0 MiB", "5.0 TiB"]
    assert [ago(0.0, now) for now in (5, 120, 7200, 200000)] == ["5 s ago", "2 min ago", "2 h ago", "2 d ago"]


@pytest.mark.parametrize(
    ("changes", "more"),
    [({}, []), ({"owner": "anna"}, ["OWNER"]), ({"queue": "research"}, ["QUEUE"])],
)
def test_owners_and_queues_are_listed_where_there_is_more_than_one(changes, more):
    assert len(runs([a_view(**changes), a_view(**changes)], now=2.0).columns) == 8
    table = runs([a_view(), a_view(**changes)], now=2.0)
    assert [column.header for column in table.columns][8:] == more
    cells = [list(column.cells) for column in table.columns[8:]]
    assert cells == [["admin" if name == "OWNER" else "default", *changes.values()] for name in more]


def test_checkpoint_is_shown_by_its_step():
    progress = Progress()
    saved = CheckpointView(run="r", step=40, path="/c", bytes=1, seconds=0.1, at=1.0)
    progress.take(dataclasses.replace(a_view(), checkpoint=saved))
    assert dict(progress.facts())["checkpoint"] == "step 40"


def test_pieces_of_logs_become_whole_lines_with_their_trainer():
    lines = LogLines("tiny-1")
    said = [("tiny-1-t0", "one\ntw"), ("tiny-1-t1", "other\n"), ("tiny-1-t0", "o\n\nthr")]
    taken = [line for trainer, text in said for line in lines.take(LogPiece(trainer=trainer, text=text))]
    assert taken == ["(t0) one\n", "(t1) other\n", "(t0) two\n", "(t0) \n"]
    assert lines.rest() == ["(t0) thr\n"]
