"""From a topology to ways, groups and a fabric; and epochs whose first way is dead."""

from __future__ import annotations

import dataclasses
import socket
import time
from types import SimpleNamespace

import pytest
from declared_network import declared, island_nodes, two_nics

from atoll.collectives.fabric import MEMORY_BYTES_S, UNKNOWN_BYTES_S, fabric_of
from atoll.collectives.network import Way, groups_of, network_of, part_of, ways
from atoll.errors import InternalError, PeerLost
from atoll.schema.ids import Epoch, Rank, RunId, TrainerId
from atoll.schema.messages import Member, Membership
from atoll.schema.topology import Door, Host, Link, Nic, Topology, Trunk


def member(rank, node, doors=(), host="127.0.0.1", port=1):
    doors = tuple(Door(nic=nic, host=h, port=p) for nic, h, p in doors)
    return Member(trainer=TrainerId(f"t{rank}"), rank=Rank(rank), node=node, host=host, port=port, doors=doors)


# -- pure ------------------------------------------------------------------------------------------------------------


def test_ways_go_by_the_fastest_link_first_and_by_the_first_address_last():
    nics = (Nic(name="ib0", host="10.1.0.1"), Nic(name="eth0", host="10.2.0.1"))
    rates = {"ib0": 100.0, "eth0": 10.0, "wlan0": 1000.0}
    links = tuple(
        Link(source="a", source_nic=n, target="b", target_nic=n, latency_s=1e-4, bandwidth=r) for n, r in rates.items()
    )
    topology = Topology(hosts=(Host(node="a", nics=nics),), links=links)
    peer = member(0, "b", doors=[("eth0", "10.2.0.2", 7), ("ib0", "10.1.0.2", 8)], host="192.0.2.1", port=9)
    assert ways(member(1, "a"), peer, topology) == (
        Way("10.1.0.2", 8, "10.1.0.1"),  # nobody listens at wlan0, fast as it is
        Way("10.2.0.2", 7, "10.2.0.1"),
        Way("192.0.2.1", 9),
    )


def test_the_own_doors_say_better_than_the_topology_where_to_go_out_from():
    link = Link(source="a", source_nic="ib0", target="b", target_nic="ib0", latency_s=1e-4, bandwidth=1.0)
    topology = Topology(hosts=(Host(node="a", nics=(Nic(name="ib0", host="10.1.0.1"),)),), links=(link,))
    me, peer = member(1, "a", doors=[("ib0", "10.7.0.1", 1)]), member(0, "b", doors=[("ib0", "10.1.0.2", 8)])
    assert ways(me, peer, topology)[0].source == "10.7.0.1"


def test_a_peer_without_links_is_reached_by_its_first_address():
    assert ways(member(1, "a"), member(0, "b"), Topology(hosts=())) == (Way("127.0.0.1", 1),)


def test_groups_are_islands_of_hosts_of_ranks():
    topology = two_nics(2, 2)
    assert groups_of(["a0", "b0", "a1", "b1"], topology) == ((0, 2), (1, 3))
    assert groups_of(["a0", "a0", "b0", "a1", "b0"], topology) == (((0, 1), 3), (2, 4))
    assert groups_of(["a0", "a1"], part_of(topology, {"a0", "a1"})) == (0, 1)
    assert groups_of(["x", "x", "y"], Topology(hosts=())) == ((0, 1), 2)
    assert groups_of(["x"], Topology(hosts=())) == 0


def test_part_of_a_topology_forgets_other_nodes():
    part = part_of(two_nics(2, 2), {"a0", "b1"})
    assert {h.node for h in part.hosts} == {"a0", "b1"}
    assert {(k.source, k.target) for k in part.links} == {("a0", "b1"), ("b1", "a0")}


def test_ranks_of_one_host_meet_in_memory_and_unmeasured_hosts_are_equally_near():
    fabric = fabric_of(["x", "x", "y", "z"])
    assert fabric.hosts == (0, 0, 1, 2)
    assert fabric.routes[0, 1].bandwidth == MEMORY_BYTES_S
    assert {fabric.routes[p].bandwidth for p in ((0, 2), (2, 3), (3, 1))} == {UNKNOWN_BYTES_S}
    assert fabric.routes[0, 2].resources[0] == fabric.routes[1, 3].resources[0]  # one NIC out of the host


