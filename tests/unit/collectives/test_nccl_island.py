"""All-reduce through islands on recorded devices: sums, order, waits, aborts and closing."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_peers import Exchange
from recorded_device import GARBAGE, RecordedCrossing, RecordedDevice, World

from atoll.collectives import nccl_island, nccl_staging
from atoll.collectives.nccl_crossing import AGREEMENT_TAG, CROSSING_TAGS, PeerCrossing
from atoll.collectives.nccl_island import NcclIsland
from atoll.collectives.staging import Layout
from atoll.collectives.work import Poison, Work
from atoll.errors import InternalError


def layout_of(*sizes):
    ranks = iter(range(sum(sizes)))
    return Layout(tuple(tuple(next(ranks) for _ in range(size)) for size in sizes))


class Atoll:
    """Islands of recorded devices, one rank a thread."""

    def __init__(self, *sizes, depth=2, shard_bytes=64):
        self.layout, self.world = layout_of(*sizes), World()
        self.exchange = Exchange(sum(sizes))
        self.devices = [RecordedDevice(self.world, r) for r in range(sum(sizes))]
        self.islands = []
        for island in self.layout.islands:
            for position, rank in enumerate(island):
                device, peers = self.devices[rank], self.exchange.peers[rank]
                device.enter()
                library = device.library(len(island), position, bytes([island[0]]) * 128)
                crossing = RecordedCrossing(PeerCrossing(peers), device)
                self.islands.append(
                    NcclIsland(
                        peers, self.layout, device, library, crossing=crossing, depth=depth, shard_bytes=shard_bytes
                    )
                )

    def call(self, buffers, op="sum", ranks=None):
        """Every rank calls, after its program has filled the buffer with its value."""
        return [self.islands[r].all_reduce(buffers[r], op, Work()) for r in ranks or range(len(buffers))]

    def fill(self, values):
        """Buffers that the programs will have filled in their streams' turns."""
        buffers = [torch.full_like(v, GARBAGE) for v in values]
        for device, buffer, value in zip(self.devices, buffers, values, strict=True):
            device.program("fill", lambda b=buffer, v=value: b.copy_(v), writes=[buffer])
        return buffers

    def read(self, buffers):
        """What the programs see that read without waiting for anything."""
        seen = []
        for device, buffer in zip(self.devices, buffers, strict=True):
            device.program("read", lambda b=buffer: seen.append(b.clone()), reads=[buffer])
            device.finish()
        return seen

    def close(self):
        for island in self.islands:
            island.close()


@contextlib.contextmanager
def atoll(*sizes, **options):
    made = Atoll(*sizes, **options)
    try:
        yield made
    finally:
        made.close()
    left = [t.name for t in threading.enumerate() if t.name.startswith("atoll-nccl")]
    assert not left


def done(works, timeout=5.0):
    return all(work.wait(timeout) for work in works)


sizes = st.lists(st.integers(1, 3), min_size=1, max_size=3)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8]


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 1500), st.sampled_from(DTYPES), st.sampled_from(["sum", "min", "max"]), st.integers(1, 3))
def test_every_rank_gets_the_result_and_no_access_is_out_of_order(sizes, count, dtype, op, depth):
    with atoll(*sizes, depth=depth) as here:
        values = [(torch.arange(count) % 5 + r % 3).to(dtype) for r in range(sum(sizes))]
        buffers = here.fill(values)
        assert done(here.call(buffers, op))
        stacked = torch.stack(values).to(torch.float64)
        expected = {"sum": stacked.sum(0), "min": stacked.amin(0), "max": stacked.amax(0)}[op].to(dtype)
        assert all(torch.equal(seen, expected) for seen in here.read(buffers))
        assert here.world.faults == []


def test_operations_in_flight_end_in_the_order_of_their_calls():
    with atoll(2, 1) as here:
        rounds = [[torch.full((n,), float(r + 1)) for r in range(3)] for n in (5, 300, 40, 1)]
        buffers = [here.fill(values) for values in rounds]
        works = [here.call(b) for b in buffers]
        assert all(done(w) for w in works)
        assert all(torch.equal(s, torch.full_like(s, 6.0)) for b in buffers for s in here.read(b))
        assert here.world.faults == []


