"""How islands open: all or none, within the deadline, and over real connections."""

from __future__ import annotations

import threading
import time

import torch
from local_peers import Exchange
from recorded_device import RecordedDevice, World

from atoll.collectives.nccl_attach import attach
from atoll.collectives.nccl_island import open_island
from atoll.collectives.staging import Layout
from atoll.collectives.work import Work
from atoll.errors import DeviceError, PeerLost
from atoll.schema.ids import NodeId
from atoll.schema.topology import Topology


def layout_of(*sizes):
    ranks = iter(range(sum(sizes)))
    return Layout(tuple(tuple(next(ranks) for _ in range(size)) for size in sizes))


def done(works, timeout=5.0):
    return all(work.wait(timeout) for work in works)


def opened(layout, devices, deadline_s=2.0, peers=None):
    """What each rank gets: (island, why) or the error."""
    peers = peers or Exchange(len(devices)).peers
    found = [None] * len(devices)

    def open_one(rank):
        try:
            found[rank] = open_island(peers[rank], layout, devices[rank], deadline_s=deadline_s)
        except PeerLost as error:
            found[rank] = error

    threads = [threading.Thread(target=open_one, args=(r,)) for r in range(len(devices)) if devices[r] != "absent"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return found


def test_islands_open_with_a_name_each_and_work_over_real_messages():
    world, layout = World(), layout_of(2, 1)
    found = opened(layout, [RecordedDevice(world, r) for r in range(3)])
    try:
        assert [why for _, why in found] == [""] * 3
        assert {name[0]: len(group) for name, group in world.groups.items()} == {0: 2, 2: 1}
        buffers = [torch.ones(10) * r for r in range(3)]
        assert done([island.all_reduce(b, "sum", Work()) for (island, _), b in zip(found, buffers, strict=True)])
    finally:
        for island, _ in found:
            island.close()


def test_islands_work_over_sockets(place):
    """Three islands of unlike sizes, pieces over the epoch's own connections, in two rounds where they are large."""
    world, layout, comms = World(), layout_of(3, 1, 2), place.epoch(6)
    found = opened(layout, [RecordedDevice(world, r) for r in range(6)], peers=comms)
    buffers = [torch.arange(300_000.0) * r for r in range(6)]
    works = [island.all_reduce(b, "sum", Work()) for (island, _), b in zip(found, buffers, strict=True)]
    assert done(works, 20), [w.poison for w in works]
    for rank, (island, _) in enumerate(found):
        island._device.finish()
        assert torch.equal(buffers[rank], torch.arange(300_000.0) * 15)
    stuck = [island.all_reduce(b, "sum", Work()) for (island, _), b in list(zip(found, buffers, strict=True))[:5]]
    comms[5].abort("rank 5 gives up")
    assert not any(work.wait(5) for work in stuck)
    assert {work.poison.reason for work in stuck} == {"rank 5 gives up"}
    for island, _ in found:
        island.close()
    assert world.faults == []


def test_all_go_without_where_one_has_no_device():
    world = World()
    found = opened(layout_of(2, 1), [RecordedDevice(world, 0), None, RecordedDevice(world, 2)])
    assert found == [(None, "no NCCL on rank 1: no device")] * 3


def test_a_communicator_without_gpus_attaches_nothing_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exchange, found = Exchange(2), {}

    def attached(rank):
        nodes, topology = [NodeId("a"), NodeId("b")], Topology(hosts=())
        found[rank] = attach(exchange.peers[rank], nodes, topology, deadline_s=2.0)

    threads = [threading.Thread(target=attached, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert found[0] == found[1]
    assert found[0][0] is None
    assert "rank 0: torch sees no CUDA device" in found[0][1]


def test_all_go_without_where_one_library_refuses(monkeypatch):
    world = World()
    devices = [RecordedDevice(world, r) for r in range(3)]

    def refuse(*named):
        raise DeviceError("two ranks on one GPU")

    monkeypatch.setattr(devices[1], "library", refuse)
    found = opened(layout_of(2, 1), devices)
    assert found == [(None, "rank 1: DeviceError: two ranks on one GPU")] * 3
    assert [library.aborted for group in world.groups.values() for library in group.values()] == [True, True]


def test_a_library_whose_ranks_never_meet_is_given_up_at_the_deadline(monkeypatch):
    world = World()
    devices = [RecordedDevice(world, r) for r in range(2)]
    release = threading.Event()
    real = devices[1].library
    monkeypatch.setattr(devices[1], "library", lambda *named: release.wait(10) and real(*named))
    found = opened(layout_of(2), devices, deadline_s=0.3)
    assert {why for _, why in found} == {"rank 1: the ranks of its island did not meet in NCCL in time"}
    release.set()
    until = time.monotonic() + 2
    while any(t.name == "atoll-nccl-meet" for t in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert [library.aborted for group in world.groups.values() for library in group.values()] == [True, True]


def test_a_rank_that_never_comes_is_an_error_at_the_deadline():
    found = opened(layout_of(2), [RecordedDevice(World(), 0), "absent"], deadline_s=0.1)
    assert isinstance(found[0], PeerLost)
    assert "did not call open_island" in str(found[0])


def test_an_epoch_that_ends_while_its_islands_open_is_an_error():
    exchange = Exchange(2)
    exchange.peers[0].abort("host lost")
    found = opened(layout_of(2), [RecordedDevice(World(), 0), "absent"], peers=exchange.peers)
    assert "host lost" in str(found[0])