def test_routes_take_the_fastest_link_and_share_nics_and_trunks():
    trunk = Trunk(sources=("a0", "a1"), targets=("b0", "b1"), bandwidth=7.0)
    nodes = island_nodes(2, 2)
    topology = declared(nodes, lambda a, b: 100.0 if a[0] == b[0] else 10.0, trunks=[trunk])
    slower = dataclasses.replace(topology.links[0], bandwidth=1.0, source_nic="eth1")
    fabric = fabric_of(nodes, dataclasses.replace(topology, links=(slower, *topology.links)))
    inner, across, beside, back = (fabric.routes[p] for p in ((0, 1), (0, 2), (1, 3), (2, 0)))
    assert (inner.bandwidth, across.bandwidth) == (100.0, 10.0)
    assert inner.resources[0] == across.resources[0]
    assert across.resources[2] == beside.resources[2]
    assert fabric.capacities[across.resources[2]] == 7.0
    assert len(back.resources) == 2
    # A NIC without a bandwidth of its own carries what its fastest link does.
    assert fabric.capacities[inner.resources[0]] == 100.0


@pytest.mark.parametrize(("flow", "lines"), [(None, 1), (100.0, 1), (50.0, 2), (34.0, 3), (1.0, 4)])
def test_connections_are_as_many_as_fill_the_link_but_few(flow, lines):
    members = [member(0, "a0"), member(1, "a1")]
    network = network_of(members, declared(island_nodes(2), lambda *_: 100.0, flow=flow))
    assert network.lines(0, 1) == network.lines(1, 0) == lines


# -- meeting ---------------------------------------------------------------------------------------------------------


def epoch_of(listeners, nodes, topology, doors):
    members = tuple(
        dataclasses.replace(member(i, node), host=x.host, port=x.port, doors=doors(i, x))
        for i, (node, x) in enumerate(zip(nodes, listeners, strict=True))
    )
    return Membership(run=RunId("run-1"), epoch=Epoch(1), members=members, topology=topology)


