"""Laws: what is drawn has the moments that were published, and the load that was asked for."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from atoll.simulate.cluster import islands
from atoll.simulate.laws import GAVEL, HELIOS, MODELS, Traffic, capacity, generate, legal_sizes
from atoll.simulate.progress import alone_s, step_s

MIXED = islands(27, types=("v100", "p100", "k80"), each=4, island_nodes=9)
UNIFORM = islands(25, types=("v100",), each=4, island_nodes=25)
MINUTE = 60.0


def drawn(law, count: int = 20_000):
    return generate(Traffic(law=law, jobs=count), UNIFORM, 7)


def test_gavel_sizes_have_the_published_shares():
    workers = [j.workers for j in drawn(GAVEL)]
    for size, share in ((1, 0.70), (2, 0.10), (4, 0.15), (8, 0.05)):
        assert workers.count(size) / len(workers) == pytest.approx(share, abs=0.01)


def test_gavel_durations_are_powers_of_ten_of_minutes_in_two_ranges():
    minutes = [alone_s(j, "v100", UNIFORM) / MINUTE for j in drawn(GAVEL)]
    assert min(minutes) >= 10**1.5 * 0.999
    assert max(minutes) <= 10**4 * 1.001
    assert sum(m < 1000 for m in minutes) / len(minutes) == pytest.approx(0.8, abs=0.01)
    assert statistics.fmean(minutes) * MINUTE == pytest.approx(GAVEL.mean_duration_s, rel=0.03)


def test_helios_durations_have_the_published_median_and_mean():
    chance = random.Random(3)
    seconds = [HELIOS.duration_s(chance) for _ in range(200_000)]
    assert statistics.median(seconds) == pytest.approx(206.0, rel=0.03)
    assert statistics.fmean(seconds) == pytest.approx(6652.0, rel=0.15)
    assert HELIOS.mean_workers == pytest.approx(3.72, abs=0.05)
    assert sum(share for _, share in HELIOS.sizes) == pytest.approx(1.0)
    large = [(size, share) for size, share in HELIOS.sizes if size >= 8]
    assert sum(share for _, share in large) < 0.1
    assert sum(size * share for size, share in large) / HELIOS.mean_workers == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("load", [0.6, 0.9, 1.2])
def test_load_is_what_is_asked_for_over_what_there_is(load):
    traffic = Traffic(jobs=20_000, load=load)
    jobs = generate(traffic, MIXED, 1)
    asked = sum(j.workers * alone_s(j, "v100", MIXED) for j in jobs)
    assert asked / (jobs[-1].submitted_s * capacity(MODELS, MIXED)) == pytest.approx(load, rel=0.05)


def test_jobs_of_one_seed_are_the_same_at_every_load():
    light, heavy = (generate(Traffic(jobs=50, load=load), MIXED, 5) for load in (0.6, 1.2))
    assert [(j.samples, j.workers, j.sizes) for j in light] == [(j.samples, j.workers, j.sizes) for j in heavy]
    assert heavy[-1].submitted_s == pytest.approx(light[-1].submitted_s / 2)


def test_bursts_vary_more_than_poisson():
    def variation(cv: float) -> float:
        at = [j.submitted_s for j in generate(Traffic(jobs=20_000, cv=cv), MIXED, 2)]
        gaps = [b - a for a, b in itertools.pairwise(at)]
        return statistics.stdev(gaps) / statistics.fmean(gaps)

    assert variation(1.0) == pytest.approx(1.0, abs=0.05)
    assert variation(3.0) == pytest.approx(3.0, rel=0.15)


def test_elastic_share_is_as_asked_and_sizes_are_powers_of_two_times_what_was_asked():
    jobs = drawn(GAVEL)
    assert sum(j.elastic for j in jobs) / len(jobs) == pytest.approx(0.8, abs=0.01)
    assert legal_sizes(1, 4, 100) == (1, 2, 4)
    assert legal_sizes(4, 4, 100) == (2, 4, 8, 16)
    assert legal_sizes(4, 4, 9) == (2, 4, 8)


@pytest.mark.parametrize(
    ("name", "eight"), [("resnet-18", 0.911), ("resnet-50", 0.870), ("transformer", 0.490), ("lm", 0.357)]
)
def test_eight_workers_on_p100_scale_as_gavel_measured(name, eight):
    model = next(m for m in MODELS if m.name == name)
    one = step_s(model, model.batch, 1, model.speeds["p100"], 2.5e9)
    assert one / step_s(model, 8 * model.batch, 8, 8 * model.speeds["p100"], 2.5e9) == pytest.approx(eight)
