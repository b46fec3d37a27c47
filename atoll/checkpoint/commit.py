"""Whether what lies on storage is a checkpoint: folds the sidecars of one save into commit, wait or refuse.

Any process can ask, at any time, from storage alone. A save is named by (run, step, epoch), and packs of two saves are
never put together: the same step written in two epochs may differ in the last bits of a sum. A complete set is right
whatever became of its writers, since only steps that were decided on all members are saved.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from atoll.checkpoint.layout import coverage_problem, tensor_names
from atoll.checkpoint.manifest import FORMAT, CommitRecord, PackRecord


class Refusal(enum.StrEnum):
    """Why packs cannot become a checkpoint."""

    WRITER_FAILED = "writer-failed"
    MIXED_SAVES = "mixed-saves"
    UNLIKE_STATES = "unlike-states"
    NO_TREE = "no-tree"
    NOT_COVERED = "not-covered"
    PACK_GONE = "pack-gone"
    OTHER_RUN = "other-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """All is there: this is the record."""

    record: CommitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Packs of these ranks are not on storage yet."""

    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The packs cannot become a checkpoint, and waiting will not change it."""

    why: Refusal
    detail: str


Judgement = Commit | Wait | Refuse


def judge(packs: Iterable[PackRecord], *, size: int, held: Mapping[str, int], now: float) -> Judgement:
    """The judgement on the packs of one save by `size` ranks; `held` is the bytes of each pack file on storage."""
    ranks = {p.rank: p for p in packs}
    failed = [p for _, p in sorted(ranks.items()) if p.problem]
    if failed:
        return Refuse(why=Refusal.WRITER_FAILED, detail=f"rank {failed[0].rank}: {failed[0].problem}")
    missing = tuple(r for r in range(size) if r not in ranks)
    if missing:
        return Wait(missing=missing)
    return _judge_complete([ranks[r] for r in sorted(ranks)], size, held, now)


def _judge_complete(packs: Sequence[PackRecord], size: int, held: Mapping[str, int], now: float) -> Judgement:
    first = packs[0]
    saves = {(p.run, p.step, p.epoch, p.size) for p in packs} | {(first.run, first.step, first.epoch, size)}
    if len(saves) > 1 or len(packs) != size:
        return Refuse(why=Refusal.MIXED_SAVES, detail=f"the packs are of {len(saves)} saves: {sorted(saves)[:2]}")
    unlike = [p.rank for p in packs if p.state != first.state]
    if unlike:
        return Refuse(
            why=Refusal.UNLIKE_STATES,
            detail=f"ranks {unlike} hold other tensor names, types or shapes than rank 0; manage the same on all ranks",
        )
    if first.tree is None:
        return Refuse(why=Refusal.NO_TREE, detail=f"{first.file} lacks the state's tree")
    problem = coverage_problem(tensor_names(first.tree), [p.tensors for p in packs])
    if problem:
        return Refuse(why=Refusal.NOT_COVERED, detail=problem)
    wrong = [p for p in packs if held.get(p.file) != p.bytes]
    if wrong:
        there = held.get(wrong[0].file, 0)
        return Refuse(why=Refusal.PACK_GONE, detail=f"{wrong[0].file} has {there} bytes, {wrong[0].bytes} were written")
    return Commit(
        record=CommitRecord(
            format=FORMAT,
            run=first.run,
            step=first.step,
            epoch=first.epoch,
            at=now,
            packs=tuple(packs),
            tree=first.tree,
        )
    )