def test_a_rank_issues_its_steps_in_this_order():
    with atoll(2, 2, depth=2, shard_bytes=64) as here:
        buffers = here.fill([torch.ones(96)] * 4)  # three chunks of 32: shards of 64 bytes
        assert done(here.call(buffers))
        steps = [f"{queue} {what}" for rank, queue, what in here.world.calls if rank == 0]
    once = ["island reduce_scatter", "down copy"]
    back = ["up copy", "island all_gather"]
    crossed = ["host cross"]
    assert steps == [
        "caller fill",
        *once,
        *once,
        *crossed,
        *crossed,
        *back,
        *once,
        *crossed,
        *back,
        *back,
        "island copy",
    ]


def test_the_result_is_queued_for_the_callers_stream_and_nobody_waits_for_it():
    with atoll(2, 1) as here:
        buffers = here.fill([torch.ones(50)] * 3)
        assert done(here.call(buffers))
        assert all(torch.equal(b, torch.ones(50)) for b in buffers)  # the last copies have not run yet
        assert all(torch.equal(s, torch.full((50,), 3.0)) for s in here.read(buffers))


def test_a_transposed_buffer_and_an_empty_one_are_taken():
    with atoll(1, 1) as here:
        buffers = [torch.arange(6.0).view(2, 3).t() for _ in range(2)]
        empty = [torch.empty(0) for _ in range(2)]
        assert done([*here.call(buffers), *here.call(empty)])
        assert all(torch.equal(s, 2 * torch.arange(6.0).view(2, 3).t()) for s in here.read(buffers))


# -- each wait is needed ---------------------------------------------------------------------------------------------


def without(kind):
    import dataclasses

    real = nccl_staging.schedule
    return lambda *args, **k: tuple(dataclasses.replace(step, **{kind: ()}) for step in real(*args, **k))


def broken(monkeypatch, what):
    """One wait fewer than there are."""
    from recorded_device import Event, Stream

    if what == "queue waits":
        monkeypatch.setattr(nccl_staging, "schedule", without("queue_waits"))
    elif what == "host waits":
        monkeypatch.setattr(nccl_staging, "schedule", without("host_waits"))
    elif what == "slots":
        real = nccl_staging.Staging._shards
        monkeypatch.setattr(nccl_staging.Staging, "_shards", lambda self, step, p: real(self, _in_slot_0(step), p))
    elif what == "events asked":
        monkeypatch.setattr(NcclIsland, "until", lambda self, event: None)
    elif what == "network waited for":
        monkeypatch.setattr(NcclIsland, "ended", lambda self, work: None)
    else:
        owner = "caller" if what == "caller told" else "island"
        real_wait = Stream.wait_event

        def wait_event(self, event: Event):
            if self.name == owner and (owner == "caller" or event.stream.name == "caller"):
                return
            real_wait(self, event)

        monkeypatch.setattr(Stream, "wait_event", wait_event)


def _in_slot_0(step):
    import dataclasses

    return dataclasses.replace(step, slot=0)


def test_with_all_its_waits_nothing_is_caught():
    with atoll(2, 2) as here:
        here.exchange.held.update(CROSSING_TAGS)
        buffers = here.fill([torch.ones(96)] * 4)
        works = here.call(buffers)
        time.sleep(0.05)
        here.exchange.let_go()
        assert done(works)
        assert all(torch.equal(s, torch.full((96,), 4.0)) for s in here.read(buffers))
        assert here.world.faults == []


@pytest.mark.parametrize(
    "what",
    ["queue waits", "host waits", "slots", "events asked", "network waited for", "caller told", "caller waited for"],
)
def test_a_missing_wait_is_caught(monkeypatch, what):
    broken(monkeypatch, what)
    with atoll(2, 2) as here:
        here.exchange.held.update(CROSSING_TAGS)  # so that nothing comes in time by luck
        buffers = here.fill([torch.ones(96)] * 4)
        works = here.call(buffers)
        time.sleep(0.05)
        here.exchange.let_go()
        for work in works:
            work.wait(1.0)
        seen = here.read(buffers)
        assert here.world.faults or not all(torch.equal(s, torch.full((96,), 4.0)) for s in seen)
        assert here.world.faults


