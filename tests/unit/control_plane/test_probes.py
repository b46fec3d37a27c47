"""Who is asked to probe whom, driven by a clock of the test; the network answers as a model of it would."""

from __future__ import annotations

import itertools

import pytest

from atoll.control_plane.probes import (
    BUSY_SHARE,
    CHECK_BURST_S,
    LIMIT_S,
    RECHECK_S,
    REFRESH_S,
    RETRY_S,
    SETTLE_S,
    SLOW_AGAIN_S,
    WINDOW_S,
    Probes,
)
from atoll.schema.messages import AgentHello, PeerProbed, Versions
from atoll.schema.topology import Door, Link, Nic, Observation

MB = 1e6


class World:
    """`Probes`, time, and hosts of one NIC each. `rate(a, b, together)` is what a pair reaches."""

    def __init__(self, nodes, rate=lambda _a, _b, _n: 60 * MB):
        self.probes = Probes()
        self.clock, self.rate, self.busy = 100.0, rate, set()
        self.asked = []
        for node in nodes:
            self.attach(node)

    @property
    def now(self):
        return 1e9 + self.clock

    def attach(self, node, results=(), address=None):
        address = address or f"10.0.0.{ord(node)}"
        hello = AgentHello(
            node=node,
            pid=1,
            address=address,
            state_dir="/",
            versions=Versions(atoll="0", protocol=1, python="3"),
            last_incarnation=0,
            nics=(Nic(name="e", host=address, prefix=24),),
            doors=(Door(nic="e", host=address, port=1),),
            probes=tuple(results),
        )
        self.probes.attached(hello, {}, clock=self.clock, now=self.now)

    def tick(self):
        changes, orders = self.probes.tick(clock=self.clock, now=self.now, busy=self.busy)
        for node, order in orders:
            self.asked.append((self.clock, node, order.peer, len(orders), order))
        return changes, orders

    def result(self, node, order, together=1):
        ends = [(node, order.peer), (order.peer, node)]
        links = tuple(
            Link(
                source=a,
                source_nic="e",
                target=b,
                target_nic="e",
                latency_s=1e-4,
                bandwidth=self.rate(a, b, together),
            )
            for a, b in ends
        )
        return PeerProbed(
            request=order.request, peer=order.peer, at=self.now, seconds=0.25, links=links, beside=order.beside
        )

    def run(self, seconds, *, answer=True):
        """Let time pass in ticks; probes take a tick. Returns what people would be told."""
        told = []
        for _ in range(round(seconds * 2)):
            self.clock += 0.5
            changes, orders = self.tick()
            told += changes
            for node, order in orders if answer else ():
                fact = self.result(node, order, len(orders))
                told += self.probes.probed(fact, clock=self.clock, busy=self.busy)
        return told

    def rates(self):
        return {(k.source, k.target): k.bandwidth for k in self.probes.known.topology.links}


def test_new_nodes_are_surveyed_soon_and_nobody_is_in_two_probes():
    world = World("abcd")
    assert world.tick()[1] == []
    world.run(SETTLE_S + 3)
    assert set(world.rates()) == set(itertools.permutations("abcd", 2))
    for at in {a for a, *_ in world.asked}:
        nodes = [n for a, node, peer, *_ in world.asked if a == at for n in (node, peer)]
        assert len(nodes) == len(set(nodes))
    assert world.probes.unmeasured() == 0


def test_one_node_alone_probes_nobody():
    world = World("a")
    world.run(1000)
    assert world.asked == []


def test_every_link_is_measured_again_one_pair_at_a_time():
    world = World("abc")
    world.run(5)
    first, world.asked = len(world.asked), []
    world.run(REFRESH_S)
    assert len(world.asked) == first == 3
    assert {count for *_, count, _ in world.asked} == {1}
    assert len({(node, peer) for _, node, peer, *_ in world.asked}) == 3


def test_a_node_at_work_is_probed_for_one_per_cent_of_its_time_at_most():
    world = World("abcde")
    world.busy = set("ab")
    world.run(3600)
    for node in "ab":
        at = sorted(a for a, *ends, _, _ in world.asked if node in ends)
        assert len(at) > 10
        assert min(y - x for x, y in itertools.pairwise(at)) >= 0.25 / BUSY_SHARE


def test_a_reading_beside_a_jobs_traffic_only_raises():
    world = World("ab")
    world.run(5)
    world.busy, world.rate = {"a"}, lambda _a, _b, _n: 20 * MB
    world.run(REFRESH_S + 10)
    assert world.rates()["a", "b"] == 60 * MB
    world.rate = lambda _a, _b, _n: 90 * MB
    world.run(REFRESH_S + 10)
    assert world.rates()["a", "b"] == 90 * MB
    world.busy, world.rate = set(), lambda _a, _b, _n: 20 * MB
    world.run(REFRESH_S + 10)
    assert world.rates()["a", "b"] == 20 * MB


