"""Whether what lies on storage is a checkpoint: folds the words of one save into commit, wait, ask for help, or refuse.

Any process can ask, at any time, from storage alone. A save is named by (run, step, epoch), and parts of two saves are
never put together: the same step written in two epochs may differ in the last bits of a sum. A complete set is right
whatever became of its writers, since only steps that were decided on all members are saved.

A part that its rank did not write can come from whoever holds the same values and staged them (its standby). What was
told of the same box by several ranks must agree: where it does not, the majority says which rank is odd.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from atoll.checkpoint import format1
from atoll.checkpoint.coverage import coverage_problem
from atoll.checkpoint.digests import tensor_digest
from atoll.checkpoint.extents import Extents, merged
from atoll.checkpoint.layout import tensor_names
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import FORMAT, CommitRecord, TensorRecord, Word, pack_stem, state_sum


class Refusal(enum.StrEnum):
    """Why words cannot become a checkpoint."""

    WRITER_FAILED = "writer-failed"
    WRITER_LOST = "writer-lost"
    MIXED_SAVES = "mixed-saves"
    UNLIKE_STATES = "unlike-states"
    UNLIKE_REPLICAS = "unlike-replicas"
    NO_TREE = "no-tree"
    NOT_COVERED = "not-covered"
    PACK_GONE = "pack-gone"
    OTHER_RUN = "other-run"


@dataclass(frozen=True, slots=True)
class Told:
    """A word and the extents of its table; None where the table is not what the word names."""

    word: Word
    extents: Extents | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """All is there: this is the record. `odd` names ranks whose copy of something differs from what was written."""

    record: CommitRecord | format1.CommitRecord
    odd: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Words of these ranks are not on storage yet."""

    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """These parts will not come from their own ranks; others hold them. `why` for each."""

    parts: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The words cannot become a checkpoint, and waiting will not change it."""

    why: Refusal
    detail: str


Judgement = Commit | Wait | Ask | Refuse


def judge(
    told: Iterable[Told],
    *,
    size: int,
    held: Mapping[str, int],
    now: float,
    gone: frozenset[int] = frozenset(),
) -> Judgement:
    """The judgement on the words of one save by `size` ranks.

    `held` is the bytes of each file on storage; what ranks in `gone` have not written will not come.
    """
    parts = list(told)
    own = {t.word.rank: t for t in parts if t.word.by == t.word.rank}
    good = {r: t for r, t in own.items() if not t.word.problem}
    missing = tuple(r for r in range(size) if r not in own and r not in gone)
    if missing:
        return Wait(missing=missing)
    lost = {r: f"rank {r}: {own[r].word.problem}" if r in own else "" for r in range(size) if r not in good}
    if not good:
        return _refuse_lost(lost, parts)
    needed = set(next(iter(good.values())).word.writers)
    lost = {r: why for r, why in lost.items() if r in needed}
    chosen = [good[r] for r in sorted(good)]
    if lost:
        found = _stood_in(lost, good, [t for t in parts if t.word.by != t.word.rank], gone)
        if not isinstance(found, list):
            return found
        chosen += found
    return _judge_complete(chosen, size, held, now)


def _refuse_lost(lost: Mapping[int, str], parts: Sequence[Told]) -> Refuse:
    failed = [why for _, why in sorted(lost.items()) if why]
    if failed:
        return Refuse(why=Refusal.WRITER_FAILED, detail=failed[0])
    epoch = f" of epoch {parts[0].word.epoch}" if parts else ""
    return Refuse(
        why=Refusal.WRITER_LOST,
        detail=f"ranks {sorted(lost)}{epoch} were lost before they wrote, and no other holds their part; "
        "the next save goes on",
    )


def _stood_in(
    lost: Mapping[int, str], good: Mapping[int, Told], others: Sequence[Told], gone: frozenset[int]
) -> list[Told] | Judgement:
    """What others wrote in the place of those that are lost, or what is to be done first."""
    asked = []
    found: list[Told] = []
    for rank, why in sorted(lost.items()):
        helpers = {r for r, t in good.items() if rank in t.word.standby} - gone
        came = [t for t in others if t.word.rank == rank]
        failed = [t for t in came if t.word.problem]
        if failed or not (helpers or came):
            return _refuse_lost(
                {r: w or (failed[0].word.problem if failed else "") for r, w in lost.items()}, list(good.values())
            )
        if helpers - {t.word.by for t in came}:
            asked.append((rank, why or f"rank {rank} was lost before it wrote"))
        found += _without_doubles(came)
    return Ask(parts=tuple(asked)) if asked else found


def _without_doubles(came: Sequence[Told]) -> list[Told]:
    """Of several that wrote the same in a rank's place, the first."""
    found: list[Told] = []
    taken: set[str] = set()
    for told in sorted(came, key=lambda t: t.word.by):
        if not found or told.word.wrote.keys() - taken:
            found.append(told)
            taken |= told.word.wrote.keys()
    return found


