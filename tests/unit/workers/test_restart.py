"""All begin anew from a checkpoint: each reads its own, no block twice, and one that is damaged is given up by all."""

import threading

import pytest

pytest.importorskip("torch")

import torch
from checkpoint_crews import Crew
from local_peers import Exchange

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_restore import Restore
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError
from atoll.workers.buddies import Place
from atoll.workers.torch_restart import EpochOver, Filled, Restart
from atoll.workers.torch_shard_access import Access
from atoll.workers.torch_shards import Spec

WITHIN_S = 20.0
SIZE = 3


def state(step):
    return {
        "weight": torch.arange(3_000_000, dtype=torch.float32).view(3000, 1000) + step,
        "few": torch.arange(20, dtype=torch.int64).view(10, 2),
        "step": torch.tensor(float(step)),
    }


@pytest.fixture
def store(tmp_path):
    crew = Crew(2, directory=tmp_path)
    for step in (1, 2):
        for handle in crew.save(Flat(tensors=state(step), meta={"step": step}), step):
            assert handle.ended.wait(WITHIN_S)
            assert handle.committed, handle.problem
    for writer in crew.writers:
        writer.finish(WITHIN_S)
    return Store(tmp_path)


class Rank:
    """One member: what it read is in `reading`, one for each step that it tried."""

    def __init__(self, store, comm, places, found=None):
        self.readings = []
        self.place = places[comm.rank]
        restore = Restore(store, run="run", damaged=lambda *_: None)

        def opened(_folder, record, tiers):
            return self.seen(restore.opened(record, tiers))

        def newest(_epoch, take):
            return Restore(store, run="run", damaged=lambda *_: None, take=lambda r: take(self.seen(r))).newest()

        comm.epoch = 1
        access = Access(state=dict, load=lambda _: 0, found=found or newest, opened=opened, before_change=int)
        self.restart = Restart(comm=comm, access=access, places=places, specs_of=self.specs_of, memory=self.memory)

    def seen(self, reading):
        self.readings.append(reading)
        return reading

    def specs_of(self, saved):
        return {one.name: Spec(one.dtype, one.shape, 0 if one.shape else None) for one in saved}

    def memory(self, specs):
        boxes = {n: s.box(self.place.size, self.place.index) for n, s in specs.items()}
        return {n: torch.zeros(box.shape, dtype=specs[n].torch_dtype) for n, box in boxes.items()}

    def run(self):
        try:
            return self.restart.found()
        except (CheckpointError, EpochOver) as error:
            return error


def restarted(store, places, exchange=None, **options):
    """Each member, and what it found."""
    peers = (exchange or Exchange(len(places))).peers
    ranks = [Rank(store, peer, places, **options) for peer in peers]
    found = [None] * len(ranks)

    def run(at):
        found[at] = ranks[at].run()
        if isinstance(found[at], CheckpointError):
            peers[at].abort("it has failed")

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    return ranks, found


def groups(count, size=SIZE):
    return [Place(size=size, group=g, index=i) for g in range(count) for i in range(size)]


def has(found, place, step):
    for name, tensor in state(step).items():
        box = found.specs[name].box(place.size, place.index)
        assert torch.equal(found.flat.tensors[name], tensor[box.within(whole(tensor.shape))]), name
    assert found.flat.meta == {"step": step}


@pytest.mark.parametrize("count", [1, 2])
def test_each_member_gets_its_shard_and_no_block_is_read_twice(store, count):
    places = groups(count)
    ranks, found = restarted(store, places)
    for place, one in zip(places, found, strict=True):
        assert isinstance(one, Filled)
        has(one, place, 2)
    stored = sum(segment.bytes for segment in store.record(2).segments)
    read = [sum(reading.bytes_read for reading in rank.readings) for rank in ranks]
    assert sum(read) <= stored
    assert sum(count > 0 for count in read) >= SIZE


def test_damaged_step_is_given_up_by_all_and_the_older_one_taken(store):
    pack = max(store.step_directory(2).glob("*.safetensors"), key=lambda p: p.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    places = groups(1)
    _, found = restarted(store, places)
    for place, one in zip(places, found, strict=True):
        has(one, place, 1)
    assert store.committed_steps() == [1]


def test_step_that_others_cannot_open_is_given_up_by_all(store, monkeypatch):
    plain = Restore.opened

    def opened(self, record, tiers):
        if record.step == 2:
            raise CheckpointError("its folder is not mounted here")
        return plain(self, record, tiers)

    monkeypatch.setattr(Restore, "opened", opened)
    places = groups(1)
    _, found = restarted(store, places)
    for place, one in zip(places, found, strict=True):
        has(one, place, 1)


def test_without_a_step_that_is_whole_rank_zero_says_why(store):
    for step in (1, 2):
        for pack in store.step_directory(step).glob("*.safetensors"):
            pack.write_bytes(b"")
    _, (first, *others) = restarted(store, groups(1))
    assert isinstance(first, CheckpointError)
    assert "ended" in str(first)
    assert all(isinstance(one, EpochOver) for one in others)


def test_without_any_step_all_begin_as_built(tmp_path):
    assert restarted(Store(tmp_path / "none"), groups(1))[1] == [False] * SIZE


def test_what_rank_zero_has_read_alone_the_others_are_told_of(store):
    flat = Flat(tensors=state(2), meta={})
    assert restarted(store, groups(1), found=lambda _epoch, _take: flat)[1] == [flat, True, True]


def test_end_of_the_epoch_ends_the_try_on_all(store):
    exchange = Exchange(SIZE)
    exchange.peers[0].abort("epoch 2: lost")
    _, found = restarted(store, groups(1), exchange)
    assert all(isinstance(one, EpochOver) for one in found)