def sides(a, b):
    return (a in "abcd") == (b in "abcd")


def test_a_trunk_is_found_and_told():
    """60 MB/s each way for all who cross together; alone each of them reaches it."""
    world = World("abcdefgh")
    crossing = {"now": 1}

    def rate(a, b, _):
        return 60 * MB if sides(a, b) else 60 * MB / crossing["now"]

    world.rate = rate
    told = []
    for _ in range(200):
        world.clock += 0.5
        changes, orders = world.tick()
        told += changes
        crossing["now"] = max(1, sum(not sides(n, o.peer) for n, o in orders))
        for node, order in orders:
            told += world.probes.probed(world.result(node, order), clock=world.clock, busy=set())
    trunks = world.probes.known.topology.trunks
    assert {(t.sources, t.targets) for t in trunks} == {
        (tuple("abcd"), tuple("efgh")),
        (tuple("efgh"), tuple("abcd")),
    }
    assert all(t.bandwidth == pytest.approx(60 * MB) for t in trunks)
    assert next(str(c) for c in told).startswith("trunk a b c d -> e f g h: unknown -> 480 Mbit/s: 4 pairs together")
    assert {i.nodes for i in world.probes.tree.innermost()} == {tuple("abcd"), tuple("efgh")}
    checks = [(node, order.peer) for *_, node, _, _, order in world.asked if order.burst_s == CHECK_BURST_S]
    assert len(checks) == 4
    assert not any(sides(*pair) for pair in checks)


def test_a_trunk_one_way_only_is_looked_at_once_more():
    """60 MB/s from ab to cd for both pairs together; alone, and the other way, each reaches as much."""

    def rate(a, b, together):
        return 60 * MB / (together if (a, b) in {("a", "c"), ("b", "d"), ("a", "d"), ("b", "c")} else 1)

    world = World("abcd", rate)
    world.run(60)
    checks = [at for at, *_, order in world.asked if order.burst_s == CHECK_BURST_S]
    assert len(checks) == 4
    assert len(world.probes.known.topology.trunks) == 1


@pytest.mark.parametrize("trunk", [60 * MB, 30 * MB])
def test_a_trunk_is_looked_for_once_more_where_the_pairs_of_a_check_missed_each_other(trunk):
    """All who cross together reach `trunk`, each way; in the first check one pair came after the other."""
    world = World("abcd")

    def checks():
        return [at for at, *_, order in world.asked if order.burst_s == CHECK_BURST_S]

    def rate(a, b, together):
        crosses = (a in "ab") != (b in "ab")
        return trunk / (together if len(checks()) != 2 else 1) if crosses else 60 * MB

    world.rate = rate
    world.run(60)
    assert len(checks()) == 4
    assert {t.bandwidth for t in world.probes.known.topology.trunks} == {trunk}
    assert len(world.probes.known.topology.trunks) == 2


def test_slow_pairs_that_share_nothing_are_checked_twice_each_time():
    world = World("abcd", lambda a, b, _: 60 * MB if (a in "ab") == (b in "ab") else 6 * MB)
    for checks in (2, 4):
        world.run(RECHECK_S - 50)
        assert len([at for at, *_, order in world.asked if order.burst_s == CHECK_BURST_S]) == 2 * checks
    assert world.probes.known.topology.trunks == ()


def test_trunks_are_not_looked_for_beside_work():
    world = World("abcd", lambda a, b, n: 60 * MB if (a in "ab") == (b in "ab") else 6 * MB / n)
    world.run(SETTLE_S, answer=False)
    world.busy = set("a")
    world.run(RECHECK_S)
    assert all(order.burst_s < CHECK_BURST_S for *_, order in world.asked)
    world.busy = set()
    world.run(10)
    assert any(order.burst_s == CHECK_BURST_S for *_, order in world.asked)


def test_whoever_does_not_answer_is_given_up_and_asked_again_later():
    world = World("abc")
    world.run(SETTLE_S + LIMIT_S, answer=False)
    given_up = len(world.asked)
    assert 1 <= given_up <= 2
    world.run(40)
    assert len(world.rates()) == 2 * (3 - given_up)
    world.run(RETRY_S)
    assert len(world.rates()) == 6


