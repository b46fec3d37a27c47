"""The arbiter's core, one law at a time; random events are in `tests/properties/test_arbiter.py`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from imagined_arbiter import ONE, Flavor, Shell, amount, ask, node

from atoll.control_plane.arbiter import events as ev
from atoll.control_plane.arbiter import reasons
from atoll.control_plane.arbiter.accounts import Accounts
from atoll.control_plane.arbiter.catalog import selects
from atoll.control_plane.arbiter.core import Arbiter, decide
from atoll.control_plane.arbiter.decisions import Decisions
from atoll.control_plane.arbiter.model import (
    Grant,
    IslandState,
    Obtainable,
    Option,
    QueueSpec,
    Quota,
    Settings,
    Snapshot,
    Usage,
)
from atoll.schema.codec import decode_as, encode


def queues(*names, **given):
    return [QueueSpec(name=name, **given) for name in names]


def started(decisions):
    return {one.run: one for one in decisions.starts}


# -- order ---------------------------------------------------------------------------------------------------------------


def test_shares_of_two_queues_even_out_by_weight():
    shell = Shell(
        [node("n", gpus=9)], queues=[QueueSpec(name="heavy", weight=2.0), QueueSpec(name="light", weight=1.0)]
    )
    for n in range(9):
        shell.submit(ask(f"h{n}", queue="heavy"))
        shell.submit(ask(f"l{n}", queue="light"))
    got = started(shell.tick())
    assert sum(run.startswith("h") for run in got) == 6


def test_queue_that_used_much_lately_comes_after_one_that_did_not():
    snapshot = Snapshot(
        now=0.0,
        nodes=(node("n", gpus=1),),
        queues=tuple(queues("q", "r")),
        asks=(ask("first", queue="q", at=0.0), ask("second", queue="r", at=1.0)),
        usage=(Usage(queue="q", share=0.5, at=0.0),),
    )
    assert list(started(decide(snapshot))) == ["second"]


def test_users_of_one_queue_take_turns():
    shell = Shell([node("n", gpus=4)])
    for n in range(4):
        shell.submit(ask(f"a{n}", user="a", at=0.0))
        shell.submit(ask(f"b{n}", user="b", at=1.0))
    got = started(shell.tick())
    assert sorted(run[0] for run in got) == ["a", "a", "b", "b"]


def test_priority_counts_no_more_than_its_queue_allows():
    shell = Shell([node("n", gpus=1)], queues=[QueueSpec(name="q", highest_priority=40), QueueSpec(name="default")])
    shell.submit(ask("loud", queue="q", priority=100))
    shell.submit(ask("plain", priority=50, at=1.0))
    assert list(started(shell.tick())) == ["plain"]


def test_use_counts_half_after_a_half_life():
    accounts = Accounts(100.0)
    accounts.total = (0, 10)
    accounts.put_queue(QueueSpec(name="q"))
    accounts.charge("q", "u", {"f": (0, 10)}, sign=1, now=0.0)
    assert accounts.share("q", None, 100.0) == pytest.approx((1.0, 0.5))
    accounts.charge("q", "u", {"f": (0, 10)}, sign=-1, now=100.0)
    assert accounts.share("q", "u", 200.0) == pytest.approx((0.0, 0.25))


# -- placement -----------------------------------------------------------------------------------------------------------


def test_gang_takes_the_island_that_it_fills_best():
    wide = [node(f"w{n}", island="wide", gpus=4) for n in range(3)]
    tight = [node(f"t{n}", island="tight", gpus=4) for n in range(2)]
    shell = Shell([*wide, *tight])
    shell.submit(ask("r", least=8, most=8))
    assert set(started(shell.tick())["r"].nodes) == {"t0", "t1"}


def test_gang_that_no_island_holds_takes_the_fewest():
    shell = Shell([node(f"{island}{n}", island=island, gpus=4) for island in "abc" for n in range(2)])
    shell.submit(ask("r", least=12, most=12))
    reason = started(shell.tick())["r"].reason
    assert reason.islands == 2


def test_group_that_holds_one_model_is_not_divided_over_islands():
    shell = Shell([node("a", island="a", gpus=6), node("b", island="b", gpus=6)])
    shell.submit(ask("r", least=8, most=8, group=4))
    got = started(shell.tick())["r"].nodes
    assert sorted((got.count("a"), got.count("b"))) == [4, 4]


def test_spare_stands_in_another_failure_domain_than_the_workers():
    states = [node("a1", domain="rack-1", gpus=4), node("a2", domain="rack-1", gpus=4), node("a3", domain="rack-2")]
    shell = Shell(states)
    shell.submit(ask("r", least=3, most=3, spares=1))
    got = started(shell.tick())["r"]
    assert set(got.nodes) == {"a1"}
    assert got.spares == ("a3",)


def test_run_that_sums_much_takes_the_island_with_the_faster_links():
    shell = Shell([node("slow", island="s", gpus=4), node("fast", island="f", gpus=8)])
    for island, inside in (("s", 1e9), ("f", 1e10)):
        shell.do(ev.IslandMeasured(island=IslandState(name=island, inside=inside)))
    shell.submit(ask("r", least=4, most=4, declared={"A": 1.0}, batch=8.0, sync_bytes=1e9))
    assert set(started(shell.tick())["r"].nodes) == {"fast"}


def test_run_whose_node_turned_out_to_be_on_another_island_yields_there():
    shell = Shell([node("n0", gpus=2, island="guessed"), node("n1", gpus=2, island="measured")])
    for name in ("r0", "r1"):
        shell.submit(ask(name, least=2, most=2, priority=10))
    shell.tick()
    shell.submit(ask("equal", least=2, most=2, priority=10))
    assert not shell.tick(100.0).suspends  # but it was looked at where they are
    shell.put(node("n0", gpus=2, island="measured"))
    shell.submit(ask("wide", at=1.0, least=4, most=4, options=(Option(islands=1),), priority=90))
    assert {one.run for one in shell.tick(101.0).suspends} == {"r0", "r1"}


def test_run_moves_to_a_faster_device_that_its_user_declared_though_it_was_measured_on_another_only():
    shell = Shell([node("k", device="K80", gpus=2), node("busy", device="A100", gpus=2)])
    shell.submit(ask("other", least=2, most=2, declared={"A100": 1.0, "K80": 0.1}))
    assert set(started(shell.tick())["other"].nodes) == {"busy"}
    shell.submit(ask("r", least=2, most=2, declared={"A100": 10.0, "K80": 1.0}))
    assert set(started(shell.tick())["r"].nodes) == {"k"}
    shell.do(ev.MeasuredSpeed(run="r", device="K80", samples_per_s=1.0))
    shell.end("other")
    shell.now += 100.0
    moves = shell.tick().moves
    assert [(m.run, set(m.takes)) for m in moves] == [("r", {"busy"})]


def test_those_who_decide_by_snapshots_look_at_every_run_in_turn_for_a_better_place():
    nodes = [node(f"n{i}", gpus=1) for i in range(6)] + [node("room", device="B", gpus=1)]
    asks = [ask(f"r{i}", declared={"A": 1.0, "B": 9.0}) for i in range(6)]
    grants = tuple(Grant(ask=one, nodes=(f"n{i}",), since=0.0) for i, one in enumerate(asks))
    moved = set()
    for now in range(1000, 1003):
        snapshot = Snapshot(now=float(now), nodes=tuple(nodes), grants=grants, queues=(QueueSpec(name="default"),))
        moved |= {move.run for move in decide(snapshot).moves}
    assert moved == {"r4", "r2", "r0"}


def test_drained_node_gets_nothing_new():
    shell = Shell([node("a", drained=True), node("b", gpus=1)])
    shell.submit(ask("r"))
    assert started(shell.tick())["r"].nodes == ("b",)


def test_workers_that_need_nothing_find_room_on_a_full_node():
    shell = Shell([node("a", gpus=2)])
    shell.submit(ask("full", least=2, most=2))
    shell.submit(replace(ask("none", at=1.0, least=3, most=3), each=amount(0, 0)))
    assert started(shell.tick())["none"].nodes == ("a",) * 3


# -- unlike devices ------------------------------------------------------------------------------------------------------


def test_measured_speed_of_the_run_replaces_the_declared_one():
    shell = Shell([node("a", device="A", gpus=1), node("b", device="B", gpus=1)])
    shell.submit(ask("r", declared={"A": 10.0, "B": 5.0}))
    shell.do(ev.MeasuredSpeed(run="r", device="B", samples_per_s=20.0))
    assert started(shell.tick())["r"].nodes == ("b",)


def test_device_goes_to_the_run_that_gains_most_by_it():
    shell = Shell([node("a", device="A", gpus=1), node("b", device="B", gpus=1)])
    shell.submit(ask("little", declared={"A": 11.0, "B": 10.0}, at=0.0))
    shell.submit(ask("much", declared={"A": 10.0, "B": 1.0}, at=1.0))
    got = started(shell.tick())
    assert (got["little"].nodes, got["much"].nodes) == (("b",), ("a",))


# -- refusal -------------------------------------------------------------------------------------------------------------


def test_run_that_never_fits_is_refused_with_what_it_lacks():
    shell = Shell([node("a", gpus=4)])
    shell.submit(ask("r", least=6, most=6))
    (refused,) = shell.tick().refusals
    assert "4 do, 2 CPU and 2 GPU more are needed" in refused.reason.words()


def test_run_that_fits_with_nodes_that_could_be_started_waits_for_them():
    shell = Shell([node("a", gpus=4)])
    shell.do(ev.ObtainableChanged(obtainable=(Obtainable(kind=node("x", gpus=4).kind, most=2),)))
    shell.submit(ask("r", least=6, most=6))
    decisions = shell.tick()
    assert not decisions.refusals
    assert [h.run for h in decisions.holds] == ["r"]


def test_nobody_is_refused_while_there_is_no_node_at_all():
    shell = Shell([])
    shell.submit(ask("r"))
    assert not shell.tick().refusals


def test_waiting_run_is_not_refused_because_a_node_went():
    shell = Shell([node("a", gpus=4), node("b", gpus=4)])
    shell.submit(ask("other", least=4, most=4, at=0.0))
    shell.submit(ask("r", least=8, most=8, at=1.0))
    shell.tick()
    shell.lose("b" if "a" in shell.grants["other"].nodes else "a")
    decisions = shell.tick(1.0)
    assert not decisions.refusals


# -- yielding ------------------------------------------------------------------------------------------------------------


def held(run, names, **given):
    return Grant(ask=ask(run, **given), nodes=tuple(names), since=0.0)


def scene(*grants, asks=(), nodes=(), now=1000.0, **given):
    return Snapshot(now=now, nodes=nodes, queues=tuple(queues("default")), grants=grants, asks=asks, **given)


def test_nobody_shrinks_where_the_gang_would_still_not_fit():
    snapshot = scene(
        held("elastic", ["a"] * 4, least=2, most=4),
        held("fixed", ["b"] * 4, least=4, most=4),
        nodes=(node("a", gpus=4), node("b", gpus=4)),
        asks=(ask("wide", least=6, most=6, at=999.0, priority=50),),
    )
    decisions = decide(snapshot)
    assert not decisions.shrinks
    assert not decisions.suspends


def test_spares_go_before_workers():
    grant = replace(held("elastic", ["a"] * 3, least=1, most=3), spares=("a",))
    decisions = decide(scene(grant, nodes=(node("a", gpus=4),), asks=(ask("small", at=999.0),)))
    (shrink,) = decisions.shrinks
    assert (shrink.to, shrink.gives, shrink.spares) == (3, (), ("a",))


def test_run_of_lower_priority_shrinks_nobody():
    decisions = decide(
        scene(
            held("elastic", ["a"] * 4, least=1, most=4),
            nodes=(node("a", gpus=4),),
            asks=(ask("meek", priority=10, at=999.0),),
        )
    )
    assert not decisions.shrinks


def test_run_that_was_disturbed_lately_is_left_alone():
    grant = held("elastic", ["a"] * 4, least=1, most=4, disturbed=(990.0,))
    decisions = decide(scene(grant, nodes=(node("a", gpus=4),), asks=(ask("r", at=999.0),)))
    assert not decisions.shrinks
    assert "1 disturbed too lately" in decisions.holds[0].reason.words()


def test_what_others_give_up_is_kept_for_whom_they_gave_it():
    shell = Shell([node("a", gpus=4)], delay_s=2.0)
    shell.submit(ask("elastic", least=1, most=4))
    shell.tick(0.0)
    shell.submit(ask("r", at=1.0, least=3, most=3))
    assert shell.tick(1.0).shrinks
    shell.submit(ask("small", at=0.5))
    shell.tick(2.0)
    assert list(started(shell.tick(3.0))) == ["r"]


def test_what_is_kept_is_handed_on_from_snapshot_to_snapshot():
    shell = Shell([node("a", gpus=4)], delay_s=2.0)
    shell.submit(ask("elastic", least=1, most=4))
    shell.tick(0.0)
    shell.submit(ask("r", at=1.0, least=3, most=3))
    shell.tick(1.0)
    shell.submit(ask("small", at=0.5))
    shell.release("elastic", (("a", "a", "a"), ()))
    seen = decode_as(Snapshot, encode(shell.arbiter.snapshot(3.0)))
    assert list(started(decide(seen))) == ["r"]
    assert list(started(decide(replace(seen, kept=())))) == ["small"]


# -- folding -------------------------------------------------------------------------------------------------------------


def test_snapshot_of_an_arbiter_decides_as_the_arbiter_itself():
    shell = Shell([node("a", gpus=4), node("b", gpus=4)], settings=Settings())
    shell.submit(ask("r", least=2, most=6))
    shell.tick(0.0)
    shell.submit(ask("s", at=20.0, least=2, most=2))
    again = decide(decode_as(Snapshot, encode(shell.arbiter.snapshot(20.0))))
    assert again == shell.arbiter.tick(20.0)


def test_decisions_go_through_the_codec_and_back():
    shell = Shell([node("a", gpus=4)])
    shell.submit(ask("r", least=2, most=6))
    shell.submit(ask("never", least=9, most=9))
    shell.submit(ask("waits", least=4, most=4, at=1.0))
    decisions = shell.tick(2.0)
    assert decode_as(Decisions, encode(decisions)) == decisions


def test_node_that_comes_back_is_still_held_by_who_was_on_it():
    arbiter = Arbiter()
    state = node("a", gpus=4)
    arbiter.handle(ev.QueueChanged(queue=QueueSpec(name="default")), now=0.0)
    arbiter.handle(ev.NodeCameOrChanged(node=state), now=0.0)
    arbiter.handle(ev.GrantChanged(grant=held("r", ["a"] * 4, least=4, most=4)), now=0.0)
    arbiter.handle(ev.NodeGone(node="a"), now=1.0)
    arbiter.handle(ev.NodeCameOrChanged(node=state), now=2.0)
    arbiter.handle(ev.AskAdded(ask=ask("s", at=2.0)), now=2.0)
    assert not arbiter.tick(3.0).starts


def test_flavors_that_change_move_what_is_charged_with_them():
    arbiter = Arbiter()
    quota = Quota(flavor="gpu", own=amount(4, 4))
    arbiter.handle(ev.FlavorsChanged(flavors=(Flavor(name="gpu", selector={"device": ("A",)}),)), now=0.0)
    arbiter.handle(ev.QueueChanged(queue=QueueSpec(name="default", quotas=(quota,))), now=0.0)
    arbiter.handle(ev.NodeCameOrChanged(node=node("a", gpus=8)), now=0.0)
    arbiter.handle(ev.GrantChanged(grant=held("r", ["a"] * 4, least=4, most=4)), now=0.0)
    assert arbiter.state.accounts.used("default", "gpu") == (4 * ONE, 4 * ONE)
    arbiter.handle(ev.FlavorsChanged(flavors=(Flavor(name="other-name", selector={"device": ("A",)}),)), now=1.0)
    assert arbiter.state.accounts.used("default", "gpu") == (0, 0)
    assert arbiter.state.accounts.used("default", "other-name") == (4 * ONE, 4 * ONE)


def test_documented_kinds_of_reasons_are_those_of_the_classes():
    classes = [*get_args(reasons.Reason), *get_args(reasons.Obstacle)]
    page = Path(__file__).parents[3] / "docs" / "arbiter.md"
    documented = re.findall(r"^\| `([a-z-]+)` \|", page.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(cls.kind for cls in classes)


@pytest.mark.parametrize(
    ("selector", "labels", "wanted"),
    [
        ({}, {}, True),
        ({"zone": ("a", "b")}, {"zone": "b"}, True),
        ({"zone": ("a", "b")}, {"zone": "c"}, False),
        ({"zone": ("!a",)}, {"zone": "a"}, False),
        ({"zone": ("!a",)}, {}, True),
        ({"zone": ("a",)}, {}, False),
        ({"zone": ("a",), "nic": ("fast",)}, {"zone": "a", "nic": "slow"}, False),
    ],
)
def test_selector_means_what_its_values_say(selector, labels, wanted):
    assert selects(selector, labels) is wanted


def test_option_of_an_unknown_flavor_says_that_no_node_is_of_it():
    shell = Shell([node("a", gpus=4)])
    shell.submit(ask("r", options=(Option(flavors=("h100",)),)))
    (refused,) = shell.tick().refusals
    assert "can never fit" in refused.reason.words()
