"""Rows of `atoll chaos table`: what counts as recovered, as seen for what it was, and as condemned wrongly."""

import pytest

from atoll.fault.chaos_table import KINDS, Trial, judged, row
from atoll.fault.costs import Cost
from atoll.fault.places import FAILPOINTS
from atoll.schema.harm import Harm
from atoll.schema.views import EventView

BY_NAME = {k.name: k for k in KINDS}
KILL, AGENT = BY_NAME["worker SIGKILL"], BY_NAME["agent SIGKILL"]


def lost(subject, text):
    return EventView(seq=1, at=0.0, run="r", subject=subject, kind="lost", text=text)


def trial(seconds, *, right=True, wrong=0, pause_s=0.0):
    found = None if seconds is None else Cost(raw_s=seconds + 0.1, step_s=0.1, epoch=2, members=2)
    return Trial(cost=found, pause_s=pause_s, right=right, wrong=wrong)


def test_row_has_the_median_and_worst_of_what_recovered_and_counts_the_rest():
    found = row(KILL, [trial(0.2), trial(0.6), trial(None, right=False, wrong=1)])
    assert (found.median, found.worst) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (found.trials, len(found.seconds), found.right, found.wrong) == (3, 2, 2, 1)


def test_row_of_a_kind_that_never_recovered_has_no_figure():
    found = row(KILL, [trial(None)])
    assert (found.median, found.worst) == (None, None)


def test_kind_that_loses_nobody_costs_its_longest_pause():
    assert row(AGENT, [trial(None, pause_s=0.3)]).median == pytest.approx(0.3)


def test_loss_of_the_hurt_one_for_its_reason_is_right_and_of_another_is_wrong():
    assert judged(KILL, {"a"}, [lost("a", "killed by SIGKILL")]) == (True, 0)
    assert judged(KILL, {"a"}, [lost("a", "hung: it is stopped")]) == (False, 0)
    assert judged(KILL, {"a"}, [lost("a", "killed by SIGKILL"), lost("b", "hung: it waits")]) == (True, 1)


def test_trainer_whose_agent_died_must_not_be_lost():
    assert judged(AGENT, {"a"}, []) == (True, 0)
    assert judged(AGENT, {"a"}, [lost("a", "node silent")]) == (False, 0)


def test_kinds_have_names_of_their_own_and_places_that_exist():
    assert len(BY_NAME) == len(KINDS)
    places = {f.at for k in KINDS for f in k.faults if f.what is Harm.DIE}
    assert places <= set(FAILPOINTS)
