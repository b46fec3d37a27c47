"""Which links are measured, and which of them at the same time."""

import lab_specs
import pytest

from atoll.lab.layout import lay_out
from atoll.lab.measuring import rounds, ways
from atoll.lab.spec import payload_rate


def names(found):
    return {(w.source, w.target, w.mine.name) for w in found}


def of(spec, hosts=("e0", "e1", "w0", "w1"), slowed=None, cut=()):
    return ways(lay_out(spec), hosts, slowed or {}, cut)


def test_every_link_of_two_islands_is_measured_each_way():
    found = of(lab_specs.islands())
    assert len(found) == len(names(found)) == 2 * 2 + 4 * 3
    assert ("e0", "e1", "fast") in names(found)
    assert ("e0", "w0", "fast") not in names(found)


def test_links_over_cut_cables_are_left_out():
    found = names(of(lab_specs.islands(), cut={("e0", "fast")}))
    assert not {f for f in found if f[2] == "fast" and "e0" in f}
    assert ("e0", "e1", "slow") in found
    assert ("w0", "w1", "fast") in found


def test_a_slowed_pair_is_declared_at_what_it_was_slowed_to():
    found = of(lab_specs.islands(), slowed={frozenset(("e0", "e1")): 5e6})
    rates = {(w.source, w.target, w.mine.name): w.rate for w in found}
    assert rates["e0", "e1", "fast"] == rates["e1", "e0", "slow"] == 5e6
    assert rates["w0", "w1", "fast"] == 400e6


def test_a_way_across_a_trunk_is_declared_at_the_trunks_rate():
    rates = {(w.source, w.target): w.declared for w in of(lab_specs.trunked())}
    assert rates["e0", "w0"] == payload_rate(40e6)
    assert rates["e0", "e1"] == payload_rate(200e6)


@pytest.mark.parametrize("spec", [lab_specs.islands(), lab_specs.trunked()])
def test_links_of_a_round_share_nothing_and_stay_within_the_budget(spec):
    found = of(spec)
    planned = rounds(found, budget=500e6)
    assert sorted(map(id, found)) == sorted(id(w) for together in planned for w in together)
    for together in planned:
        assert sum(w.rate for w in together) <= 500e6
        assert sum(len(w.shares) for w in together) == len(frozenset().union(*(w.shares for w in together)))


def test_rounds_are_fewer_than_links():
    found = of(lab_specs.islands())
    assert len(rounds(found)) <= len(found) // 2


def test_unshaped_links_are_measured_alone():
    found = of(lab_specs.islands(fast=None, slow=None))
    assert [len(together) for together in rounds(found)] == [1] * len(found)


def test_a_very_slow_link_is_given_time_for_some_frames():
    (way, *_) = of(lab_specs.islands(fast=128e3))
    assert way.declared * way.length_s >= 60 * 1448
