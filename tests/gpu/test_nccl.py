"""NCCL on a real GPU. It allows one rank a GPU, so an island has one rank here; two islands share the GPU.

What that shows: the calls, their arguments and types, streams and events against real kernels, pinned memory, aborts,
and that memory comes back. What it cannot show: NCCL between two GPUs.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time

import pytest
import torch
from local_peers import Exchange

from atoll.collectives.nccl_device import NCCL_TYPES
from atoll.collectives.staging import Layout
from atoll.collectives.work import Work

pytestmark = pytest.mark.gpu
SLOW_CYCLES = 400_000_000  # about 0.2 s of a GPU at 1.5-2 GHz
ABORT_S = 0.05


@contextlib.contextmanager
def islands(device, peers, **options):
    """As many islands of one rank as there are peers, all on this GPU, each with a communicator and streams of its own."""
    from atoll.collectives import nccl_island
    from atoll.collectives.nccl_island import NcclIsland

    layout = Layout(tuple((rank,) for rank in range(len(peers))))
    made = [NcclIsland(p, layout, device, device.library(1, 0, device.unique_id()), **options) for p in peers]
    try:
        yield made
    finally:
        for island in made:
            island.close()
        until = time.monotonic() + 10
        while any(t.name.startswith("atoll-nccl") for t in threading.enumerate()) and time.monotonic() < until:
            time.sleep(0.01)
        left = [t.name for t in threading.enumerate() if t.name.startswith("atoll-nccl")]
        assert (left, [i.trouble for i in made], nccl_island._KEPT) == ([], [None] * len(made), [])


def values_of(rank, count, dtype):
    return ((torch.arange(count) * (rank + 1)) % 7 + rank).to(dtype)


@pytest.mark.parametrize("dtype", list(NCCL_TYPES), ids=str)
def test_a_communicator_of_one_rank_takes_every_type(device, dtype):
    library = device.library(1, 0, device.unique_id())
    stream = device.side_stream()
    source = values_of(0, 1000, dtype).cuda()
    torch.cuda.synchronize()
    targets = [device.memory(1000, dtype, stream) for _ in range(3)]
    library.all_reduce(source, targets[0], "max", stream)
    library.reduce_scatter(source, targets[1], "sum", stream)
    library.all_gather(source, targets[2], stream)
    stream.synchronize()
    library.check()
    assert all(torch.equal(t, source) for t in targets)
    library.destroy()


@pytest.mark.parametrize("op", ["sum", "min", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64], ids=str)
def test_islands_agree_with_the_cpu(device, dtype, op):
    exchange = Exchange(3)
    with islands(device, exchange.peers, shard_bytes=64 * 1024) as made:
        for count in (1, 1001, 300_001):
            values = [values_of(r, count, dtype) for r in range(3)]
            stacked = torch.stack(values).double()
            expected = {"sum": stacked.sum(0), "min": stacked.amin(0), "max": stacked.amax(0)}[op].to(dtype)
            buffers = [v.cuda() for v in values]
            works = [i.all_reduce(b, op, Work()) for i, b in zip(made, buffers, strict=True)]
            assert all(w.wait(20) for w in works), [w.poison for w in works]
            assert all(torch.equal(b.cpu(), expected) for b in buffers)


def test_streams_wait_for_the_program_and_the_program_for_the_result(device):
    """The buffer is filled late in one stream and read at once after the call, without a synchronize anywhere."""
    exchange = Exchange(2)
    with islands(device, exchange.peers, shard_bytes=256 * 1024) as made:
        seen, works = [], []
        for rank, island in enumerate(made):
            with torch.cuda.stream(torch.cuda.Stream()):
                buffer = torch.zeros(2_000_000, device="cuda")
                torch.cuda._sleep(SLOW_CYCLES)
                buffer.fill_(rank + 1)
                works.append((torch.cuda.current_stream(), buffer, island.all_reduce(buffer, "sum", Work())))
        for stream, buffer, work in works:
            assert work.wait(20), work.poison
            with torch.cuda.stream(stream):
                seen.append(buffer * 2)
        torch.cuda.synchronize()
        assert all(torch.equal(s, torch.full_like(s, 6.0)) for s in seen)


def test_the_programs_stream_runs_on_while_an_operation_is_under_way(device):
    exchange = Exchange(2)
    with held(exchange), islands(device, exchange.peers) as made:
        buffers = [torch.ones(1000, device="cuda") for _ in range(2)]
        works = [i.all_reduce(b, "sum", Work()) for i, b in zip(made, buffers, strict=True)]
        product = torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda")
        torch.cuda.current_stream().synchronize()
        assert product[0, 0].item() == 512
        assert not any(w.ended for w in works)
        exchange.let_go()
        assert all(w.wait(20) for w in works)


@contextlib.contextmanager
def held(exchange):
    from atoll.collectives.nccl_crossing import CROSSING_TAGS

    exchange.held.update(CROSSING_TAGS)
    yield
    exchange.held.clear()


def aborted(exchange, works):
    """Seconds from the abort, in another thread, to the return of the last waiter."""
    came = []
    waiters = [threading.Thread(target=lambda w=w: (w.wait(20), came.append(time.monotonic()))) for w in works]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.1)
    begun = time.monotonic()
    aborter = threading.Thread(target=exchange.peers[0].abort, args=("host gone", "t1"))
    aborter.start()
    for thread in (*waiters, aborter):
        thread.join(30)
    assert {w.poison.reason for w in works} == {"host gone"}
    return max(came) - begun


@pytest.mark.parametrize("where", ["in the network", "behind a long kernel"])
def test_an_abort_frees_waiters_at_once_and_leaves_the_buffers(device, tell, where):
    exchange = Exchange(2)
    with held(exchange), islands(device, exchange.peers) as made:
        buffers = [torch.full((3_000_000,), 5.0, device="cuda") for _ in range(2)]
        torch.cuda.synchronize()
        if where == "behind a long kernel":
            torch.cuda._sleep(5 * SLOW_CYCLES)
        works = [i.all_reduce(b, "sum", Work()) for i, b in zip(made, buffers, strict=True)]
        took = aborted(exchange, works)
        tell(f"abort {where}: {1000 * took:.1f} ms to the last waiter")
        assert took <= ABORT_S
    torch.cuda.synchronize()
    assert all(torch.equal(b, torch.full_like(b, 5.0)) for b in buffers)


def test_the_next_epoch_works_on_the_same_gpu_after_an_abort(device):
    for _ in range(3):
        exchange = Exchange(2)
        with islands(device, exchange.peers) as made:
            buffers = [torch.ones(100_000, device="cuda") for _ in range(2)]
            works = [i.all_reduce(b, "sum", Work()) for i, b in zip(made, buffers, strict=True)]
            assert all(w.wait(20) for w in works)
            assert all(b.sum().item() == 200_000 for b in buffers)
            exchange.peers[1].abort("next epoch")


def test_device_memory_comes_back(device):
    def once():
        exchange = Exchange(2)
        with islands(device, exchange.peers) as made:
            buffers = [torch.ones(4_000_000, device="cuda") for _ in range(2)]
            works = [i.all_reduce(b, "sum", Work()) for i, b in zip(made, buffers, strict=True)]
            assert all(w.wait(20) for w in works)

    once()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    once()
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_islands_work_over_sockets(device):
    """The whole of it: connections between ranks, islands opened by agreement, and an epoch that ends."""
    from concurrent.futures import ThreadPoolExecutor

    from atoll.collectives.nccl_attach import attach
    from atoll.collectives.tcp_communicator import connect
    from atoll.collectives.tcp_transport import Listener
    from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
    from atoll.schema.messages import Member, Membership
    from atoll.schema.topology import Topology

    listeners = [Listener("127.0.0.1", b"s" * 32, RunId("run-1")) for _ in range(2)]
    members = tuple(
        Member(trainer=TrainerId(f"t{i}"), rank=Rank(i), node=NodeId(f"n{i}"), host=listener.host, port=listener.port)
        for i, listener in enumerate(listeners)
    )
    membership = Membership(run=RunId("run-1"), epoch=Epoch(1), members=members)
    nodes = [m.node for m in members]

    def come(rank):
        never = lambda: False  # noqa: E731
        comm = connect(membership, TrainerId(f"t{rank}"), listeners[rank], deadline_s=10, cancelled=never)
        island, why = attach(comm, nodes, Topology(hosts=()), deadline_s=30, cancelled=never)
        return comm, island, why

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(come, range(2)))
    try:
        assert [why for _, _, why in found] == ["", ""]
        buffers = [torch.full((1_000_003,), float(r + 1), device="cuda") for r in range(2)]
        works = [island.all_reduce(b, "sum", Work()) for (_, island, _), b in zip(found, buffers, strict=True)]
        assert all(w.wait(30) for w in works), [w.poison for w in works]
        assert all(torch.equal(b, torch.full_like(b, 3.0)) for b in buffers)
        stuck = found[0][1].all_reduce(buffers[0], "sum", Work())
        found[1][0].abort("rank 1 gives up")
        assert not stuck.wait(5)
        assert stuck.poison.reason == "rank 1 gives up"
        assert torch.equal(buffers[0], torch.full_like(buffers[0], 3.0))
    finally:
        for comm, island, _ in found:
            if island is not None:
                island.close()
            comm.close()
        for listener in listeners:
            listener.close()


def test_throughput_is_told(device, tell):
    """No bar: the other island is a dictionary in this process. Shows what staging costs beside copies alone."""
    count = 64 * 1024 * 1024
    exchange = Exchange(2)
    with islands(device, exchange.peers) as made:
        buffers = [torch.ones(count, device="cuda") for _ in range(2)]
        pinned = torch.empty(count, pin_memory=True)
        for round_ in range(3):
            torch.cuda.synchronize()
            begun = time.monotonic()
            works = [i.all_reduce(b, "max", Work()) for i, b in zip(made, buffers, strict=True)]
            assert all(w.wait(60) for w in works)
            torch.cuda.synchronize()
            staged = time.monotonic() - begun
            begun = time.monotonic()
            pinned.copy_(buffers[0], non_blocking=True)
            buffers[0].copy_(pinned, non_blocking=True)
            torch.cuda.synchronize()
            copied = time.monotonic() - begun
            gigabytes = count * 4 / 1e9
            tell(f"round {round_}: {gigabytes / staged:.2f} GB/s staged, {gigabytes / copied:.2f} GB/s down and up")
        assert buffers[1][-1].item() == 1.0
