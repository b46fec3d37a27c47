"""Which connections are not by the way that was tried first."""

import socket

import pytest

from atoll.collectives.network import Way
from atoll.collectives.tcp_links import Links
from atoll.schema.topology import Detour, Host, Nic, Topology

FAST, SLOW = ("127.0.1.1", "127.0.1.2"), ("127.0.2.1", "127.0.2.2")
TOPOLOGY = Topology(
    hosts=tuple(
        Host(node=n, nics=(Nic(name="ib0", host=FAST[i], prefix=24), Nic(name="eth0", host=SLOW[i], prefix=24)))
        for i, n in enumerate("ab")
    )
)


@pytest.fixture
def dialled():
    """A connection from b, rank 1, to a, rank 0, by the slow NICs."""
    with (
        socket.create_server((SLOW[0], 0)) as server,
        socket.create_connection(server.getsockname(), source_address=(SLOW[1], 0)) as sock,
    ):
        yield sock


def test_connection_by_another_nic_than_the_first_is_a_detour(dialled):
    met = {0: (dialled, Way(FAST[0], 1, source=FAST[1]))}
    (detour,) = Links(("a", "b"), 1, TOPOLOGY).detours(met)
    assert detour == Detour(source="b", source_nic="eth0", target="a", target_nic="eth0")


def test_connection_by_the_first_way_is_none(dialled):
    assert Links(("a", "b"), 1, TOPOLOGY).detours({0: (dialled, Way(SLOW[0], 1, source=SLOW[1]))}) == ()


def test_addresses_that_belong_to_no_known_nic_are_told_of_nothing(dialled):
    met = {0: (dialled, Way(FAST[0], 1))}
    assert Links(("a", "b"), 1, Topology(hosts=())).detours(met) == ()