def test_a_way_that_refuses_gives_way_to_the_next(place):
    topology, listeners = two_nics(2), place.listen(2)
    with socket.create_server(("127.0.2.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there any more once it is closed
    dead = (Door(nic="fast", host="127.0.2.1", port=port),)
    comms = place.connect(epoch_of(listeners, ["a0", "a1"], topology, lambda *_: dead), listeners)
    works = [c.barrier() for c in comms]
    assert all(w.wait(5) for w in works)
    assert {s.getpeername()[0] for s in comms[1].sockets()[0]} == {"127.0.0.1"}


def test_a_way_that_says_nothing_gives_way_to_the_next(place):
    topology, listeners = two_nics(2), place.listen(2)
    with socket.create_server(("127.0.2.1", 0)) as silent:
        doors = (Door(nic="fast", host="127.0.2.1", port=silent.getsockname()[1]),)
        started = time.monotonic()
        comms = place.connect(epoch_of(listeners, ["a0", "a1"], topology, lambda *_: doors), listeners)
    works = [c.barrier() for c in comms]
    assert all(w.wait(5) for w in works)
    assert time.monotonic() - started < 4.0


def test_a_way_out_of_an_address_that_is_gone_gives_way_to_the_next(place):
    gone = tuple(
        dataclasses.replace(h, nics=(Nic(name="fast", host="203.0.113.7"), h.nics[1])) for h in two_nics(2).hosts
    )
    topology = dataclasses.replace(two_nics(2), hosts=gone)
    listeners = place.listen(2)
    doors = lambda i, x: () if i else (Door(nic="fast", host=x.host, port=x.port),)  # noqa: E731
    comms = place.connect(epoch_of(listeners, ["a0", "a1"], topology, doors), listeners)
    works = [c.barrier() for c in comms]
    assert all(w.wait(5) for w in works)


def test_when_no_way_answers_the_peer_is_named(place):
    topology, listeners = two_nics(2), place.listen(2)
    dead = (Door(nic="fast", host="127.0.2.1", port=listeners[0].port),)
    whole = epoch_of(listeners, ["a0", "a1"], topology, lambda *_: dead)
    listeners[0].close()
    with pytest.raises(PeerLost, match="t0"):
        place.connect(whole, [None, listeners[1]], deadline_s=0.3)


def test_a_last_try_without_time_left_does_not_hide_what_those_before_met(monkeypatch):
    from atoll.collectives import tcp_transport
    from atoll.collectives.tcp_handshake import Greeting, Patience

    met = iter([ConnectionRefusedError(111, "Connection refused"), PeerLost("no answer in time")])

    def dial_once(*_):
        raise next(met)

    monkeypatch.setattr(tcp_transport, "_dial_once", dial_once)
    tries = iter([False, False, True])
    patience = Patience(deadline=time.monotonic() + 60, cancelled=lambda: next(tries))
    greeting = Greeting(run="r", epoch=3, rank=1, trainer="t1", to="t0")
    with pytest.raises(PeerLost, match=r"t0 at 127.0.0.1:1 does not answer in epoch 3: .*Connection refused"):
        tcp_transport.dial([Way("127.0.0.1", 1)], greeting, b"s", patience)


class Allowing:
    """A patience that tells what each try is allowed, and ends after a dozen."""

    def __init__(self, tried):
        self.tried = tried

    def left(self):
        if len(self.tried) == 12:
            raise PeerLost("no answer in time")

    def at_most(self, seconds):
        return seconds


@pytest.mark.parametrize(("rtt_s", "first_s"), [(0.0001, 0.05), (0.03, 0.09), (0.5, 0.25)])
def test_a_doubted_address_is_given_less_time_to_answer_and_in_the_end_as_much_as_others(monkeypatch, rtt_s, first_s):
    from atoll.collectives import tcp_transport
    from atoll.collectives.tcp_handshake import Greeting

    tried, naps = [], []

    def dial_once(way, _greeting, _secret, _patience, reaching):
        tried.append((way.host, reaching))
        raise TimeoutError

    monkeypatch.setattr(tcp_transport, "_dial_once", dial_once)
    monkeypatch.setattr(tcp_transport, "time", SimpleNamespace(sleep=naps.append))
    ways = [Way("10.0.0.1", 1), Way("10.0.0.2", 1)]
    greeting = Greeting(run="r", epoch=3, rank=1, trainer="t1", to="t0")
    with pytest.raises(PeerLost, match="t0"):
        tcp_transport.dial(ways, greeting, b"s", Allowing(tried), doubted={"10.0.0.1": rtt_s})
    assert [host for host, _ in tried] == ["10.0.0.1", "10.0.0.2"] * 6
    assert [s for _, s in tried[:4]] == pytest.approx([first_s, 0.25, 2 * first_s, 0.5])
    assert [s for _, s in tried[-2:]] == [1.0, 1.0]
    assert len(naps) == 6  # once all were tried


def test_a_listener_doubts_addresses_of_the_trainer_that_was_silent_there(place, monkeypatch):
    from atoll.collectives import tcp_transport

    (listener,), dials = place.listen(1), []
    monkeypatch.setattr(tcp_transport, "dial", lambda *_, doubted: dials.append(doubted))
    listener.doubt({("t0", "10.0.0.1"): 0.1, ("t2", "10.0.0.2"): 0.2})
    for rank in (0, 1, 2):
        listener.dial(member(rank, "a"), me=member(3, "b"), epoch=1, deadline=0.0, cancelled=lambda: False)
    assert dials == [{"10.0.0.1": 0.1}, {}, {"10.0.0.2": 0.2}]


def test_a_listener_has_a_door_at_each_nic(place):
    from atoll.collectives.tcp_transport import Listener

    listener = Listener("127.0.0.1", b"s" * 32, "run-1", [("fast", "127.0.2.1"), ("slow", "127.0.3.1")])
    place.listeners.append(listener)
    assert [(d.nic, d.host) for d in listener.doors] == [("fast", "127.0.2.1"), ("slow", "127.0.3.1")]
    assert len({listener.port, *(d.port for d in listener.doors)}) == 3
    (other,) = place.listen(1)
    peer, me = member(0, "a"), member(1, "b")
    for door in listener.doors:
        way = Way(door.host, door.port, "127.0.9.9")
        with (
            other.dial(
                peer, me=me, epoch=1, deadline=time.monotonic() + 2, cancelled=lambda: False, ways=[way]
            ) as dialled,
            listener.claim(
                me, me=peer.trainer, epoch=1, deadline=time.monotonic() + 2, cancelled=lambda: False
            ) as claimed,
        ):
            assert claimed.getpeername()[0] == "127.0.9.9"
            assert dialled.getpeername() == (door.host, door.port)


def test_lines_of_one_pair_are_kept_apart(place):
    first, second = place.listen(2)
    peer, me = member(0, "a", host=first.host, port=first.port), member(1, "b")
    limits = {"epoch": 1, "deadline": time.monotonic() + 2, "cancelled": lambda: False}
    dialled = {line: second.dial(peer, me=me, line=line, **limits) for line in (1, 0)}
    claimed = {line: first.claim(me, me=peer.trainer, line=line, **limits) for line in (0, 1)}
    assert all(dialled[n].getsockname() == claimed[n].getpeername() for n in (0, 1))
    for sock in (*dialled.values(), *claimed.values()):
        sock.close()


@pytest.mark.parametrize("ranks", [(0, 0), (0, 2), (1, 2)])
def test_a_membership_whose_ranks_are_not_each_there_once_is_refused(place, ranks):
    listeners = place.listen(2)
    members = tuple(
        dataclasses.replace(member(rank, "n"), trainer=TrainerId(f"t{i}"), host=x.host, port=x.port)
        for i, (rank, x) in enumerate(zip(ranks, listeners, strict=True))
    )
    membership = Membership(run=RunId("run-1"), epoch=Epoch(1), members=members)
    with pytest.raises(InternalError, match=rf"t0={ranks[0]}, t1={ranks[1]}; ranks go from 0 to 1"):
        place.connect(membership, listeners)