def _judge_complete(
    parts: Sequence[Told],
    size: int,
    held: Mapping[str, int],
    now: float,
) -> Judgement:
    words = [t.word for t in parts]
    first = words[0]
    problem = _mixed(words, size) or _damaged(parts, held)
    if problem is not None:
        return problem
    tree = _tree(words)
    if tree is None:
        return Refuse(why=Refusal.NO_TREE, detail="no rank told of the state's tree")
    logicals = {one.name: one for w in words for one in w.logicals}
    if state_sum(logicals.values()) != first.state:
        return Refuse(why=Refusal.NOT_COVERED, detail=f"not all tensors of the save were told of, {len(logicals)} were")
    uncovered = _uncovered(logicals, tree, parts)
    if uncovered:
        return Refuse(why=Refusal.NOT_COVERED, detail=uncovered)
    unlike = _compared(words)
    if isinstance(unlike, Refuse):
        return unlike
    return Commit(record=_record(parts, logicals, tree, now), odd=unlike)


def _mixed(words: Sequence[Word], size: int) -> Refuse | None:
    first = words[0]
    saves = {(w.run, w.step, w.epoch, w.size) for w in words} | {(first.run, first.step, first.epoch, size)}
    if len(saves) > 1:
        return Refuse(why=Refusal.MIXED_SAVES, detail=f"the words are of {len(saves)} saves: {sorted(saves)[:2]}")
    unlike = sorted({w.by for w in words if (w.state, w.writers) != (first.state, first.writers)})
    if unlike:
        return Refuse(
            why=Refusal.UNLIKE_STATES,
            detail=f"ranks {unlike} hold other tensor names, types or shapes than rank {first.by}; manage the same on all "
            "ranks",
        )
    others = sorted({w.by for w in words if (w.weights, w.export) != (first.weights, first.export)})
    if others:
        return Refuse(
            why=Refusal.UNLIKE_STATES,
            detail=f"ranks {others} name another first module than rank {first.by}; manage in one order on all ranks",
        )
    return _overlapping(words)


def _overlapping(words: Sequence[Word]) -> Refuse | None:
    """Bytes of a file that two wrote: they are what came last."""
    segments = sorted((s.file, s.begin, s.begin + s.bytes, s.rank) for w in words for s in w.segments)
    for (file, _, end, one), (other_file, begin, _, other) in itertools.pairwise(segments):
        if file == other_file and begin < end:
            return Refuse(why=Refusal.UNLIKE_STATES, detail=f"ranks {one} and {other} wrote the same bytes of {file}")
    return None


def _damaged(parts: Sequence[Told], held: Mapping[str, int]) -> Refuse | None:
    for told in parts:
        word = told.word
        if told.extents is None or word.table is None:
            name = word.table.file if word.table is not None else pack_stem_of(word)
            return Refuse(why=Refusal.PACK_GONE, detail=f"the table {name} of rank {word.by} is not as it was written")
        for segment in word.segments:
            there = held.get(segment.file, 0)
            if there < segment.begin + segment.bytes:
                return Refuse(
                    why=Refusal.PACK_GONE,
                    detail=f"{segment.file} has {there} bytes, rank {word.by} wrote up to {segment.begin + segment.bytes}",
                )
    return None


def pack_stem_of(word: Word) -> str:
    """The name that all files of one word begin with."""
    return pack_stem(run=word.run, epoch=word.epoch, rank=word.rank, size=word.size, by=word.by)


def _tree(words: Sequence[Word]) -> dict[str, object] | None:
    """The trees of all ranks as one; of what two tell differently the lower rank's counts."""
    trees = [w.tree for w in words if w.tree is not None]
    found: dict[str, object] | None = None
    for tree in trees:
        found = tree if found is None else _merged(found, tree)
    return found


