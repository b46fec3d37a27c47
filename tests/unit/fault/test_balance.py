import itertools
import random

import pytest

from atoll.fault import balance
from atoll.fault.speeds import LONG, SlowWorker, Spent
from atoll.workers.samples import share

FAST = {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.1}
LAME = FAST | {"c": 0.3}


def rows(counts, paces, steps=8, comm=0.0):
    compute = {t: counts[t] * paces[t] for t in counts}
    longest = max(compute.values())
    row = {
        t: Spent(grains=counts[t], compute_s=compute[t], wait_s=longest - compute[t], step_s=longest + comm)
        for t in counts
    }
    return [row] * steps


def slow(times=3.0, step=100):
    return SlowWorker(trainer="c", times=times, step=step, evidence="")


@pytest.mark.parametrize("paces", [(1.0, 1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.1, 0.7)])
@pytest.mark.parametrize("grains", [3, 7, 12])
def test_best_split_ends_no_later_than_any_other_of_whole_grains(grains, paces):
    named = dict(enumerate(paces))
    found = balance.computing_s(balance.best(grains, named), named)
    others = [c for c in itertools.product(range(1, grains + 1), repeat=3) if sum(c) == grains]
    assert found == min(balance.computing_s(dict(enumerate(c)), named) for c in others)


def test_best_split_holds_every_grain_and_each_member_one():
    counts = balance.best(16, LAME | {"c": 50.0})
    assert sum(counts.values()) == 16
    assert counts["c"] == 1


def test_counts_as_weights_are_the_shares_that_trainers_make_of_them():
    for grains in range(1, 40):
        counts = balance.best(grains, LAME)
        assert [len(r) for r in share(grains, [float(c) for c in counts.values()])] == list(counts.values())
        even = balance.equal(grains, tuple(LAME))
        assert [len(r) for r in share(grains, [1.0] * 4)] == list(even.values())


def test_split_by_speed_is_worth_an_epoch_and_tells_both_times():
    split = balance.resplit(rows(dict.fromkeys(LAME, 4), LAME), LAME, 8)
    assert split.counts == {"a": 5, "b": 5, "c": 1, "d": 5}
    assert (split.now_s, split.then_s) == (pytest.approx(1.2), pytest.approx(0.5))
    assert str(split).endswith("(a 5, b 5, c 1, d 5): a step is predicted to take 500 ms instead of 1.2 s")


def test_equal_members_are_not_split_anew():
    assert balance.resplit(rows(dict.fromkeys(FAST, 4), FAST), FAST, 8) is None


def test_gain_below_a_tenth_is_not_worth_an_epoch():
    paces = FAST | {"c": 0.105}
    assert balance.resplit(rows(dict.fromkeys(paces, 40), paces), paces, 8) is None


def test_gain_counts_against_the_whole_step_and_not_the_computing_alone():
    assert balance.resplit(rows(dict.fromkeys(LAME, 4), LAME, comm=20.0), LAME, 8) is None


def test_split_needs_most_steps_of_the_window():
    even = dict.fromkeys(LAME, 4)
    assert balance.resplit(rows(even, LAME, 5), LAME, 8) is None
    mixed = rows(even, FAST, 3) + rows(even, LAME, 5)
    assert balance.resplit(mixed, LAME, 8) is None


def test_split_is_undone_when_the_slow_one_recovers():
    split = balance.resplit(rows({"a": 5, "b": 5, "c": 1, "d": 5}, FAST), FAST, 8)
    assert set(split.counts.values()) == {4}


def test_whole_grains_that_cannot_be_shared_better_stay():
    assert balance.resplit(rows(dict.fromkeys(LAME, 1), LAME), LAME, 8) is None


def test_newcomers_weigh_as_the_median():
    found = balance.weights(["a", "b", "c", "new"], 16, {"a": 0.1, "b": 0.1, "c": 0.3}, {})
    assert found == [5.0, 5.0, 1.0, 5.0]