def test_a_pair_that_does_not_meet_is_named_with_its_problem():
    world = World("ab")
    world.run(SETTLE_S, answer=False)
    _, node, peer, _, order = world.asked[-1]
    failed = PeerProbed(request=order.request, peer=peer, at=world.now, seconds=0.1, problem="no route to host")
    world.probes.probed(failed, clock=world.clock, busy=set())
    assert world.probes.problems == {(node, peer): "no route to host"}
    assert world.probes.unmeasured() == 0
    world.run(RETRY_S + 5)
    assert world.probes.problems == {}


def test_a_new_control_plane_hears_results_and_asks_only_for_what_is_missing():
    old = World("abc")
    old.run(5)
    results = {}
    for _, node, _, _, order in old.asked:
        results.setdefault(node, []).append(old.result(node, order))
    world = World("")
    for node in "abc":
        world.attach(node, results.get(node, ()))
    world.attach("d")
    world.run(20)
    assert {(node, peer) for _, node, peer, *_ in world.asked if "d" not in (node, peer)} == set()
    assert len(world.rates()) == 12


def test_results_of_links_to_a_node_that_never_comes_stay_unsaid():
    world = World("ab")
    strange = Link(source="a", source_nic="e", target="x", target_nic="e", latency_s=1e-4, bandwidth=1.0)
    world.attach("a", [PeerProbed(request="", peer="x", at=1.0, seconds=0.1, links=(strange,))])
    assert world.rates() == {}
    world.attach("x")
    assert world.rates() == {("a", "x"): 1.0}


def test_a_lost_node_takes_its_links_with_it_and_a_detached_one_does_not():
    world = World("abc")
    world.run(5)
    world.probes.detached("b")
    world.run(2 * REFRESH_S)
    assert len(world.rates()) == 6
    assert all("b" not in (node, peer) for at, node, peer, *_ in world.asked if at > 105)
    world.probes.lost("b")
    assert set(world.rates()) == {("a", "c"), ("c", "a")}
    assert {n for i in world.probes.tree.innermost() for n in i.nodes} == {"a", "c"}


def test_an_address_that_changed_is_measured_anew():
    world = World("ab")
    world.run(5)
    world.attach("a", address="10.0.0.250")
    assert world.rates() == {}
    world.run(5)
    assert len(world.rates()) == 2


def seen(a, b, rate):
    ends = {"source": a, "source_nic": "e", "target": b, "target_nic": "e"}
    return Observation(**ends, bytes=int(rate * 0.2), busy_s=0.2, rtt_s=1e-4, window_s=0.2)


def test_traffic_of_several_trainers_is_judged_together():
    world = World("abc")
    world.run(5)
    told = []
    for _ in range(2):
        for a, b in ("ac", "bc"):  # two senders, each in words of its own
            world.probes.observed([seen(a, b, 5 * MB)], clock=world.clock)
        world.clock += WINDOW_S
        told += world.tick()[0]
    assert [c.what.value for c in told] == ["receiver"]
    assert world.rates()["a", "c"] == pytest.approx(10 * MB)


def test_a_link_that_carries_traffic_well_needs_no_probe():
    world = World("ab")
    world.run(5)
    world.asked.clear()
    for _ in range(40):
        world.probes.observed([seen("a", "b", 55 * MB)], clock=world.clock)
        world.run(REFRESH_S / 10)
    assert world.asked == []


def test_the_part_of_some_nodes_has_their_links_and_trunks_alone():
    world = World("abcd")
    assert world.probes.part({"a", "b"}) is None
    world.run(10)
    part = world.probes.part({"a", "b"})
    assert {(k.source, k.target) for k in part.links} == {("a", "b"), ("b", "a")}
    assert [h.node for h in part.hosts] == ["a", "b"]
    assert part.version == world.probes.known.topology.version
    assert world.probes.part({"a"}) is None


def test_a_link_that_traffic_found_slow_is_asked_soon_and_often_until_it_is_well():
    slowed = [60 * MB]
    world = World("ab", lambda *_: slowed[0])
    world.run(5)
    slowed[0] = 5 * MB
    for _ in range(2):
        world.probes.observed([seen("a", "b", 5 * MB)], clock=world.clock)
        world.run(1)
    assert world.rates()["a", "b"] == pytest.approx(5 * MB)
    world.asked.clear()
    world.run(3 * SLOW_AGAIN_S)
    assert 2 <= len(world.asked) <= 4
    slowed[0] = 60 * MB
    told = world.run(2 * SLOW_AGAIN_S)
    assert world.rates()["a", "b"] == pytest.approx(60 * MB)
    assert told
    world.asked.clear()
    world.run(REFRESH_S / 2)
    assert world.asked == []
