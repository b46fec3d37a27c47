import dataclasses

import pytest
from imagined_facts import NOW, Imagined

from atoll.fault.facts import Ears
from atoll.fault.limits import ALONE_S, BACK_S, NODE_SILENCE_S, SETTLED_S, SILENCE_S, UNAWAITED_S
from atoll.fault.verdicts import NodeLost, TrainerLost


def dead(name="b2", *, for_s, **options):
    world = Imagined(**options)
    world.silent(name, for_s=for_s)
    world.all_wait_for(*(t.trainer for t in world.trainers.values() if t.node == name), for_s=for_s)
    return world


def only(world):
    (verdict,) = world.verdicts()
    return verdict


def test_node_that_nobody_hears_and_all_wait_for_is_lost():
    assert dead(for_s=SILENCE_S - 0.05).verdicts() == []
    verdict = only(dead(for_s=SILENCE_S))
    assert isinstance(verdict, NodeLost)
    assert verdict.node == "b2"
    assert "by a2, b1 and the control plane" in verdict.evidence


def test_node_that_one_listener_still_hears_is_not_lost():
    world = dead(for_s=5.0)
    del world.deaf["a2"]["b2"]
    world.words = []
    assert world.verdicts() == []


def test_node_whose_stream_speaks_is_not_lost():
    world = dead(for_s=5.0)
    world.node("b2", heard_at=NOW)
    assert not any(isinstance(v, NodeLost) for v in world.verdicts())


def test_node_that_nobody_needs_is_lost_later():
    world = dead(for_s=UNAWAITED_S - 0.1)
    world.words = []
    assert world.verdicts() == []
    world = dead(for_s=UNAWAITED_S)
    world.words = []
    assert isinstance(only(world), NodeLost)


def test_frozen_agent_of_a_node_that_commits_steps_is_no_lost_node():
    world = dead(for_s=30.0, committed_ago=0.2)
    world.words = []
    assert world.verdicts() == []


def test_commit_from_before_the_silence_shows_no_life():
    assert isinstance(only(dead(for_s=1.0, committed_ago=1.0)), NodeLost)


def test_broken_connection_counts_as_being_needed():
    world = dead(for_s=SILENCE_S)
    world.words = []
    world.blame("t0", "t3", ago=0.5)
    assert isinstance(only(world), NodeLost)


def test_node_that_is_missed_in_a_regroup_is_lost():
    world = dead(for_s=SILENCE_S)
    world.words = []
    world.trainer("t3", joined=False)
    assert isinstance(only(world), NodeLost)


def test_own_host_is_never_lost():
    assert not any(isinstance(v, NodeLost) for v in dead("a1", for_s=60.0).verdicts())


def test_node_whose_agent_ended_in_order_and_that_nobody_needs_has_time_to_return():
    world = dead(for_s=NODE_SILENCE_S - 0.1)
    world.words = []
    world.node("b2", attached=False)
    assert world.verdicts() == []


def test_agent_that_ended_while_others_wait_for_its_trainer_has_time_to_return():
    world = dead(for_s=NODE_SILENCE_S - 0.1)
    world.node("b2", attached=False, attached_at=100.0)
    assert world.verdicts() == []
    world.blame("t0", "t3", ago=1.0)
    assert any(isinstance(v, NodeLost) and v.node == "b2" for v in world.verdicts())


def test_node_that_never_came_back_to_this_control_plane_and_is_waited_for_is_lost():
    world = dead(for_s=SILENCE_S)
    world.node("b2", attached=False)
    assert isinstance(only(world), NodeLost)


def test_listener_that_was_late_itself_has_no_word():
    world = dead(for_s=1.0)
    assert world.verdicts(late_s={"a2": 0.5, "b1": 0.5}) == []
    assert isinstance(only(world), NodeLost)


def test_listener_that_we_do_not_hear_has_no_word():
    world = dead(for_s=1.0)
    world.node("b1", heard_at=NOW - 5.0, ears=Ears(at=NOW - 1.0, heard=frozenset({"b2"}), silent={}))
    assert any(v.node == "b2" for v in world.verdicts())


def test_node_whose_listeners_are_all_silent_is_judged_by_our_own_ears():
    world = dead(for_s=ALONE_S)
    for listener in ("a2", "b1"):
        world.node(listener, heard_at=NOW - 1.0)
    (evidence,) = [v.evidence for v in world.verdicts() if v.node == "b2"]
    assert "all who listen for it" in evidence


def test_listener_from_before_its_agent_came_back_has_no_word():
    world = dead(for_s=1.0)
    for listener in ("a2", "b1"):
        world.node(listener, attached_at=NOW + 0.1)
    assert world.verdicts() == []


def test_listener_without_a_word_on_the_node_yet_does_not_clear_it():
    world = dead(for_s=1.0)
    world.node("a2", ears=Ears(at=NOW, heard=frozenset({"a1"}), silent={}))
    assert isinstance(only(world), NodeLost)


def test_strain_lengthens_every_silence():
    world = dead(for_s=1.0)
    world.strain_s = 0.2
    assert world.verdicts() == []
    world = dead(for_s=1.3)
    world.strain_s = 0.2
    assert isinstance(only(world), NodeLost)


