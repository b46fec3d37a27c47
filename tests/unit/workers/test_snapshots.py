"""Copies each few steps: what is kept, what a loss in the middle leaves, and when the older ones go."""

import pytest
import torch

from atoll.checkpoint.torch_state import Flat
from atoll.errors import InternalError
from atoll.workers.buddies import Place
from atoll.workers.torch_copies import Trained
from atoll.workers.torch_shards import Shards, Spec
from atoll.workers.torch_snapshots import Own, Snapshots

SIZE, EVERY = 3, 4
SPECS = {"model.w": Spec("float32", (6, 5), 0), "scale": Spec("float32", (2,))}
PARAM = torch.nn.Parameter(torch.zeros(2, 5))
TRAINED = Trained(torch.optim.SGD([PARAM], lr=0.1), "optimizer", ("model.w",))


class Epoch:
    """Messages under way, by (source, target)."""

    def __init__(self):
        self.sent, self.wanted, self.over = {}, {}, False

    def deliver(self, way):
        sent, wanted = self.sent.get(way, []), self.wanted.get(way, [])
        while sent and wanted and not self.over:
            message, (buffer, work) = sent.pop(0), wanted.pop(0)
            buffer.copy_(message)
            work.done = True


class Work:
    def __init__(self, epoch):
        self.epoch, self.done = epoch, False

    @property
    def poison(self):
        return "over" if self.epoch.over and not self.done else None

    def wait(self, timeout=None):
        assert self.done or self.epoch.over or timeout == 0.0, "this would wait for ever"
        return self.done


class Comm:
    def __init__(self, epoch, rank):
        self.shared, self.rank = epoch, rank

    def send(self, buffer, *, to, tag=0):
        work = Work(self.shared)
        work.done = not self.shared.over
        self.shared.sent.setdefault((self.rank, to), []).append(buffer.clone())
        self.shared.deliver((self.rank, to))
        return work

    def recv(self, buffer, *, source, tag=0):
        work = Work(self.shared)
        self.shared.wanted.setdefault((source, self.rank), []).append((buffer, work))
        self.shared.deliver((source, self.rank))
        return work

    def end(self):
        self.shared.over = True


class Rank:
    """One rank's snapshots, and a live state that changes with each step. Rank r keeps what r - 1 holds."""

    def __init__(self, index):
        self.index, self.line = index, 1
        self.snapshots = Snapshots(EVERY)
        self.live = {"model.w": torch.full((2, 5), 10.0 * index), "scale": torch.zeros(2)}

    def enter(self, comm, step, *, sends=True, keeps=True):
        self.comm = comm
        self.snapshots.collect()
        buddy, ward = (self.index + 1) % SIZE, (self.index - 1) % SIZE
        self.snapshots.regrouped(
            buddy=buddy, ward=ward, sends=sends, keeps=keeps, active=True, step=step, line=self.line
        )

    def begin(self, committed):
        if self.snapshots.is_due(committed):
            shards = Shards(Flat(tensors=self.live, meta={"step": committed}), SPECS)
            own = Own(shards=shards, place=Place(size=SIZE, group=0, index=self.index), step=committed, line=self.line)
            self.snapshots.take(own, TRAINED, Place(size=SIZE, group=0, index=(self.index - 1) % SIZE))
        self.snapshots.move(self.comm)

    def commit(self, step):
        assert self.snapshots.prepare(self.comm, step)
        self.snapshots.settle(step)
        self.live["model.w"] += 1.0
        self.live["scale"] += 1.0

    def kept(self):
        return sorted(own.step for own in self.snapshots.own().values())

    def copied(self):
        return {s.step: s.tensors()["model.w"][0, 0].item() for s in self.snapshots.shadows().values()}


@pytest.fixture
def ranks():
    found = [Rank(i) for i in range(SIZE)]
    meet(found, 0)
    return found


def meet(ranks, step, **wanted):
    """A new epoch in which all stand after `step`."""
    epoch = Epoch()
    for rank in ranks:
        rank.enter(Comm(epoch, rank.index), step, **wanted)


def train(ranks, first, last):
    for step in range(first, last + 1):
        for rank in ranks:
            rank.begin(step - 1)
        for rank in ranks:
            rank.commit(step)


def test_first_copies_of_an_epoch_are_there_before_its_first_commit(ranks):
    for rank in ranks:
        rank.begin(0)
    assert [r.copied() for r in ranks] == [{}, {}, {}]
    for rank in ranks:
        rank.commit(1)
    assert [r.copied() for r in ranks] == [{0: 20.0}, {0: 0.0}, {0: 10.0}]


def test_copies_are_of_the_step_they_are_named_after_while_training_goes_on(ranks):
    train(ranks, 1, 6)
    for rank in ranks:
        kept = {own.step: own.shards.flat for own in rank.snapshots.own().values()}
        assert sorted(kept) == [0, 4]
        for step, flat in kept.items():
            assert flat.meta == {"step": step}
            assert flat.tensors["model.w"][0, 0] == 10.0 * rank.index + step
            assert flat.tensors["scale"][0] == step


