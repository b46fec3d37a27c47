"""Nodes that probe one another over loopback, and the NICs that an agent tells of."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from atoll.schema.messages import ProbePeer
from atoll.schema.topology import Door, Nic
from atoll.workers.nic_runtime import nics
from atoll.workers.probe_runtime import ProbeService

SECRET = b"s" * 32


@contextlib.asynccontextmanager
async def node(name, host, secret=SECRET, nic="lo"):
    service = ProbeService(name, (Nic(name=nic, host=host, prefix=8),), secret, lambda: 1000.0)
    task = asyncio.create_task(service.serve())
    try:
        yield service
    finally:
        service.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def order(service, peer="b", *, limit_s=5.0, **changes):
    door = service.doors[0] if isinstance(service, ProbeService) else service
    fields = {"request": "q", "peer": peer, "nic": "lo", "host": "127.0.0.1", "door": door, "burst_s": 0.001}
    return ProbePeer(**(fields | changes), limit_s=limit_s)


def play(scene):
    async def limited():
        async with asyncio.timeout(20):
            return await scene()

    return asyncio.run(limited())


def test_two_nodes_measure_their_link_both_ways():
    async def scene():
        async with node("a", "127.0.0.1") as one, node("b", "127.0.0.2", nic="lo2") as two:
            return await one.measure(order(two, beside=True))

    fact = play(scene)
    assert (fact.request, fact.peer, fact.at, fact.problem, fact.beside) == ("q", "b", 1000.0, "", True)
    assert [(k.source, k.source_nic, k.target, k.target_nic) for k in fact.links] == [
        ("a", "lo", "b", "lo2"),
        ("b", "lo2", "a", "lo"),
    ]
    assert all(k.bandwidth > 1e6 and 0 < k.latency_s < 0.5 for k in fact.links)
    assert 0 < fact.seconds < 10


def test_a_node_takes_its_probes_one_after_another():
    async def scene():
        async with node("a", "127.0.0.1") as one, node("b", "127.0.0.2") as two, node("c", "127.0.0.3") as three:
            return await asyncio.gather(one.measure(order(two)), three.measure(order(two, host="127.0.0.3")))

    assert [fact.problem for fact in play(scene)] == ["", ""]


def test_an_address_that_is_another_nodes_is_not_measured():
    async def scene():
        async with node("a", "127.0.0.1") as one, node("c", "127.0.0.2") as other:
            return await one.measure(order(other, peer="b"))

    fact = play(scene)
    assert fact.links == ()
    assert "is not b" in fact.problem


def test_a_node_of_another_cluster_is_not_measured():
    async def scene():
        async with node("a", "127.0.0.1") as one, node("b", "127.0.0.2", secret=b"x" * 32) as other:
            return await one.measure(order(other))

    assert "does not hold the secret" in play(scene).problem


def test_nobody_there_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))

        async def scene():
            async with node("a", "127.0.0.1") as one:
                door = Door(nic="lo", host="127.0.0.2", port=free.getsockname()[1])
                return await one.measure(order(door))

        assert "refused" in play(scene).problem


def test_a_peer_that_says_nothing_costs_no_more_than_the_limit():
    with socket.create_server(("127.0.0.2", 0)) as silent:

        async def scene():
            async with node("a", "127.0.0.1") as one:
                door = Door(nic="lo", host="127.0.0.2", port=silent.getsockname()[1])
                return await one.measure(order(door, limit_s=0.1))

        fact = play(scene)
    assert fact.problem == "no answer in time"
    assert fact.seconds < 5


def test_strangers_disturb_nobody():
    async def scene():
        async with node("a", "127.0.0.1") as one, node("b", "127.0.0.2") as two:
            door = two.doors[0]
            for _ in range(3):
                with socket.create_connection((door.host, door.port), timeout=2) as stranger:
                    stranger.sendall(b"\x00\x05hello")
            return await one.measure(order(two))

    assert play(scene).problem == ""


def test_a_nic_that_cannot_be_bound_has_no_door():
    async def scene():
        async with node("a", "203.0.113.7") as one:
            return one.doors

    assert play(scene) == ()


# -- NICs ------------------------------------------------------------------------------------------------------------


class Stat:
    def __init__(self, *, isup=True, speed=0):
        self.isup, self.speed = isup, speed


class Address:
    def __init__(self, address, netmask, family=socket.AF_INET):
        self.address, self.netmask, self.family = address, netmask, family


@pytest.fixture
def host(monkeypatch):
    """A server: two networks, a bridge of containers, a NIC that is down, one with only IPv6."""
    addresses = {
        "lo": [Address("127.0.0.1", "255.0.0.0")],
        "eth0": [Address("192.168.1.7", "255.255.255.0"), Address("fe80::1%eth0", None, socket.AF_INET6)],
        "eth1": [Address("10.1.0.7", "255.255.0.0")],
        "eth2": [Address("10.2.0.7", "255.255.0.0")],
        "eth3": [Address("fe80::2%eth3", "ffff::", socket.AF_INET6), Address("fd00::7", "ffff::", socket.AF_INET6)],
        "docker0": [Address("172.17.0.1", "255.255.0.0")],
    }
    stats = {"lo": Stat(), "eth0": Stat(speed=1000), "eth1": Stat(speed=100_000), "eth2": Stat(isup=False)}
    stats |= {"eth3": Stat(speed=10), "docker0": Stat(speed=10_000)}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: addresses)
    monkeypatch.setattr("psutil.net_if_stats", lambda: stats)


def test_nics_are_those_that_lead_elsewhere_the_chosen_one_first(host):
    assert nics("192.168.1.7") == (
        Nic(name="eth0", host="192.168.1.7", prefix=24),
        Nic(name="eth1", host="10.1.0.7", prefix=16),
        Nic(name="eth3", host="fd00::7", prefix=16),
    )


def test_a_cluster_on_loopback_stays_there(host):
    assert nics("127.0.0.1") == (Nic(name="lo", host="127.0.0.1", prefix=8),)
    assert nics("127.0.0.9") == (Nic(name="", host="127.0.0.9"),)


def test_a_node_known_by_name_keeps_that_name(host):
    assert nics("server-7")[0] == Nic(name="", host="server-7")
