"""Figures and curves of a simulation: shares add up, and what is drawn is what was measured."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from atoll.simulate.cluster import islands
from atoll.simulate.engine import Costs, Engine, Outcome
from atoll.simulate.fifo import Backfill, Fifo
from atoll.simulate.laws import Traffic, generate
from atoll.simulate.measures import jain, measured, quantile
from atoll.simulate.pictures import chart, pictures
from atoll.simulate.progress import alone_s

CLUSTER = islands(9, types=("v100", "p100", "k80"), each=4, island_nodes=3)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    jobs = generate(Traffic(jobs=80, load=0.9), CLUSTER, 3)
    return [Engine(CLUSTER, jobs, policy).run() for policy in (Fifo(), Backfill(Costs().start_s))]


def test_every_device_second_of_the_window_is_in_the_ledger_once(outcomes):
    for outcome in outcomes:
        for shares in measured(outcome).ledger.values():
            assert sum(shares.values()) == pytest.approx(1.0)
            assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares.values())


def test_held_is_more_than_useful_and_no_more_than_all(outcomes):
    for outcome in outcomes:
        found = measured(outcome)
        assert 0 < found.busy < found.held <= 1 + 1e-9


def test_busy_is_the_mean_of_the_ledger_over_equal_parts(outcomes):
    found = measured(outcomes[0])
    assert found.busy == pytest.approx(sum(row["useful"] for row in found.ledger.values()) / 3)


def test_who_delivers_all_that_comes_is_utilised_as_much_as_is_asked_for():
    plenty = islands(9, types=("v100",), each=4, island_nodes=3)
    jobs = generate(Traffic(jobs=3000, load=0.3), plenty, 1)
    alone = [job for job in jobs if job.workers == 1]  # nothing is lost on sums
    asked = sum(alone_s(job, "v100", plenty) for job in alone) / alone[-1].submitted_s / plenty.devices
    found = measured(Engine(plenty, alone, Fifo()).run())
    assert found.utilisation == pytest.approx(asked, rel=0.1)
    assert found.utilisation == pytest.approx(found.busy, rel=1e-6)


def test_queues_hold_all_jobs_after_the_warm_up(outcomes):
    found = measured(outcomes[0])
    assert sum(queue.jobs for queue in found.queues.values()) == found.jobs == 64


def test_jain_is_one_where_all_are_alike_and_its_least_where_one_has_all():
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_quantile_is_a_value_that_was_seen():
    assert quantile([5.0, 1.0, 3.0, 2.0, 4.0], 0.95) == 5.0
    assert quantile([5.0, 1.0, 3.0, 2.0, 4.0], 0.5) == 3.0


def test_pictures_are_well_formed_with_a_line_for_each_policy(outcomes):
    drawn = pictures(outcomes)
    assert set(drawn) == {"held.svg", "waiting.svg", "jct.svg"}
    for text in drawn.values():
        root = ET.fromstring(text)
        assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == len(outcomes)


def test_names_in_a_picture_are_words_not_markup():
    text = chart("a<b", "&", {"<x>": [(0.0, 0.0), (1.0, 1.0)]}, x=str, y=str)
    assert ET.fromstring(text) is not None
