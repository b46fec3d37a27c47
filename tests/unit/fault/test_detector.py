from atoll.fault.detector import (
    MISSING_S,
    NODE_SILENCE_S,
    SETTLE_S,
    Blame,
    LinkBroken,
    MissingFacts,
    NodeFacts,
    NodeLost,
    RunFacts,
    TrainerLost,
    fold,
)


def run_facts(*blames, epoch=1, members=("a", "b")):
    return RunFacts(run="r", epoch=epoch, members=members, blames=blames)


def node(name, *, attached=False, heard_at=0.0, ray_alive=False, local=False):
    return NodeFacts(node=name, attached=attached, heard_at=heard_at, ray_alive=ray_alive, local=local)


def blame(at, epoch=1, peer="b"):
    return Blame(at=at, peer=peer, epoch=epoch, evidence="reset")


def links(run, now):
    return fold(runs=(run,), nodes=(), missing=(), now=now)


def nodes(*facts, now):
    return fold(runs=(), nodes=facts, missing=(), now=now)


def test_broken_link_is_no_verdict_before_a_death_could_be_reported():
    assert links(run_facts(blame(10.0)), 10.0 + SETTLE_S / 2) == []


def test_broken_link_without_a_death_asks_for_a_new_epoch():
    (verdict,) = links(run_facts(blame(10.0)), 10.0 + SETTLE_S)
    assert isinstance(verdict, LinkBroken)
    assert "nobody died" in verdict.evidence


def test_blame_of_an_earlier_epoch_is_spent():
    assert links(run_facts(blame(10.0, epoch=1), epoch=2), 100.0) == []


def test_blame_of_one_who_is_no_member_any_more_is_spent():
    assert links(run_facts(blame(10.0, peer="gone")), 100.0) == []


def test_peer_blamed_in_three_epochs_is_lost():
    facts = run_facts(blame(1.0, 1), blame(10.0, 2), blame(20.0, 3), epoch=3)
    (verdict,) = links(facts, 22.0)
    assert isinstance(verdict, TrainerLost)
    assert verdict.trainer == "b"
    assert not verdict.proof


def test_three_strikes_count_only_within_a_minute():
    facts = run_facts(blame(1.0, 1), blame(100.0, 2), blame(120.0, 3), epoch=3)
    assert isinstance(links(facts, 122.0)[0], LinkBroken)


def test_missing_process_is_lost_with_proof_once_its_agent_had_time():
    facts = MissingFacts(run="r", trainer="a", node="n", since=5.0)
    assert fold(runs=(), nodes=(), missing=(facts,), now=5.0 + MISSING_S - 0.1) == []
    (verdict,) = fold(runs=(), nodes=(), missing=(facts,), now=5.0 + MISSING_S)
    assert verdict.proof


def test_silent_node_is_lost_only_while_another_is_heard():
    now = NODE_SILENCE_S + 1
    assert nodes(node("far"), node("other", attached=True, heard_at=0.0), now=now) == []
    (verdict,) = nodes(node("far"), node("other", attached=True, heard_at=now), now=now)
    assert isinstance(verdict, NodeLost)
    assert "other is heard" in verdict.evidence


def test_silent_node_that_ray_still_sees_is_not_lost():
    now = NODE_SILENCE_S + 1
    assert nodes(node("far", ray_alive=True), node("other", attached=True, heard_at=now), now=now) == []


def test_own_host_is_never_lost():
    now = NODE_SILENCE_S + 1
    assert nodes(node("here", local=True), node("other", attached=True, heard_at=now), now=now) == []