def test_older_copies_go_only_when_all_have_the_newer(ranks):
    train(ranks, 1, 7)
    assert [r.kept() for r in ranks] == [[0, 4]] * SIZE
    train(ranks, 8, 8)
    assert [r.kept() for r in ranks] == [[4]] * SIZE
    assert [sorted(r.copied()) for r in ranks] == [[4]] * SIZE


def test_vote_does_not_wait_for_copies_before_the_next_are_due(ranks):
    train(ranks, 1, 4)
    for rank in ranks[:2]:  # the third sends nothing
        rank.begin(4)
        assert rank.snapshots.prepare(rank.comm, 5)


def test_what_had_not_arrived_when_the_epoch_ended_does_not_count(ranks):
    train(ranks, 1, 5)
    for rank in ranks:
        rank.comm.end()
        rank.snapshots.collect()
    assert [sorted(r.copied()) for r in ranks] == [[0]] * SIZE  # the second half of step 4's was still to go
    assert [r.kept() for r in ranks] == [[0, 4]] * SIZE


def test_what_had_arrived_whole_when_the_epoch_ended_counts(ranks):
    train(ranks, 1, 6)
    for rank in ranks:
        rank.comm.end()
        rank.snapshots.collect()
    assert [sorted(r.copied()) for r in ranks] == [[0, 4]] * SIZE


def test_what_came_after_the_step_that_all_went_back_to_is_forgotten(ranks):
    train(ranks, 1, 6)
    ranks[0].comm.end()
    meet(ranks, 0, sends=False, keeps=False)
    assert [r.kept() for r in ranks] == [[0]] * SIZE
    assert [sorted(r.copied()) for r in ranks] == [[0]] * SIZE


def test_copies_of_the_step_that_all_stand_at_are_not_sent_again(ranks):
    train(ranks, 1, 4)
    ranks[0].comm.end()
    for rank in ranks:
        rank.live = {"model.w": torch.full((2, 5), 10.0 * rank.index), "scale": torch.zeros(2)}
    meet(ranks, 0, sends=False, keeps=False)
    train(ranks, 1, 4)
    assert [r.kept() for r in ranks] == [[0]] * SIZE
    assert [r.copied() for r in ranks] == [{0: 20.0}, {0: 0.0}, {0: 10.0}]


def test_shards_of_two_shapes_of_one_step_are_kept_side_by_side(ranks):
    train(ranks, 1, 6)
    snapshots, shape = ranks[0].snapshots, Place(size=2, group=0, index=1)
    ranks[0].comm.end()
    snapshots.collect()
    snapshots.regrouped(buddy=1, ward=1, sends=True, keeps=True, active=True, step=4, line=1)
    flat = Flat(tensors={"model.w": torch.zeros(3, 5), "scale": torch.zeros(2)}, meta={})
    own = Own(shards=Shards(flat, SPECS), place=shape, step=4, line=1)
    snapshots.take(own, TRAINED, Place(size=2, group=0, index=0))
    assert sorted((o.step, o.place.size) for o in snapshots.own().values()) == [(0, 3), (4, 2), (4, 3)]


def test_copies_for_two_wards_of_one_step_are_kept_side_by_side(ranks):
    for rank in ranks:
        rank.begin(0)
    for rank in ranks:
        rank.comm.end()
        rank.snapshots.collect()
    meet(ranks, 0)
    for rank in ranks:
        shards = Shards(Flat(tensors=rank.live, meta={}), SPECS)
        own = Own(shards=shards, place=Place(size=SIZE, group=0, index=rank.index), step=0, line=1)
        rank.snapshots.take(own, TRAINED, Place(size=SIZE, group=0, index=(rank.index + 1) % SIZE))
        rank.snapshots.move(rank.comm)
    assert ranks[0].snapshots.land(ranks[0].comm)
    assert sorted(s.index for s in ranks[0].snapshots.shadows().values()) == [1, 2]


def test_memory_of_copies_that_went_is_used_again(ranks):
    train(ranks, 1, 9)
    before = {s.memory.data_ptr() for r in ranks for s in r.snapshots.shadows().values()}
    train(ranks, 10, 40)
    after = {s.memory.data_ptr() for r in ranks for s in r.snapshots.shadows().values()}
    assert len(before | after) <= 4 * SIZE


def test_copy_that_changed_on_its_way_is_refused(ranks):
    for rank in ranks:
        rank.begin(0)
    assert ranks[1].snapshots.land(ranks[1].comm)
    flight = ranks[2].snapshots._flight
    flight.incoming.memory[-1] ^= 1
    with pytest.raises(InternalError, match="the shard of rank 1 after step 0 changed on its way"):
        ranks[2].snapshots.land(ranks[2].comm)
