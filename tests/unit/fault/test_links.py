from imagined_facts import Imagined

from atoll.fault.links import SETTLE_S
from atoll.fault.verdicts import Desync, HungLink, LinkBroken, TrainerLost

UNLIKE = "different operations: rank 1 calls all_reduce sum of float32[8], rank 0 broadcast of 8 bytes"


def only(world):
    (verdict,) = world.verdicts()
    return verdict


def circle(world, *, for_s=1.0):
    names = list(world.trainers)
    for one, other in zip(names, (*names[1:], names[0]), strict=True):
        world.waits(one, silent=[other], for_s=for_s)


def test_broken_link_is_no_verdict_before_a_death_could_be_reported():
    world = Imagined()
    world.blame("t0", "t1", ago=SETTLE_S / 2)
    assert world.verdicts() == []


def test_broken_link_without_a_death_asks_for_a_new_epoch():
    world = Imagined()
    world.blame("t0", "t1", ago=SETTLE_S)
    verdict = only(world)
    assert isinstance(verdict, LinkBroken)
    assert "nobody died" in verdict.evidence


def test_blame_of_an_earlier_epoch_or_of_no_member_is_spent():
    world = Imagined()
    world.blame("t0", "t1", ago=30.0, epoch=2)
    world.blame("t0", "gone", ago=30.0)
    assert world.verdicts() == []


def test_peer_blamed_in_three_epochs_is_lost():
    world = Imagined()
    for epoch, ago in ((1, 30.0), (2, 20.0), (3, 2.0)):
        world.blame("t0", "t1", ago=ago, epoch=epoch)
    verdict = only(world)
    assert isinstance(verdict, TrainerLost)
    assert verdict.trainer == "t1"
    assert not verdict.proof


def test_three_strikes_count_only_within_a_minute():
    world = Imagined()
    for epoch, ago in ((1, 90.0), (2, 20.0), (3, 2.0)):
        world.blame("t0", "t1", ago=ago, epoch=epoch)
    assert isinstance(only(world), LinkBroken)


def test_circle_of_waits_is_a_hung_link_once_it_lasts():
    world = Imagined(step_s=0.1)
    circle(world, for_s=0.6)
    assert world.verdicts() == []
    world.words = []
    circle(world, for_s=0.7)
    assert isinstance(only(world), HungLink)


def test_hung_link_is_that_of_the_longest_wait():
    world = Imagined()
    circle(world)
    world.words = [w for w in world.words if w.trainer != "t2"]
    world.waits("t2", silent=["t3"], for_s=1.4)
    verdict = only(world)
    assert (verdict.waiting, verdict.silent) == ("t2", "t3")


def test_slow_transfer_of_a_slow_run_is_no_hung_link():
    world = Imagined(step_s=2.0)
    circle(world, for_s=5.0)
    assert world.verdicts() == []


def test_whoever_is_an_end_of_all_starved_pairs_is_to_blame():
    world = Imagined()
    world.waits("t0", silent=["t3"], for_s=1.0)
    world.waits("t3", silent=["t1"], for_s=1.3)
    world.waits("t1", silent=["t3"], for_s=0.9)
    assert only(world).silent == "t3"


def test_link_that_hangs_in_a_third_epoch_loses_its_end():
    world = Imagined()
    world.blame("t0", "t3", ago=30.0, epoch=1)
    world.blame("t0", "t3", ago=20.0, epoch=2)
    world.waits("t0", silent=["t3"])
    world.waits("t3", silent=["t0"])
    world.waits("t1", silent=["t3"])
    assert only(world).trainer == "t3"


def test_calls_that_differ_once_are_left_to_the_program():
    world = Imagined()
    world.blame("t0", "t1", ago=0.0, evidence=UNLIKE)
    assert world.verdicts() == []


def test_calls_that_differ_again_are_the_programs_bug():
    world = Imagined()
    world.blame("t0", "t1", ago=5.0, epoch=2, evidence=UNLIKE)
    world.blame("t0", "t1", ago=0.0, evidence=UNLIKE)
    verdict = only(world)
    assert isinstance(verdict, Desync)
    assert "all_reduce" in verdict.evidence
    assert "broadcast" in verdict.evidence