def test_members_of_unlike_speed_weigh_alike_where_it_does_not_pay():
    assert balance.weights(list(LAME), 4, LAME, {}) == [1.0] * 4
    assert balance.weights(list(FAST), 16, FAST, {"a": 7.0}) == [1.0] * 4


def test_weights_stay_while_no_speed_is_known():
    assert balance.weights(["a", "c", "new"], 0, {}, {"a": 5.0, "b": 5.0, "c": 1.0}) == [5.0, 1.0, 3.0]
    assert balance.weights(["x", "y"], 0, {}, {}) == [1.0, 1.0]


def test_splits_come_at_most_once_in_twenty_steps_and_more_rarely_when_they_do_not_hold():
    rhythm = balance.Rhythm()
    taken = []
    for step in range(1, 1001):
        if rhythm.allows(step):
            rhythm.took(step)
            taken.append(step)
    assert taken == [1, 21, 61, 141, 301, 621, 941]


def test_rhythm_is_quick_again_after_a_split_that_held():
    rhythm = balance.Rhythm()
    for step in (1, 21, 61):
        rhythm.took(step)
    rhythm.took(1000)
    assert rhythm.allows(1020)


def test_chronic_straggler_goes_where_a_spare_does_better():
    found = balance.eviction(slow=slow(), step=120, grains=16, paces=LAME, spare=("s", 0.1))
    assert (found.trainer, found.with_s, found.without_s) == ("c", pytest.approx(0.5), pytest.approx(0.4))
    assert str(found).endswith("400 ms with s in its place")


def test_straggler_stays_until_it_is_chronic():
    assert balance.eviction(slow=slow(), step=119, grains=16, paces=LAME, spare=("s", 0.1)) is None


def test_straggler_stays_where_the_run_is_no_faster_without_it():
    assert balance.eviction(slow=slow(), step=500, grains=16, paces=LAME, spare=None) is None
    assert balance.eviction(slow=slow(), step=500, grains=16, paces=LAME, spare=("s", 0.3)) is None


def test_straggler_that_holds_the_others_up_with_its_one_grain_goes_without_a_spare():
    paces = FAST | {"c": 0.9}
    found = balance.eviction(slow=slow(), step=500, grains=16, paces=paces, spare=None)
    assert (found.with_s, found.without_s) == (pytest.approx(0.9), pytest.approx(0.6))


def test_hopeless_straggler_goes_at_once():
    paces = FAST | {"c": 1.1}
    assert balance.eviction(slow=slow(), step=101, grains=16, paces=paces, spare=None) is not None


def test_the_last_member_is_never_evicted():
    assert balance.eviction(slow=slow(), step=500, grains=16, paces={"c": 9.0}, spare=("s", 0.1)) is None


def test_noise_splits_nothing_anew():
    chance = random.Random(7)
    even = dict.fromkeys(FAST, 16)
    for _ in range(300):
        window = [rows(even, {t: 0.1 * chance.lognormvariate(0.0, 0.3) for t in FAST}, 1)[0] for _ in range(LONG)]
        assert balance.resplit(window, FAST, LONG) is None


def test_split_that_is_advised_promises_what_an_epoch_has_to_gain():
    chance = random.Random(7)
    even = dict.fromkeys(FAST, 3)
    found = []
    for _ in range(1500):
        window = [rows(even, {t: 0.1 * chance.lognormvariate(0.0, 0.6) for t in FAST}, 1)[0] for _ in range(10)]
        found.append(balance.resplit(window, FAST, 8))
    splits = [split for split in found if split is not None]
    assert len(splits) > 10
    assert all(split.then_s <= (1 - balance.GAIN) * split.now_s for split in splits)


def test_a_verdict_since_the_last_split_is_news_and_waits_for_no_doubled_pause():
    rhythm = balance.Rhythm()
    for step in (1, 21, 61):
        rhythm.took(step)
    assert not rhythm.allows(81)
    assert not rhythm.allows(81, 61)
    assert rhythm.allows(81, 70)
    assert not rhythm.allows(80, 70)
