"""Whether what lies on storage is a checkpoint: folds the sidecars of one save into commit, wait or refuse.

Any process can ask, at any time, from storage alone. A step's state is the same whoever wrote it (only committed steps
are saved, and these have one content), so a complete set of packs is right whatever became of its writers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.checkpoint.layout import coverage_problem, tensor_names
from atoll.checkpoint.manifest import FORMAT, CommitRecord, PackRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """All is there: write this record."""

    record: CommitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Packs of these ranks are not on storage yet."""

    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The packs cannot become a checkpoint."""

    reason: str


Judgement = Commit | Wait | Refuse


def judge(packs: Sequence[PackRecord], *, size: int, now: float) -> Judgement:
    """The judgement on the packs of one (step, epoch) written by `size` ranks."""
    ranks = {p.rank: p for p in packs}
    missing = tuple(r for r in range(size) if r not in ranks)
    if missing:
        return Wait(missing=missing)
    ordered = tuple(ranks[r] for r in range(size))
    first = ordered[0]
    if any((p.step, p.epoch, p.run, p.size) != (first.step, first.epoch, first.run, size) for p in ordered):
        return Refuse(reason="the packs are of different saves")
    if first.tree is None:
        return Refuse(reason=f"pack {first.file} lacks the state's tree")
    problem = coverage_problem(tensor_names(first.tree), [p.tensors for p in ordered])
    if problem:
        return Refuse(reason=problem)
    record = CommitRecord(
        format=FORMAT, run=first.run, step=first.step, epoch=first.epoch, at=now, packs=ordered, tree=first.tree
    )
    return Commit(record=record)
