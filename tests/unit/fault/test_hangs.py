import pytest
from imagined_facts import NOW, Imagined

from atoll.fault.limits import FIRST_GIL_S, SPARE_GIL_S, STOPPED_S, UNAWAITED_S
from atoll.fault.verdicts import HungLink, Why


def only(world):
    (verdict,) = world.verdicts()
    return verdict


def test_stopped_member_that_others_wait_for_is_hung():
    world = Imagined()
    world.process("t3", stopped_for=STOPPED_S - 0.1)
    world.all_wait_for("t3", for_s=0.3)
    assert world.verdicts() == []
    world.process("t3", stopped_for=STOPPED_S)
    verdict = only(world)
    assert (verdict.trainer, verdict.why) == ("t3", Why.STOPPED)
    assert verdict.named_by == ("t0", "t1", "t2")
    assert "state T" in verdict.evidence
    assert "t0, t1, t2 wait for it in collective 7 (all_reduce)" in verdict.evidence


def test_stopped_member_that_nobody_waits_for_is_hung_later():
    world = Imagined()
    world.process("t3", stopped_for=UNAWAITED_S - 0.1)
    assert world.verdicts() == []
    world.process("t3", stopped_for=UNAWAITED_S)
    assert only(world).named_by == ()


def test_run_that_is_stopped_as_a_whole_is_left_alone():
    world = Imagined()
    for name in world.trainers:
        world.process(name, stopped_for=60.0)
    assert world.verdicts() == []


def test_stopped_spare_is_hung_too():
    world = Imagined()
    world.trainer("t3", rank=None)
    world.process("t3", stopped_for=UNAWAITED_S)
    assert only(world).trainer == "t3"


def test_spare_whose_interpreter_stands_still_is_hung_at_last():
    world = Imagined()
    world.trainer("t3", rank=None, steps=False)
    world.process("t3", beat_age=SPARE_GIL_S - 0.1)
    assert world.verdicts() == []
    world.process("t3", beat_age=SPARE_GIL_S)
    assert "as a spare" in only(world).evidence


def test_word_of_a_member_from_before_it_was_stopped_does_not_clear_it():
    world = Imagined()
    world.process("t3", stopped_for=0.5)
    world.waits("t3", "t0", for_s=0.4, told_ago=0.6)
    world.all_wait_for("t3")
    assert only(world).trainer == "t3"


def test_debugger_is_excused_while_the_trainer_is_busy():
    world = Imagined()
    world.process("t3", state="t", stopped_for=1.0)
    world.all_wait_for("t3")
    assert "debugger" in only(world).evidence
    world.trainer("t3", busy_until=NOW + 10)
    assert world.verdicts() == []


def test_signal_is_not_excused_by_being_busy():
    world = Imagined()
    world.process("t3", stopped_for=1.0)
    world.trainer("t3", busy_until=NOW + 10)
    world.all_wait_for("t3")
    assert only(world).why is Why.STOPPED


def test_held_gil_is_a_hang_after_a_second():
    world = Imagined(step_s=0.1)
    world.all_wait_for("t3")
    world.process("t3", beat_age=0.95)
    assert world.verdicts() == []
    world.process("t3", beat_age=1.0)
    assert only(world).why is Why.GIL


def test_held_gil_goes_on_between_two_looks_of_the_agent():
    world = Imagined(step_s=0.1)
    world.all_wait_for("t3")
    world.process("t3", beat_age=0.6, told_ago=0.5)
    assert only(world).why is Why.GIL


def test_beat_that_was_fresh_when_told_does_not_age_by_itself():
    world = Imagined(step_s=0.1)
    world.all_wait_for("t3")
    world.process("t3", beat_age=0.1, told_ago=1.9)
    assert world.verdicts() == []


def test_gil_held_for_long_by_every_step_is_no_hang():
    world = Imagined(step_s=0.5)
    world.all_wait_for("t3")
    world.process("t3", beat_age=2.4)
    assert world.verdicts() == []
    world.process("t3", beat_age=2.5)
    assert only(world).why is Why.GIL


def test_held_gil_that_nobody_waits_for_is_no_hang():
    world = Imagined()
    world.process("t3", beat_age=30.0)
    assert world.verdicts() == []


@pytest.mark.parametrize(("excuse", "beat_age"), [({"busy_until": NOW + 1.0}, 15.0), ({"steps": False}, 7.0)])
def test_busy_and_first_step_are_excused(excuse, beat_age):
    world = Imagined()
    world.all_wait_for("t3", for_s=30.0)
    world.process("t3", beat_age=beat_age, idle_for=30.0)
    world.trainer("t3", **excuse)
    assert world.verdicts() == []