# -- the end of an epoch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stuck", ["in the network", "in a kernel"])
def test_an_abort_frees_every_waiter_and_leaves_the_buffers(stuck):
    with atoll(2, 2) as here:
        here.exchange.held.update(CROSSING_TAGS)
        buffers = here.fill([torch.ones(96)] * 4)
        ranks = range(4) if stuck == "in the network" else (0, 2, 3)
        works = [*here.call(buffers, ranks=ranks), *here.call([torch.ones(7)] * 4, ranks=ranks)]
        results = []
        waiters = [threading.Thread(target=lambda w=w: results.append(w.wait(5))) for w in works]
        for waiter in waiters:
            waiter.start()
        time.sleep(0.05)
        before = time.monotonic()
        here.exchange.peers[1].abort("host gone", "t3")
        for waiter in waiters:
            waiter.join(5)
        took = time.monotonic() - before
        assert results == [False] * len(works)
        assert {(w.poison.reason, w.poison.culprit) for w in works} == {("host gone", "t3")}
        assert took < 0.5  # the bar is 50 ms; two busy cores are granted ten times that
        here.close()
        here.exchange.let_go()
        for device in here.devices:
            device.finish()  # the garbage of aborted kernels, and what was queued behind it
        assert all(torch.equal(b, torch.ones(96)) for b in buffers)
        assert all(device.world.groups for device in here.devices)
        assert {library.aborted for group in here.world.groups.values() for library in group.values()} == {True}


def test_what_is_called_after_the_end_is_poisoned_at_once():
    with atoll(1, 1) as here:
        here.exchange.peers[0].abort("over")
        work = here.islands[1].all_reduce(torch.ones(3), "sum", Work())
        assert work.poison is not None
        assert work.poison.reason == "over"


def test_an_island_that_is_closed_with_nothing_running_parts_in_order():
    with atoll(2) as here:
        assert done(here.call(here.fill([torch.ones(4)] * 2)))
        here.close()
        libraries = [library for group in here.world.groups.values() for library in group.values()]
        assert [(lib.destroyed, lib.aborted) for lib in libraries] == [(True, False)] * 2


def test_memory_of_a_stream_that_never_gets_idle_is_kept(monkeypatch):
    monkeypatch.setattr(nccl_island, "_DRAIN_S", 0.0)
    monkeypatch.setattr(nccl_island, "_KEPT", kept := [])
    monkeypatch.setattr(nccl_staging.Staging, "idle", False)
    with atoll(1) as here:
        staging = here.islands[0]._staging
    assert kept == [staging]


def test_an_error_of_the_library_ends_the_epoch_with_its_words():
    with atoll(2) as here:
        here.world.groups[bytes(128)][0].error = RuntimeError("NCCL_ERROR_REMOTE_ERROR")
        work = here.islands[0].all_reduce(torch.ones(4), "sum", Work())  # the other rank never comes
        assert not work.wait(5)
        assert work.poison is not None
        assert "NCCL on rank 0: RuntimeError: NCCL_ERROR_REMOTE_ERROR" in work.poison.reason


def test_ranks_of_an_island_that_mean_different_things_are_told_instead_of_hanging():
    with atoll(2) as here:
        works = [here.islands[r].all_reduce(torch.ones(4 + r), "sum", Work()) for r in range(2)]
        assert not any(work.wait(5) for work in works)
        assert "all_reduce sum of float32[4]" in works[0].poison.reason
        assert "all_reduce sum of float32[5]" in works[0].poison.reason


def test_a_result_is_not_handed_out_before_the_neighbour_said_the_same():
    with atoll(2) as here:
        here.exchange.held.add(AGREEMENT_TAG)
        works = here.call(here.fill([torch.ones(4)] * 2))
        assert not works[0].wait(0.1)
        here.exchange.let_go()
        assert done(works)


def test_what_nccl_cannot_sum_is_refused_with_what_it_can():
    with atoll(1) as here:
        island = here.islands[0]
        assert not island.takes(torch.ones(1, dtype=torch.bool), "sum")
        assert not island.takes(torch.ones(1), "avg")
        with pytest.raises(InternalError, match=r"'sum' of torch.bool on cpu: it takes torch.int8"):
            island.all_reduce(torch.ones(1, dtype=torch.bool), "sum", Work())


def test_an_abort_of_its_own_is_the_first_and_only_one():
    with atoll(1) as here:
        island = here.islands[0]
        first = Poison(reason="first", culprit=None, epoch=1)
        island.abort(first)
        island.abort(Poison(reason="second", culprit=None, epoch=1))
        assert island._poison is first
