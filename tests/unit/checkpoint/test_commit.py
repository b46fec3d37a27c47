import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.checkpoint.commit import Commit, Refusal, Refuse, Wait, judge
from atoll.checkpoint.layout import shares

NAMES = [f"w{i}" for i in range(7)]
TREE = {"model": {n: {"$tensor": n} for n in NAMES}}
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def whole(pack):
    def make(size):
        divided = shares(dict.fromkeys(NAMES, 10), size)
        return [pack(r, size, divided[r], tree=TREE if r == 0 else None) for r in range(size)]

    return make


def judged(packs, size, **held):
    return judge(packs, size=size, held={p.file: p.bytes for p in packs} | held, now=7.0)


@shared_fixture
@given(size=st.integers(1, 8), data=st.data())
def test_save_is_committed_when_all_its_packs_are_there_in_whatever_order(whole, size, data):
    packs = data.draw(st.permutations(whole(size)))
    found = judged(packs, size)
    assert isinstance(found, Commit)
    assert [p.rank for p in found.record.packs] == list(range(size))
    assert (found.record.at, found.record.tree, found.record.step) == (7.0, TREE, 5)


@shared_fixture
@given(size=st.integers(1, 8), data=st.data())
def test_save_waits_for_exactly_the_ranks_whose_packs_are_not_there(whole, size, data):
    gone = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    there = [p for p in whole(size) if p.rank not in gone]
    assert judged(there, size) == Wait(missing=tuple(sorted(gone)))


@shared_fixture
@given(size=st.integers(2, 6), data=st.data())
def test_packs_of_two_saves_never_make_a_checkpoint(whole, size, data):
    packs = whole(size)
    alien = data.draw(st.integers(0, size - 1))
    field, value = data.draw(st.sampled_from([("epoch", 2), ("step", 6), ("run", "other"), ("size", size + 1)]))
    packs[alien] = dataclasses.replace(packs[alien], **{field: value})
    found = judged(packs, size)
    assert isinstance(found, Refuse)
    assert found.why is Refusal.MIXED_SAVES


def test_word_of_a_rank_that_failed_refuses_the_save_before_the_others_are_there(pack, whole):
    word = pack(2, 4, (), file="", bytes=0, problem="no space left on device")
    found = judged([whole(4)[0], word], 4)
    assert found == Refuse(why=Refusal.WRITER_FAILED, detail="rank 2: no space left on device")


@pytest.mark.parametrize(
    ("changed", "why", "words"),
    [
        ({"state": "b" * 16}, Refusal.UNLIKE_STATES, "ranks [1] hold other tensor names"),
        ({"tensors": ()}, Refusal.NOT_COVERED, "tensors are in no pack"),
        ({"tensors": tuple(NAMES)}, Refusal.NOT_COVERED, "tensors are in two packs"),
    ],
)
def test_packs_that_do_not_fit_together_are_refused_with_the_reason(whole, changed, why, words):
    packs = whole(3)
    packs[1] = dataclasses.replace(packs[1], **changed)
    found = judged(packs, 3)
    assert isinstance(found, Refuse)
    assert found.why is why
    assert words in found.detail


def test_save_without_the_tree_of_rank_0_is_refused(whole):
    packs = whole(2)
    found = judged([dataclasses.replace(packs[0], tree=None), packs[1]], 2)
    assert isinstance(found, Refuse)
    assert found.why is Refusal.NO_TREE


@pytest.mark.parametrize("there", [0, 99])
def test_pack_that_vanished_or_shrank_after_its_sidecar_was_written_refuses_the_save(whole, there):
    found = judged(whole(2), 2, **{"r1.safetensors": there})
    assert found == Refuse(why=Refusal.PACK_GONE, detail=f"r1.safetensors has {there} bytes, 101 were written")