def _merged(one: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    both = dict(other) | one
    for key in one.keys() & other.keys():
        mine, theirs = one[key], other[key]
        if isinstance(mine, dict) and isinstance(theirs, dict):
            both[key] = _merged(mine, theirs)
    return both


def _uncovered(logicals: Mapping[str, Logical], tree: dict[str, object], parts: Sequence[Told]) -> str:
    unknown = sorted(tensor_names(tree) - logicals.keys())
    if unknown:
        return f"{len(unknown)} tensors are in no pack, {unknown[0]!r} first"
    for told in parts:
        problem = _outside(told, logicals)
        if problem:
            return problem
    tables = [told.extents for told in parts if told.extents is not None]
    return coverage_problem(list(logicals.values()), merged(tables, logicals.values()).boxes)


def _outside(told: Told, logicals: Mapping[str, Logical]) -> str:
    """An extent that is not what it says, or lies where its rank wrote nothing."""
    table = told.extents
    if table is None or not len(table):
        return ""
    strange = next((one.name for one in table.logicals if logicals.get(one.name) != one), None)
    if strange is not None:
        return f"rank {told.word.by} tells of another tensor {strange!r} than the state has"
    one = table.impossible()
    if one is not None:
        return f"rank {told.word.by} tells of {one.tensor!r}{one.box} as {one.bytes} bytes, which it cannot be"
    for file in table.files:
        one = table.outside(file, [(s.begin, s.begin + s.bytes) for s in told.word.segments if s.file == file])
        if one is not None:
            return f"rank {told.word.by} tells of {one.tensor!r}{one.box} in a part of {file} that it did not write"
    return ""


def _compared(words: Sequence[Word]) -> str | Refuse:
    """Whether all that told of a box told the same; who is odd, in words."""
    tellers: dict[str, dict[int, str]] = defaultdict(dict)
    wrote: dict[str, int] = {}
    for word in words:
        for key, digest in word.held.items():
            tellers[key][word.by] = digest
        for key, digest in word.wrote.items():
            tellers[key][word.by] = digest
            wrote[key] = word.by
    odd: dict[int, str] = {}
    for key, digests in tellers.items():
        if len(set(digests.values())) == 1:
            continue
        [(common, count), *_] = Counter(digests.values()).most_common()
        if 2 * count <= len(digests):
            return Refuse(
                why=Refusal.UNLIKE_REPLICAS,
                detail=f"ranks {sorted(digests)} hold unlike values of {key}, and there is no majority among them",
            )
        if digests.get(wrote.get(key, -1), common) != common:
            return Refuse(
                why=Refusal.UNLIKE_REPLICAS,
                detail=f"rank {wrote[key]} wrote other values of {key} than the {count} others hold",
            )
        odd.update({rank: key for rank, digest in digests.items() if digest != common and rank not in odd})
    return "; ".join(f"rank {rank} holds other values of {key} than were written" for rank, key in sorted(odd.items()))


def _record(
    parts: Sequence[Told], logicals: Mapping[str, Logical], tree: dict[str, object], now: float
) -> CommitRecord:
    words = [t.word for t in parts]
    first = words[0]
    torn = _torn(words)
    digests: dict[str, list[int]] = {name: [] for name in logicals}
    for word in words:
        for key, digest in word.wrote.items():
            digests[key[: key.rindex("[")]].append(int(digest, 16))
    return CommitRecord(
        format=FORMAT,
        run=first.run,
        step=first.step,
        epoch=first.epoch,
        size=first.size,
        at=now,
        segments=tuple(s for w in words for s in w.segments),
        tables=tuple(w.table for w in words if w.table is not None),
        tensors=tuple(
            TensorRecord(
                name=one.name, dtype=one.dtype, shape=one.shape, digest=f"{tensor_digest(one, digests[one.name]):016x}"
            )
            for _, one in sorted(logicals.items())
        ),
        tree=tree,
        words=tuple(f"{pack_stem_of(w)}.json" for w in words),
        weights="" if torn else first.weights,
        export=torn or first.export,
        beside={} if torn else next((w.beside for w in words if w.beside), {}),
    )


def _torn(words: Sequence[Word]) -> str:
    """Why the shared file of weights lacks something; empty where it does not.

    Who stands in writes a file of its own: a rank that is taken for lost may still write its ranges of the shared one.
    """
    stood_in = next((w for w in words if w.by != w.rank), None)
    if stood_in is None or not words[0].weights:
        return ""
    return f"rank {stood_in.by} wrote the part of rank {stood_in.rank} into a file of its own; export makes the file"
