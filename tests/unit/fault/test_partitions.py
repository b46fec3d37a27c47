from imagined_facts import NOW, Imagined

from atoll.fault.limits import SILENCE_S, TOGETHER_S, UNAWAITED_S
from atoll.fault.verdicts import NodeLost, Partitioned


def only(world):
    (verdict,) = world.verdicts()
    return verdict


def cut_off(for_s=1.0, **options):
    """Island b is silent to everybody on our side."""
    world = Imagined(**options)
    world.silent("b1", "b2", for_s=for_s)
    world.waits("t0", "t2", "t3", for_s=for_s)
    world.waits("t1", "t2", "t3", for_s=for_s)
    return world


def deaf(for_s=1.0, **options):
    """The islands do not hear each other; both reach us."""
    world = Imagined(**options)
    for one in ("a1", "a2"):
        for other in world.watchers[one]:
            if other.startswith("b"):
                world.unheard(one, by=[other], for_s=for_s)
                world.unheard(other, by=[one], for_s=for_s)
    return world


def test_island_that_falls_silent_as_a_whole_is_cut_off():
    verdict = only(cut_off())
    assert isinstance(verdict, Partitioned)
    assert (verdict.kept, verdict.cut, verdict.reached) == (("a1", "a2"), ("b1", "b2"), False)


def test_island_is_given_time_to_fall_silent_as_a_whole():
    world = cut_off(SILENCE_S)
    world.silent("b2", for_s=SILENCE_S - 0.1)
    assert world.verdicts() == []
    world = cut_off(SILENCE_S + TOGETHER_S)
    world.silent("b2", for_s=SILENCE_S - 0.1)
    verdict = only(world)
    assert isinstance(verdict, NodeLost)
    assert verdict.node == "b1"


def test_island_that_nobody_needs_is_given_that_time_after_its_own_limit():
    world = Imagined(committed_ago=60.0)
    world.silent("b1", for_s=UNAWAITED_S + TOGETHER_S / 2)
    world.silent("b2", for_s=UNAWAITED_S - TOGETHER_S / 2)
    assert world.verdicts() == []
    world.silent("b2", for_s=UNAWAITED_S)
    assert isinstance(only(world), Partitioned)
    world.silent("b1", for_s=UNAWAITED_S + TOGETHER_S)
    world.silent("b2", for_s=UNAWAITED_S - TOGETHER_S / 2)
    assert isinstance(only(world), NodeLost)


def test_two_nodes_of_two_islands_are_lost_each():
    world = Imagined()
    world.silent("a2", "b2", for_s=1.0)
    world.waits("t0", "t1", "t3")
    world.waits("t2", "t1", "t3")
    assert {v.node for v in world.verdicts()} == {"a2", "b2"}


def test_islands_of_one_node_are_lost_nodes():
    world = Imagined(islands=(("a1",), ("a2",), ("b1",), ("b2",)))
    world.silent("b2", for_s=1.0)
    world.all_wait_for("t3")
    assert isinstance(only(world), NodeLost)


def test_host_that_died_is_no_part_that_reaches_us():
    world = Imagined()
    world.unheard("b1", by=["a1"], for_s=SILENCE_S)
    world.silent("b1", for_s=SILENCE_S - 0.15)
    world.all_wait_for("t2")
    assert world.verdicts() == []
    world = Imagined()
    world.unheard("b1", by=["a1"], for_s=SILENCE_S)
    world.all_wait_for("t2")
    assert isinstance(only(world), Partitioned)


def test_parts_that_both_reach_us_are_split_once_the_run_feels_it():
    world = deaf()
    assert world.verdicts() == []
    world.waits("t0", silent=["t2"])
    verdict = only(world)
    assert (verdict.kept, verdict.cut) == (("a1", "a2"), ("b1", "b2"))
    assert verdict.reached
    assert verdict.run == "r"


def test_part_of_rank_0_goes_on_where_both_are_equal():
    world = deaf()
    for name, rank in (("t0", 2), ("t1", 3), ("t2", 0), ("t3", 1)):
        world.trainer(name, rank=rank)
    world.waits("t0", silent=["t2"])
    assert only(world).kept == ("b1", "b2")


def test_larger_part_goes_on():
    world = deaf()
    world.trainer("t0", rank=None)
    world.waits("t1", silent=["t2"])
    assert only(world).kept == ("b1", "b2")


def test_beats_that_a_firewall_swallows_split_nobody():
    world = deaf(for_s=600.0, committed_ago=0.1)
    world.process("t1", idle_for=5.0)
    world.waits("t0", "t1")
    assert world.verdicts() == []


def test_regroup_across_the_cut_feels_it():
    world = deaf()
    for name in world.trainers:
        world.trainer(name, joined=False)
    assert isinstance(only(world), Partitioned)


def test_one_link_that_is_cut_loses_one_of_its_ends():
    world = Imagined()
    world.unheard("a2", by=["b2"], for_s=1.0)
    world.unheard("b2", by=["a2"], for_s=1.0)
    world.waits("t1", silent=["t3"])
    world.waits("t3", silent=["t1"])
    verdict = only(world)
    assert isinstance(verdict, Partitioned)
    assert len(verdict.cut) == 1
    assert verdict.cut[0] in {"a2", "b2"}


def test_end_of_rank_0_stays_when_its_link_is_cut():
    world = Imagined()
    world.unheard("a1", by=["a2"], for_s=1.0)
    world.waits("t1", silent=["t0"])
    assert only(world).cut == ("a2",)


def test_node_with_two_links_cut_is_the_end_that_leaves():
    world = Imagined()
    world.unheard("b2", by=["a2", "b1"], for_s=1.0)
    world.waits("t1", silent=["t3"])
    world.waits("t2", silent=["t3"])
    assert only(world).cut == ("b2",)


def test_listener_that_is_silent_itself_splits_nobody():
    world = deaf()
    world.waits("t0", silent=["t2"], for_s=0.5)
    for node in ("a2", "b1", "b2"):
        world.node(node, heard_at=NOW - 2.0)
    assert not any(isinstance(v, Partitioned) and v.reached for v in world.verdicts())
