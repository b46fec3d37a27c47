import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.commit import Ask, Commit, Refusal, Refuse, Told, Wait, judge
from atoll.checkpoint.digests import tensor_digest
from atoll.checkpoint.extents import Extent, extents_of, merged
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import BLOCK_BYTES, Segment, Table, Word, packed_sums, state_sum

LOGICALS = [Logical(f"w{i}", "float32", (8, 2)) for i in range(7)]
TREE = {"model": {one.name: {"$tensor": one.name} for one in LOGICALS}}
BYTES = 64


def told(rank, size, *, names=None, held=(), digest="00000000000000aa", by=None, **changed):
    """A word as rank `rank` of `size` would leave it, who owns every `size`-th tensor."""
    by = rank if by is None else by
    mine = LOGICALS[rank::size] if names is None else [one for one in LOGICALS if one.name in names]
    file = f"r{rank}by{by}.safetensors"
    keys = {one.name: f"{one.name}{whole(one.shape)}" for one in LOGICALS}
    word = Word(
        run="run",
        step=5,
        epoch=1,
        rank=rank,
        size=size,
        by=by,
        segments=(
            Segment(rank=by, file=file, begin=0, bytes=BYTES * 7, block_bytes=BLOCK_BYTES, sums=packed_sums([rank])),
        ),
        table=Table(file=f"{file}.arrow", bytes=1, xxh3="0"),
        logicals=tuple(LOGICALS if rank == 0 else mine),
        wrote={keys[one.name]: digest for one in mine},
        held={keys[name]: digest for name in held},
        state=state_sum(LOGICALS),
        writers=tuple(range(min(size, 7))),
        tree=TREE if 0 in (rank, by) else None,
    )
    extents = [Extent(one.name, whole(one.shape), file, by, BYTES * i, BYTES) for i, one in enumerate(mine)]
    return Told(dataclasses.replace(word, **changed), extents_of(mine, extents))


def failed(rank, size, problem, by=None):
    return Told(
        Word(run="run", step=5, epoch=1, rank=rank, size=size, by=rank if by is None else by, problem=problem), None
    )


def judged(parts, size, gone=(), **held):
    there = {s.file: s.begin + s.bytes for t in parts for s in t.word.segments} | held
    return judge(parts, size=size, held=there, now=7.0, gone=frozenset(gone))


def refused(found, why, words):
    assert isinstance(found, Refuse), found
    assert found.why is why
    assert words in found.detail


@given(size=st.integers(1, 8), data=st.data())
def test_save_is_committed_when_all_words_are_there_in_whatever_order(size, data):
    found = judged(data.draw(st.permutations([told(r, size) for r in range(size)])), size)
    assert isinstance(found, Commit)
    assert [s.rank for s in found.record.segments] == list(range(size))
    assert (found.record.at, found.record.tree, found.record.step) == (7.0, TREE, 5)
    assert {t.name: t.digest for t in found.record.tensors} == {
        one.name: f"{tensor_digest(one, [0xAA]):016x}" for one in LOGICALS
    }


@given(size=st.integers(1, 8), data=st.data())
def test_save_waits_for_exactly_the_ranks_whose_words_are_not_there(size, data):
    absent = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    assert judged([told(r, size) for r in range(size) if r not in absent], size) == Wait(missing=tuple(sorted(absent)))


@given(size=st.integers(2, 6), data=st.data())
def test_words_of_two_saves_never_make_a_checkpoint(size, data):
    parts = [told(r, size) for r in range(size)]
    alien = data.draw(st.integers(0, size - 1))
    field, value = data.draw(st.sampled_from([("epoch", 2), ("step", 6), ("run", "other"), ("size", size + 1)]))
    parts[alien] = Told(dataclasses.replace(parts[alien].word, **{field: value}), parts[alien].extents)
    refused(judged(parts, size), Refusal.MIXED_SAVES, "the words are of 2 saves")


def test_rank_that_failed_without_a_standby_refuses_the_save():
    parts = [told(0, 3), told(1, 3), failed(2, 3, "no space left on device")]
    refused(judged(parts, 3), Refusal.WRITER_FAILED, "rank 2: no space left on device")


@pytest.mark.parametrize("third", [[], [failed(2, 3, "no space left")]], ids=["lost", "failed"])
def test_part_of_a_rank_that_has_a_standby_is_asked_for_and_taken_from_it(third):
    parts = [told(0, 3, standby=(2,)), told(1, 3), *third]
    found = judged(parts, 3, gone=[2])
    assert isinstance(found, Ask)
    assert [rank for rank, _ in found.parts] == [2]
    found = judged([*parts, told(2, 3, by=0)], 3, gone=[2])
    assert isinstance(found, Commit)
    assert {s.file for s in found.record.segments} >= {"r2by0.safetensors"}


