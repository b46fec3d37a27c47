"""Which members a step waits for, by a simulator of arrival times."""

import math
import random

import pytest

from atoll.errors import UserError
from atoll.fault.backup import (
    ENOUGH,
    WINDOW,
    Arrival,
    Noise,
    Part,
    Why,
    candidates,
    checked,
    choose,
    play,
    progress,
)

REST_S = 0.02
STEPS = 120


def equal_law(rng, member):
    return rng.lognormvariate(0.0, 0.1)


def heavy_tail(rng, member):
    """Pareto with exponent 1.5: infinite variance."""
    return 0.7 * rng.paretovariate(1.5)


def one_in_turn(rng, member):
    return 5.0 if rng.random() < 0.15 else rng.uniform(0.95, 1.05)


def chronic(rng, member):
    return 3.0 if member == 0 else rng.uniform(0.95, 1.05)


def simulate(law, setting, *, members=4, owned=4, noise=math.inf, seed=1):
    """Steps of `STEPS` drawn from `law` (of a member's seconds for all its micro-batches): (seconds, progress, choices)."""
    rng, rows, before = random.Random(seed), [], 0
    seconds = progressed = 0.0
    choices = []
    for _ in range(STEPS):
        choice = choose(setting, rows[-WINDOW:], members=members, noise=noise, before=before)
        before = choice.backup
        choices.append(choice)
        truth = [Arrival(owned=owned, done=owned, at_s=law(rng, m)) for m in range(members)]
        told = sorted(a.at_s for a in truth)[-1 - choice.backup]
        ends = [a.stopped(told) for a in truth]
        step_s = max(at for at, _ in ends) + REST_S
        # What the run itself gets to see of it: who was stopped told only how far it was.
        rows.append(play([Arrival(owned=owned, done=d, at_s=at) for at, d in ends], step_s))
        seconds += step_s
        progressed += progress(sum(d for _, d in ends), noise)
    return seconds, progressed, choices


def gain(law, *, noise=math.inf, **more):
    seconds, progressed, _ = simulate(law, "auto", noise=noise, **more)
    all_s, all_progressed, _ = simulate(law, 0, noise=noise, **more)
    return (progressed / seconds) / (all_progressed / all_s)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [math.inf, 16.0, 1.0])
def test_heavy_tail_gains_over_waiting_for_all(seed, noise):
    assert gain(heavy_tail, noise=noise, seed=seed) > 1.15


@pytest.mark.parametrize("seed", range(3))
def test_one_slow_member_in_turn_gains_over_waiting_for_all(seed):
    assert gain(one_in_turn, seed=seed) > 1.3


def test_chronic_straggler_gains_over_waiting_for_all():
    assert gain(chronic) > 1.5


@pytest.mark.parametrize("owned", [1, 2, 8])
@pytest.mark.parametrize("members", [2, 4, 8, 16])
@pytest.mark.parametrize("noise", [math.inf, 16.0, 1.0])
def test_equal_members_are_never_two_percent_worse_than_waiting_for_all(members, owned, noise):
    worst = min(gain(equal_law, members=members, owned=owned, noise=noise, seed=seed) for seed in range(2))
    assert worst > 0.98


def test_members_that_recover_are_waited_for_again():
    rows = [row(1.0, 1.0, 1.0, 5.0)] * ENOUGH
    slow = choose("auto", rows, members=4)
    assert slow.backup == 1
    assert slow.why is Why.FASTER
    well = choose("auto", [row(1.0, 1.0, 1.0, 1.0)] * ENOUGH, members=4, noise=math.inf, before=slow.backup)
    assert well.backup == 0
    assert well.why is Why.ALL


def test_few_steps_seen_wait_for_all():
    choice = choose("auto", [row(1.0, 9.0)] * (ENOUGH - 1), members=2, noise=math.inf, before=0)
    assert (choice.backup, choice.why) == (0, Why.UNKNOWN)
    assert f"{ENOUGH - 1} were seen" in str(choice)


