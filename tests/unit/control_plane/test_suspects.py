"""A link that members had to meet around: left out of what they are told, asked after, taken back."""

import pytest

from atoll.collectives.probing import Lane
from atoll.control_plane.probes import Probes
from atoll.control_plane.returns import PLANNED_MEMBERS, RETURN_S, Gain, Return, Returns, Stay, _Last, decide, gain_of
from atoll.control_plane.suspects import ASK_S, GOOD, SUSPECT_LIMIT_S
from atoll.schema.messages import AgentHello, PeerProbed, Versions
from atoll.schema.topology import Detour, Door, Link, Nic

FAST, SLOW = 60e6, 6e6
NODES = "abc"
LANE = Lane(source="a", source_nic="ib0", target="b", target_nic="ib0")
AROUND = Detour(source="b", source_nic="eth0", target="a", target_nic="eth0")


class World:
    """Three hosts on a fast and a slow network, all measured; a run works on all of them. `cut`: lanes that are dead."""

    def __init__(self):
        self.probes, self.clock, self.cut, self.asked = Probes(), 100.0, set(), []
        self.slow_answers = False
        for at, node in enumerate(NODES):
            self.attach(node, at)
        self.busy = set()
        self.go(60)
        self.busy, self.asked = set(NODES), []

    def attach(self, node, at):
        nics = tuple(Nic(name=n, host=f"10.{k}.0.{at + 1}", prefix=24) for k, n in enumerate(("ib0", "eth0")))
        hello = AgentHello(
            node=node,
            pid=1,
            address=nics[1].host,
            state_dir="/",
            versions=Versions(atoll="0", protocol=1, python="3"),
            last_incarnation=0,
            nics=nics,
            doors=tuple(Door(nic=n.name, host=n.host, port=1) for n in nics),
        )
        self.probes.attached(hello, {}, clock=self.clock, now=self.clock)

    def go(self, seconds):
        until = self.clock + seconds - 0.05
        while self.clock < until:
            self.clock += 0.1
            _, orders = self.probes.tick(clock=self.clock, now=self.clock, busy=self.busy)
            for node, order in orders:
                self.asked.append((node, order.peer, order.nic, order.limit_s))
                found = self.answer(node, order)
                self.clock += found.seconds if self.slow_answers else 0.0
                self.probes.probed(found, clock=self.clock, busy=self.busy)

    def answer(self, node, order):
        rate = FAST if order.nic == "ib0" else SLOW
        ends = [(node, order.nic, order.peer, order.door.nic), (order.peer, order.door.nic, node, order.nic)]
        links = tuple(
            Link(source=a, source_nic=i, target=b, target_nic=j, latency_s=1e-4, bandwidth=rate) for a, i, b, j in ends
        )
        dead = (node, order.peer, order.nic) in self.cut
        return PeerProbed(
            request=order.request,
            peer=order.peer,
            at=self.clock,
            seconds=1.0 if dead else 0.1,
            links=() if dead else links,
            beside=order.beside,
            problem="no answer in time" if dead else "",
        )

    def told(self, *nodes):
        return {(k.source, k.source_nic, k.target) for k in self.probes.part(frozenset(nodes)).links}


@pytest.fixture
def world():
    return World()


def test_pair_that_met_by_the_slow_network_makes_the_fast_lane_suspect(world):
    version = world.probes.part(frozenset("ab")).version
    world.probes.met("run", 2, [AROUND], clock=world.clock)
    assert world.told("a", "b") == {("a", "eth0", "b"), ("b", "eth0", "a")}
    assert world.probes.part(frozenset("ab")).version > version
    assert ("a", "ib0", "c") in world.told("a", "c")
    assert world.probes.suspects.take_detours() == [("run", 2, LANE)]


def test_pair_that_met_by_the_best_makes_nothing_suspect(world):
    met = Detour(source="a", source_nic="ib0", target="b", target_nic="ib0")
    world.probes.met("run", 2, [met], clock=world.clock)
    assert not world.probes.suspects


def test_suspect_is_asked_every_few_seconds_with_a_short_limit_though_its_nodes_work(world):
    world.cut.add(("a", "b", "ib0"))
    world.probes.met("run", 2, [AROUND], clock=world.clock)
    world.go(6 * ASK_S)
    assert world.asked.count(("a", "b", "ib0", SUSPECT_LIMIT_S)) == 5
    assert LANE in world.probes.suspects


