"""What the members of a new epoch do with the step that the old epoch left open.

Each member says what it knows (`Report`); every member reads the same reports and draws the same conclusion (`decide`),
so no leader is needed. By law 2: if any member committed step s, then all who were members voted prepared, so all who
hold its gradients apply them; else nobody in this epoch committed and nobody outside has shown it, so all abort. Members
that hold no state, or an older one, receive it from the lowest rank that holds the newest. A vote cast in the old epoch
cannot be counted later: whoever reports here has left the old epoch for good (law 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from atoll.errors import InternalError
from atoll.workers.learning import may_learn


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one member brings into the new epoch.

    `committed` is its last committed step, `prepared` the step it is in doubt about. `shown` is the last step that anybody
    committed as far as it knows: above `committed` where all went back to an earlier one. `stopping`, `suspending` and `sums` (the means
    that travelled with the vote, as [weighted sum, weight] by name) belong to the committed step: who is in doubt about
    it has not seen them. `unsettled` are its committed steps, as (step, epoch, attempt), that it could not yet put into
    the account: should all who saw them commit be lost, the others still know of them. `state_bytes` is the size of what
    it holds, `replayable` whether optimizers alone change it, so that it can be learnt. `numeric`: with whom it may compare
    bits (`comparing`).
    """

    rank: int
    has_state: bool
    committed: int = 0
    shown: int = 0
    prepared: int | None = None
    stopping: bool = False
    suspending: bool = False
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    unsettled: tuple[tuple[int, int, int], ...] = ()
    state_bytes: int = 0
    replayable: bool = False
    numeric: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows for all. `fresh` means that nobody holds state: the run begins, from a checkpoint or from rank 0.

    `learn`: those who receive do so while the others train, and from all `teachers`, who hold the newest state.
    """

    step: int
    source: int
    apply: tuple[int, ...] = ()
    discard: tuple[int, ...] = ()
    receive: tuple[int, ...] = ()
    fresh: bool = False
    shown: int = 0
    stopping: bool = False
    suspending: bool = False
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    unsettled: tuple[tuple[int, int, int], ...] = ()
    learn: bool = False
    teachers: tuple[int, ...] = ()


def decide(reports: Sequence[Report]) -> Decision:
    """The conclusion that every member draws from the same reports."""
    holders = [r for r in reports if r.has_state]
    if not holders:
        return Decision(step=0, source=0, receive=tuple(r.rank for r in reports if r.rank != 0), fresh=True)
    step = max(r.committed for r in holders)
    newest = [r for r in holders if r.committed == step]
    apply = tuple(r.rank for r in holders if r.prepared == step and r.committed == step - 1)
    doubtful = tuple(r.rank for r in holders if r.prepared is not None and r.rank not in apply)
    current = {*(r.rank for r in newest), *apply}
    _check(reports, step, doubtful)
    receive = tuple(r.rank for r in reports if r.rank not in current)
    teachers = tuple(r.rank for r in newest)
    size, replayable = max(r.state_bytes for r in newest), all(r.replayable for r in newest)
    return Decision(
        step=step,
        source=min(r.rank for r in newest),
        apply=apply,
        discard=doubtful,
        shown=max(r.shown for r in holders),
        receive=receive,
        learn=may_learn(receive=receive, teachers=teachers, state_bytes=size, replayable=replayable),
        teachers=teachers,
        stopping=any(r.stopping for r in newest),
        suspending=any(r.suspending for r in newest),
        sums=next((r.sums for r in newest if r.sums), {}),
        unsettled=tuple(sorted({one for r in newest for one in r.unsettled})),
    )


def _check(reports: Sequence[Report], step: int, doubtful: Sequence[int]) -> None:
    """In doubt about a step that is not the next one means that a commit was lost: never go on from there."""
    by_rank = {r.rank: r for r in reports}
    wrong = [by_rank[r] for r in doubtful if by_rank[r].prepared != by_rank[r].committed + 1]
    if wrong:
        raise InternalError(f"regroup at step {step}: a member is in doubt about a step it cannot have tried: {wrong}")
