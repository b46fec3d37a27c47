"""Figures, the results kept, and what is made of them."""

import json

import pytest

from benchmarks.reporting import Figure, Report, last_line, table


def kept(*figures, quick=False):
    parts = {f"part{n}": Report(figures=(f,)).plain() for n, f in enumerate(figures)}
    return {"machine": "2 cores", "quick": quick, "parts": parts}


@pytest.mark.parametrize(
    ("value", "floor", "met"),
    [(2.0, True, True), (1.9, True, False), (2.0, False, True), (2.1, False, False), (None, True, None)],
)
def test_bar_is_met_on_its_side(value, floor, met):
    assert Figure(name="x", value=value, bar=2.0, floor=floor).met is met


def test_last_line_is_one_object_with_every_figure_and_what_was_missed():
    line = last_line(
        kept(
            Figure(name="fast", value=3.14159, bar=3),
            Figure(name="slow", value=0.5, bar=1),
            Figure(name="unknown", value=None, bar=1),
        ),
        failed=["broken"],
    )
    assert "\n" not in line
    assert json.loads(line) == {
        "fast": 3.142,
        "slow": 0.5,
        "unknown": None,
        "missed": ["slow"],
        "not_measurable": ["unknown"],
        "failed": ["broken"],
        "quick": False,
        "machine": "2 cores",
    }


def test_table_says_what_was_not_met_and_that_a_quick_run_is_one():
    text = table(kept(Figure(name="slow", value=0.5, bar=1, note="why"), quick=True), "Things, measured")
    assert text.startswith("# Things, measured\n")
    assert "| slow | 0.5 | >= 1 | **no** | why |" in text
    assert "quick" in text
    assert "quick" not in table(kept(), "Things, measured")


def test_rows_of_a_part_become_a_table_of_their_own():
    found = kept(Figure(name="fast", value=1.0))
    found["parts"]["part0"]["details"] = {"rows": {"a loss": {"n": 5, "median_s": 0.25, "worst_s": None}}}
    assert table(found, "Things").splitlines()[-3:] == [
        "| | n | median s | worst s |",
        "|---|---|---|---|",
        "| a loss | 5 | 0.25 | - |",
    ]


def test_what_a_process_said_last_stays_in_its_cell():
    said = "0-head: \x1b[36mnothing\x1b[0m | 1-a0: killed\nby SIGKILL"
    found = kept(Figure(name="slow", value=None, note=said))
    found["parts"]["part0"]["details"] = {"rows": {"a loss": {"n": 5, "note": said}}}
    cell = r"0-head: nothing \| 1-a0: killed by SIGKILL"
    assert f"| slow | not measurable here | - | - | {cell} |" in table(found, "Things")
    assert table(found, "Things").splitlines()[-1] == f"| a loss | 5 | {cell} |"