def test_nodes_are_measured_while_many_lanes_are_suspect(world):
    for nic in ("ib0", "eth0"):
        for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
            world.cut.add((a, b, nic))
            world.probes.suspects.add(Lane(source=a, source_nic=nic, target=b, target_nic=nic), FAST, world.clock)
    world.slow_answers = True
    world.go(2 * ASK_S)
    world.attach("d", len(NODES))
    world.go(20)
    assert ("a", "ib0", "d") in world.told("a", "d")


def test_suspect_that_answers_twice_counts_again(world):
    world.probes.met("run", 2, [AROUND], clock=world.clock)
    world.go(ASK_S + 0.5)
    assert world.probes.suspects.take_well() == set()
    world.go((ASK_S + 0.5) * (GOOD - 1))
    assert world.probes.suspects.take_well() == {LANE}
    assert ("a", "ib0", "b") in world.told("a", "b")


def test_suspect_that_answers_once_and_then_no_more_stays_suspect(world):
    world.probes.met("run", 2, [AROUND], clock=world.clock)
    world.go(ASK_S + 0.5)
    world.cut.add(("a", "b", "ib0"))
    world.go(ASK_S + 0.5)
    world.cut.clear()
    world.go(ASK_S + 0.5)
    assert LANE in world.probes.suspects


def test_suspects_of_a_pair_that_has_nothing_else_are_told_all_the_same(world):
    for nic in ("ib0", "eth0"):
        world.probes.suspects.add(Lane(source="a", source_nic=nic, target="b", target_nic=nic), FAST, world.clock)
    assert ("a", "ib0", "b") in world.told("a", "b")


def test_suspects_of_a_host_that_is_lost_are_forgotten(world):
    world.probes.met("run", 2, [AROUND], clock=world.clock)
    world.probes.lost("b")
    assert not world.probes.suspects


def test_return_says_what_it_brings(world):
    gain = gain_of(list("abc"), world.probes.part(frozenset(NODES)), [LANE])
    assert gain.with_s < 0.7 * gain.without_s
    found = decide([LANE], gain, None)
    assert isinstance(found, Return)
    assert found.reason.startswith("a link is well again: a ib0 - b ib0: 8 MiB take ")


def test_lane_that_no_plan_uses_is_no_reason_to_connect_anew(world):
    slow = Lane(source="a", source_nic="eth0", target="b", target_nic="eth0")
    found = decide([slow], gain_of(list("abc"), world.probes.part(frozenset(NODES)), [slow]), None)
    assert isinstance(found, Stay)
    assert "not worth a new epoch" in found.reason


@pytest.mark.parametrize(("since_s", "kind"), [(None, Return), (59.0, Stay), (60.0, Return)])
def test_run_goes_back_once_a_minute_at_most(since_s, kind):
    assert isinstance(decide([LANE], Gain(without_s=1.0, with_s=0.1), since_s), kind)


def test_more_members_than_can_be_planned_for_go_back_to_any_better_link():
    assert decide([LANE], Gain(without_s=None, with_s=None), None) == Return(
        reason="a link is well again: a ib0 - b ib0"
    )


def test_plans_of_many_members_are_not_compared(world):
    many = list("abc" * PLANNED_MEMBERS)[: PLANNED_MEMBERS + 1]
    assert gain_of(many, world.probes.part(frozenset(NODES)), [LANE]) == Gain(without_s=None, with_s=None)


def test_lane_that_answers_probes_but_takes_no_members_is_tried_less_and_less_often():
    returns = Returns()
    returns.last["run"] = _Last(0.0, 3, frozenset({LANE}))
    returns.met("run", 3, LANE)
    returns.met("run", 3, LANE)
    assert returns.last["run"].span_s == 2 * RETURN_S
    assert isinstance(decide([LANE], Gain(without_s=1.0, with_s=0.1), 90.0, returns.last["run"].span_s), Stay)
    returns.met("run", 4, LANE)  # cut anew, later
    assert returns.last["run"].span_s == 2 * RETURN_S