def test_part_whose_standby_wrote_its_own_and_was_lost_is_asked_of_nobody():
    parts = [told(0, 3, standby=(2,)), told(1, 3)]
    refused(judged(parts, 3, gone=[0, 2]), Refusal.WRITER_LOST, "ranks [2] of epoch 1 were lost")
    assert isinstance(judged([*parts, told(2, 3, by=0)], 3, gone=[0, 2]), Commit)


def test_standby_that_fails_too_refuses_the_save():
    parts = [told(0, 3, standby=(2,)), told(1, 3), failed(2, 3, "in its place rank 0: disk full", by=0)]
    refused(judged(parts, 3, gone=[2]), Refusal.WRITER_FAILED, "in its place rank 0: disk full")


def test_lost_rank_that_had_nothing_to_write_is_missed_by_nobody():
    assert isinstance(judged([told(r, 8) for r in range(7)], 8, gone=[7]), Commit)


def test_own_word_of_a_rank_counts_before_that_of_its_standby():
    parts = [told(0, 2, standby=(1,)), told(1, 2), told(1, 2, by=0)]
    found = judged(parts, 2)
    assert isinstance(found, Commit)
    assert "r1by0.safetensors" not in {s.file for s in found.record.segments}


@pytest.mark.parametrize(
    ("change", "why", "words"),
    [
        ({"state": "b" * 16}, Refusal.UNLIKE_STATES, "ranks [1] hold other tensor names"),
        ({"names": ["w1"]}, Refusal.NOT_COVERED, "is in no pack"),
        ({"names": [one.name for one in LOGICALS]}, Refusal.NOT_COVERED, "is in two packs"),
        ({"table": None}, Refusal.PACK_GONE, "of rank 1 is not as it was written"),
        ({"segments": ()}, Refusal.NOT_COVERED, "in a part of r1by1.safetensors that it did not write"),
    ],
)
def test_words_that_do_not_fit_together_are_refused_with_the_reason(change, why, words):
    refused(judged([told(0, 3), told(1, 3, **change), told(2, 3)], 3), why, words)


def test_box_that_overlaps_another_by_one_row_is_named():
    parts = [told(0, 1)]
    extra = extents_of(LOGICALS, [Extent("w3", Box((7, 0), (8, 2)), "r0by0.safetensors", 0, 0, 8)])
    doubled = merged([parts[0].extents, extra])
    refused(judged([Told(parts[0].word, doubled)], 1), Refusal.NOT_COVERED, "w3[7:8,0:2]")


def test_save_without_a_tree_is_refused():
    refused(judged([told(0, 2, tree=None), told(1, 2)], 2), Refusal.NO_TREE, "no rank told")


@pytest.mark.parametrize("there", [0, 99])
def test_file_that_vanished_or_shrank_after_its_word_was_written_refuses_the_save(there):
    found = judged([told(0, 2), told(1, 2)], 2, **{"r1by1.safetensors": there})
    refused(found, Refusal.PACK_GONE, f"r1by1.safetensors has {there} bytes, rank 1 wrote up to {BYTES * 7}")


def test_rank_whose_copy_differs_from_what_two_others_hold_is_named_and_the_right_values_count():
    parts = [told(0, 3, held=["w1"]), told(1, 3), told(2, 3)]
    odd = dataclasses.replace(parts[2].word, held={"w1[0:8,0:2]": "00000000000000bb"})
    found = judged([*parts[:2], Told(odd, parts[2].extents)], 3)
    assert isinstance(found, Commit)
    assert found.odd == "rank 2 holds other values of w1[0:8,0:2] than were written"


def test_writer_whose_values_differ_from_what_the_others_hold_refuses_the_save_by_name():
    parts = [told(0, 3, held=["w1"]), told(1, 3, digest="00000000000000bb"), told(2, 3, held=["w1"])]
    refused(
        judged(parts, 3), Refusal.UNLIKE_REPLICAS, "rank 1 wrote other values of w1[0:8,0:2] than the 2 others hold"
    )


def test_two_that_differ_without_a_third_refuse_the_save():
    parts = [told(0, 2, held=["w1"]), told(1, 2, digest="00000000000000bb")]
    refused(judged(parts, 2), Refusal.UNLIKE_REPLICAS, "ranks [0, 1] hold unlike values of w1[0:8,0:2]")
