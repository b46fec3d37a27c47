"""The scheduling benchmark's figures: which carry bars, and what is said where a peer is missing."""

from __future__ import annotations

import sys

import pytest

from atoll.simulate import arena
from atoll.simulate.measures import Measures
from benchmarks import scheduling, scheduling_first_step, scheduling_jct


def measures(policy: str, jct: float, utilisation: float) -> Measures:
    return Measures(
        policy=policy,
        jobs=1,
        mean_jct_s=jct,
        median_jct_s=jct,
        p95_jct_s=jct,
        mean_delay_s=0.0,
        p95_delay_s=0.0,
        makespan_s=1.0,
        utilisation=utilisation,
        busy=utilisation,
        held=1.0,
        preemptions=0,
        resizes=0,
        fairness=1.0,
        queues={},
        ledger={},
        decisions=1,
    )


@pytest.fixture
def found():
    return {
        (where, load, policy): [measures(policy, jct * seed, used) for seed in (1, 2, 3)]
        for where, load in (("mixed", 0.6), ("mixed", 0.9), ("uniform", 0.9))
        for policy, jct, used in (
            ("atoll", 10.0, 0.8),
            ("atoll-plain", 15.0, 0.75),
            ("atoll-as-asked", 12.0, 0.78),
            ("atoll-as-asked-no-speeds", 20.0, 0.7),
            ("fifo", 30.0, 0.6),
            ("fifo-backfill", 20.0, 0.7),
        )
    }


def test_bars_stand_at_load_nine_tenths_on_the_mixed_cluster_against_fifo_alone(found):
    figures = {f.name: f for f in scheduling_jct._figures(found)}
    assert {name: f.value for name, f in figures.items() if f.bar is not None} == {
        "simulated_jct_vs_fifo": pytest.approx(3.0),
        "simulated_utilisation_gain": pytest.approx(0.2),
    }
    assert figures["simulated_jct_vs_backfill_uniform_0.9"].value == pytest.approx(2.0)
    assert figures["simulated_jct_vs_fifo_plain_trainers"].value == pytest.approx(2.0)
    assert figures["simulated_jct_vs_fifo_as_asked"].value == pytest.approx(2.5)
    assert figures["simulated_jct_vs_fifo_as_asked_no_speeds"].value == pytest.approx(1.5)
    assert figures["simulated_utilisation_gain_vs_backfill_mixed_0.6"].value == pytest.approx(0.1)


def test_every_policy_has_a_row_with_the_same_columns(found):
    rows = scheduling_jct._rows(found)
    assert len(rows) == 18
    assert len({tuple(row) for row in rows.values()}) == 1


def test_without_ray_train_the_first_step_is_not_measurable_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    (figure,) = scheduling_first_step.first_step(quick=True).figures
    assert (figure.name, figure.value) == ("submit_to_first_step_vs_ray_train", None)
    assert "--group peers" in figure.note


def test_parts_are_those_that_the_page_names():
    assert list(scheduling.PARTS) == ["tick", "events", "jct", "first-step", "lab"]
    assert all(f"`{name}`" in scheduling.__doc__ for name in scheduling.PARTS)


def test_simulation_of_a_part_measures_all_policies_on_the_same_jobs():
    found: scheduling_jct.Found = {}
    scheduling_jct._simulated(found, "mixed", scheduling_jct.CLUSTERS["mixed"](), 0.9, 0, 20)
    assert [policy for *_, policy in found] == list(arena.POLICIES)
    assert len({one[0].jobs for one in found.values()}) == 1