def test_all_silent_but_our_own_host_may_be_our_own_cut():
    def cut(for_s):
        world = Imagined()
        world.silent("a2", "b1", "b2", for_s=for_s)
        world.waits("t0", "t1", "t2", "t3", for_s=for_s)
        return world

    assert cut(ALONE_S - 0.1).verdicts() == []
    assert cut(ALONE_S).verdicts() != []


def test_other_of_two_nodes_is_lost_without_more_ado():
    world = Imagined(nodes={"a1": "t0", "a2": "t1"}, islands=(("a1", "a2"),))
    world.silent("a2", for_s=SILENCE_S)
    world.waits("t0", "t1")
    assert isinstance(only(world), NodeLost)


def test_node_that_is_heard_and_cannot_hear_is_lost_when_all_wait_for_it():
    world = Imagined()
    world.node("b2", heard_at=NOW - SILENCE_S)
    world.all_wait_for("t3", for_s=SILENCE_S)
    verdict = only(world)
    assert verdict.node == "b2"
    assert "one direction" in verdict.evidence


def test_node_is_not_taken_for_deaf_by_words_that_are_hardly_newer_than_its_own():
    world = Imagined()
    world.node("b2", heard_at=NOW - SILENCE_S)
    world.node("b1", heard_at=NOW - SILENCE_S / 2 - 0.05)
    world.all_wait_for("t3", for_s=SILENCE_S)
    assert world.verdicts() == []


def test_node_with_a_broken_path_to_us_is_not_lost_while_others_hang():
    world = Imagined()
    world.node("b2", heard_at=NOW - 5.0)
    world.waits("t0", "t1")
    world.waits("t2", "t1")
    assert world.verdicts() == []


def test_node_that_was_never_heard_by_this_incarnation_has_time_to_come_back():
    world = dead(for_s=30.0)
    world.node("b2", known=False)
    assert world.verdicts() == []


def slow(**changes):
    world = Imagined()
    world.watchers = {}
    world.node("b2", **({"attached": False, "heard_at": NOW - 20.0, "ray_alive": False} | changes))
    return world


def test_unwatched_node_that_is_dead_to_ray_is_lost_slowly():
    assert "dead to Ray" in only(slow()).evidence


@pytest.mark.parametrize(
    "changes", [{"ray_alive": True}, {"heard_at": NOW - 14.0}, {"attached": True}, {"local": True}, {"lost": True}]
)
def test_unwatched_node_is_not_lost_otherwise(changes):
    assert slow(**changes).verdicts() == []


def test_unwatched_node_is_lost_only_while_another_is_heard():
    world = slow()
    world.nodes = {n: dataclasses.replace(f, heard_at=NOW - 20.0) for n, f in world.nodes.items()}
    assert world.verdicts() == []


def left(*, heard_for=BACK_S, committed_ago=UNAWAITED_S):
    """The node of `t3` is lost; some of the others are heard again, for so long in all."""
    world = Imagined(committed_ago=committed_ago)
    world.node("b2", lost=True, attached=False, heard_at=NOW - 60.0, unmet={"r": heard_for})
    world.node("a1", heard_at=NOW - 2.0)
    return world


def test_member_of_a_lost_node_is_lost_once_others_are_back_for_long_and_nothing_is_committed():
    verdict = only(left())
    assert isinstance(verdict, TrainerLost)
    assert (verdict.trainer, verdict.proof) == ("t3", False)
    assert verdict.evidence == "b2 is lost and not back, a2, b1 are heard, and no step was committed for 5.0 s"
    assert left(heard_for=BACK_S - 0.1).verdicts() == []


def test_member_of_a_lost_node_that_may_train_on_stays_unless_somebody_waits_for_it():
    world = left(committed_ago=UNAWAITED_S - 0.1)
    assert world.verdicts() == []
    world.waits("t1", "t3", for_s=0.6)
    assert world.verdicts() == []
    world.waits("t2", "t3", for_s=0.7)
    assert only(world).evidence.endswith("and t1, t2 have waited 0.7 s for it in collective 7 (all_reduce)")
    world.trainer("t3", busy_until=NOW + 1.0)
    assert world.verdicts() == []
    world.blame("t2", "t3", ago=0.5)
    assert only(world).evidence.endswith("and t2 lost the connection to it")


def test_nothing_committed_says_nothing_of_members_on_lost_nodes_while_one_is_at_work_of_its_own():
    world = left(committed_ago=20.0)
    world.trainer("t1", busy_until=NOW + 1.0)
    assert world.verdicts() == []


def test_what_was_not_heard_before_a_pause_is_not_held_against_members_on_lost_nodes():
    for pause_ago, condemned in ((SETTLED_S - 0.1, False), (UNAWAITED_S, True)):
        world = left(committed_ago=40.0)
        for name in ("a1", "a2", "b1"):
            world.node(name, heard_since=NOW - pause_ago)
        world.blame("t2", "t1", ago=0.5)
        assert bool(world.verdicts()) is condemned


def test_member_that_ended_and_one_without_the_state_are_not_left_behind_and_do_not_come_back():
    world = left()
    world.trainer("t3", holds=False)
    assert world.verdicts() == []
    world = left()
    for joiner in ("t1", "t2"):
        world.trainer(joiner, holds=False)
    assert world.verdicts() == []