def test_first_step_excuses_no_interpreter_that_gives_nobody_a_turn():
    world = Imagined()
    world.all_wait_for("t3", for_s=9.0)
    world.process("t3", beat_age=9.0)
    world.trainer("t3", steps=False, busy_until=NOW + 50.0)
    (verdict,) = world.verdicts()
    assert (verdict.trainer, verdict.why) == ("t3", Why.GIL)


def test_excuse_of_being_busy_ends_with_its_limit():
    world = Imagined()
    world.all_wait_for("t3")
    world.process("t3", beat_age=30.0)
    world.trainer("t3", busy_until=NOW - 0.1)
    assert only(world).why is Why.GIL


def test_excuse_of_the_first_step_ends_at_last():
    world = Imagined()
    world.all_wait_for("t3")
    world.process("t3", beat_age=FIRST_GIL_S)
    world.trainer("t3", steps=False)
    assert only(world).why is Why.GIL


def test_sleep_with_a_beating_pulse_is_no_hang_for_ten_seconds():
    world = Imagined(step_s=0.1)
    world.process("t3", idle_for=30.0)
    world.all_wait_for("t3", for_s=9.9)
    assert world.verdicts() == []
    world.words = []
    world.all_wait_for("t3", for_s=10.0)
    verdict = only(world)
    assert verdict.why is Why.IDLE
    assert "ctx.busy" in verdict.evidence


def test_evaluation_that_works_is_no_hang():
    world = Imagined()
    world.all_wait_for("t0", for_s=300.0)
    assert world.verdicts() == []


def test_work_without_an_end_is_a_hang_at_last():
    world = Imagined()
    world.all_wait_for("t0", for_s=601.0)
    assert only(world).why is Why.ABSENT


def test_chain_of_waits_leads_to_its_end():
    world = Imagined()
    world.waits("t0", silent=["t1"])
    world.waits("t1", silent=["t2"])
    world.waits("t2", "t3")
    world.process("t3", beat_age=1.5)
    world.process("t1", idle_for=60.0)
    verdict = only(world)
    assert (verdict.trainer, verdict.named_by) == ("t3", ("t2",))


def test_two_that_hang_at_once_are_both_found():
    world = Imagined()
    world.process("t1", stopped_for=1.0)
    world.process("t3", beat_age=2.0)
    world.all_wait_for("t1", "t3")
    assert {(v.trainer, v.why) for v in world.verdicts()} == {("t1", Why.STOPPED), ("t3", Why.GIL)}


def test_stopped_member_that_is_awaited_in_a_regroup_is_hung():
    world = Imagined()
    world.process("t3", stopped_for=STOPPED_S)
    world.trainer("t3", joined=False)
    assert only(world).trainer == "t3"


def test_word_of_another_epoch_or_of_long_ago_does_not_count():
    world = Imagined()
    world.process("t3", beat_age=2.0)
    world.waits("t0", "t3", epoch=2)
    world.waits("t1", "t3", for_s=9.0, told_ago=8.0)
    assert world.verdicts() == []


@pytest.mark.parametrize("late", [0.6, 3.0])
def test_look_of_an_agent_that_was_late_itself_condemns_nobody(late):
    world = Imagined()
    world.all_wait_for("t3")
    world.process("t3", beat_age=2.0, late_s=late)
    assert world.verdicts() == []


def test_strain_lengthens_what_a_held_gil_may_take():
    world = Imagined()
    world.strain_s = 0.2
    world.all_wait_for("t3")
    world.process("t3", beat_age=1.5)
    assert world.verdicts() == []
    world.process("t3", beat_age=1.7)
    assert only(world).why is Why.GIL


def test_process_on_a_node_whose_agent_is_away_is_not_judged():
    world = Imagined()
    world.all_wait_for("t3")
    world.process("t3", beat_age=5.0)
    world.node("b2", attached=False)
    assert world.verdicts() == []


def test_all_waiting_in_a_circle_is_no_hang_of_anybody():
    world = Imagined()
    for one, other in (("t0", "t1"), ("t1", "t2"), ("t2", "t3"), ("t3", "t0")):
        world.process(one, idle_for=60.0)
        world.waits(one, silent=[other])
    assert isinstance(only(world), HungLink)


def test_stop_that_may_be_over_as_its_node_tells_nothing_counts_no_more():
    world = Imagined()
    world.process("t3", stopped_for=UNAWAITED_S)
    world.silent(world.trainers["t3"].node, for_s=1.0)
    assert [v for v in world.verdicts() if getattr(v, "why", None) is Why.STOPPED] == []