@pytest.mark.parametrize(("setting", "members", "backup"), [(0, 4, 0), (1, 4, 1), (3, 2, 1), (2, 1, 0)])
def test_fixed_number_is_kept_within_the_members(setting, members, backup):
    choice = choose(setting, [], members=members, noise=math.inf, before=0)
    assert (choice.backup, choice.why) == (backup, Why.ASKED)


def test_half_of_the_members_at_least_are_waited_for():
    choice = choose("auto", [row(1.0, 9.0, 9.0, 9.0)] * ENOUGH, members=4, noise=0.0, before=0)
    assert choice.backup <= 2


def test_choice_is_held_while_another_is_hardly_better():
    two_slow = [row(1.0, 1.0, 4.0, 5.0, 1.0)] * (ENOUGH + 1)
    both = choose("auto", two_slow, members=5, before=0)
    assert (both.backup, choose("auto", two_slow, members=5, before=1).backup) == (2, 2)
    nearly_one = [row(1.0, 1.0, 1.01, 5.0, 1.0, owned=16)] * ENOUGH
    assert [choose("auto", nearly_one, members=5, before=b).backup for b in (1, 2)] == [1, 2]


def test_candidates_are_few_however_many_members():
    assert candidates(2) == [0, 1]
    assert candidates(9) == [0, 1, 2, 3, 4]
    assert len(candidates(1024)) < 24
    assert candidates(1024)[-1] <= 512


def test_more_noise_never_drops_more():
    rows = [row(1.0, 1.1, 1.25, 1.4)] * ENOUGH
    chosen = [choose("auto", rows, members=4, noise=n, before=0).backup for n in (0.0, 1.0, 16.0, math.inf)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > chosen[-1]


def test_reason_tells_the_prediction():
    choice = choose("auto", [row(1.0, 1.0, 1.0, 5.0)] * ENOUGH, members=4)
    assert str(choice) == (
        "wait for the fastest 3 of 4: a step is predicted to take 1270 ms instead of 5020 ms, with 13.0 of 16 micro-batches"
    )


def test_told_member_stops_before_its_next_backward_or_micro_batch():
    slow = Arrival(owned=4, done=4, at_s=4.0)
    assert slow.stopped(2.0) == (2.0, 2)
    assert slow.stopped(2.2) == (pytest.approx(2 + 1 / 3), 2)
    assert slow.stopped(2.5) == (3.0, 3)
    assert slow.stopped(9.0) == (4.0, 4)


def test_stopped_member_is_taken_for_as_slow_as_it_showed():
    assert Arrival(owned=4, done=1, at_s=3.0).full_s == pytest.approx(8.0)
    assert Arrival(owned=1, done=0, at_s=3.0).full_s == pytest.approx(6.0)


def test_noise_is_found_from_members_and_their_mean():
    rng, noise = random.Random(5), Noise()
    dims, scatter, signal = 200, 8.0, 2.0
    mean = [math.sqrt(signal / dims)] * dims
    for _ in range(60):
        grads = [[m + rng.gauss(0.0, math.sqrt(scatter / dims / n)) for m in mean] for n in (2, 2, 4)]
        total = [sum(n * g[i] for n, g in zip((2, 2, 4), grads, strict=True)) / 8 for i in range(dims)]
        parts = [Part(grains=n, square=sum(x * x for x in g)) for n, g in zip((2, 2, 4), grads, strict=True)]
        noise.took(parts, sum(x * x for x in total))
    assert noise.grains == pytest.approx(scatter / signal, rel=0.25)


def test_noise_of_broken_or_lonely_gradients_is_not_taken():
    noise = Noise()
    noise.took([Part(grains=2, square=math.nan), Part(grains=2, square=1.0)], 1.0)
    noise.took([Part(grains=2, square=1.0), Part(grains=2, square=1.0)], math.nan)
    assert (noise.seen, noise.grains) == (0, math.inf)


@pytest.mark.parametrize("setting", [-1, 4, True, "many", 0.5])
def test_setting_out_of_range_is_refused(setting):
    with pytest.raises(UserError, match="backup="):
        checked(setting, 4)


def row(*times, owned=4):
    return play([Arrival(owned=owned, done=owned, at_s=t) for t in times], max(times) + REST_S)
