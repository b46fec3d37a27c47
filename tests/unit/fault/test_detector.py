import pytest
from imagined_facts import NOW, Imagined

from atoll.fault.detector import MISSING_S
from atoll.fault.facts import MissingFacts
from atoll.fault.verdicts import Hung, NodeLost


def missing(seconds):
    return (MissingFacts(run="r", trainer="t0", node="a1", since=NOW - seconds),)


def test_cluster_where_all_is_well_has_no_verdict():
    assert Imagined().verdicts() == []


def test_missing_process_is_lost_with_proof_once_its_agent_had_time():
    assert Imagined().verdicts(missing=missing(MISSING_S - 0.1)) == []
    (verdict,) = Imagined().verdicts(missing=missing(MISSING_S))
    assert verdict.proof


def trouble(kind):
    world = Imagined()
    if kind == "stopped":
        world.process("t3", stopped_for=1.0)
    elif kind == "silent":
        world.silent("b2", for_s=1.0)
    elif kind == "broken":
        world.blame("t0", "t3", ago=3.0)
    else:
        world.waits("t3", silent=["t0"])
        world.waits("t0", silent=["t3"])
    if kind != "circle":
        world.all_wait_for("t3")
    return world


@pytest.mark.parametrize("kind", ["stopped", "silent", "broken", "circle"])
def test_stalled_control_plane_condemns_nobody_but_by_proof(kind):
    world = trouble(kind)
    assert len(world.verdicts()) == 1
    world.steady = False
    assert world.verdicts() == []
    (verdict,) = world.verdicts(missing=missing(60.0))
    assert verdict.proof


def test_hung_trainer_explains_the_connections_that_wait_for_it():
    world = trouble("stopped")
    world.blame("t0", "t1", ago=3.0)
    (verdict,) = world.verdicts()
    assert isinstance(verdict, Hung)


def test_lost_node_explains_the_connections_that_end_with_it():
    world = trouble("silent")
    world.blame("t0", "t3", ago=3.0)
    (verdict,) = world.verdicts()
    assert isinstance(verdict, NodeLost)


def test_hung_trainer_and_lost_node_are_both_found_at_once():
    world = trouble("silent")
    world.process("t1", stopped_for=1.0)
    world.words = []
    world.all_wait_for("t1", "t3")
    assert {type(v) for v in world.verdicts()} == {Hung, NodeLost}


def test_same_facts_give_the_same_verdicts():
    facts = trouble("circle").facts()
    world = trouble("circle")
    assert world.verdicts() == world.verdicts()
    assert facts == world.facts()
