"""From what a peer's workers stamped to what a fault cost. Pure, but for `read`.

As for Atoll: from the fault to the first step that a membership formed after it has committed on all its members, less
one undisturbed step of that membership. A step that the old members still bring to its end is no recovery.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recovery_account import whole

# Gaps between steps of the new membership, of which the first still has connections to warm up.
_LEAST_GAPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker's process, beyond doubt."""

    host: str
    pid: int
    ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """`member` committed `step` at `at`, in membership `group`, which stands since `began` as it saw it."""

    member: Member
    step: int
    at: float
    began: float
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a fault cost. `redone`: steps that had been committed and were computed once more."""

    raw_s: float
    step_s: float
    members: int
    redone: int

    @property
    def seconds(self) -> float:
        return self.raw_s - self.step_s


def cost(stamps: Iterable[Stamp], fault: float, victim: Member) -> Cost | None:
    """None: no membership formed after `fault` and without the victim has committed enough steps yet."""
    stamps = list(stamps)
    # One that regrouped by chance while the fault came about still counts on the victim.
    its = {s.group for s in stamps if s.member == victim}
    fresh = [s for s in stamps if s.began > fault and s.group not in its]
    moments = _moments(fresh)
    steps = sorted(moments)
    gaps = [moments[b] - moments[a] for a, b in itertools.pairwise(steps)]
    if len(gaps) < _LEAST_GAPS:
        return None
    first = steps[0]
    # What an earlier membership had committed before it went back to a checkpoint was counted then.
    since = max((s.began for s in stamps if s.member == victim), default=0.0)
    before = max((s.step for s in stamps if s.began <= fault and s.at >= since), default=first - 1)
    return Cost(
        raw_s=moments[first] - fault,
        step_s=statistics.median(gaps[1:]),
        members=len({s.member for s in fresh if s.step == first and s.at <= moments[first]}),
        redone=max(0, before - first + 1),
    )


def _moments(fresh: list[Stamp]) -> dict[int, float]:
    """When each step was committed by the last of its members: before anybody had committed the next one."""
    by_step: dict[int, list[float]] = {}
    for stamp in fresh:
        by_step.setdefault(stamp.step, []).append(stamp.at)
    ends = {step: min(by_step.get(step + 1, [float("inf")])) for step in by_step}
    return {step: max([at for at in found if at < ends[step]] or [min(found)]) for step, found in by_step.items()}


def members_since(stamps: Iterable[Stamp], moment: float, steps: int, *, together: bool = True) -> set[Member]:
    """Those who have committed this many steps since then; `together`: all of them in their newest membership."""
    found: dict[Member, list[Stamp]] = {}
    for stamp in stamps:
        found.setdefault(stamp.member, []).append(stamp)
    return {
        member
        for member, mine in found.items()
        if sum(s.at > moment and (not together or s.group == mine[-1].group) for s in mine) >= steps
    }


def read(folder: Path) -> list[Stamp]:
    """All that was stamped until now, without a line that is being written."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        member = member_of(file)
        for line in whole(file.read_text()):
            step, at, began, group = json.loads(line)
            found.append(Stamp(member=member, step=step, at=at, began=began, group=group))
    return found


def member_of(file: Path) -> Member:
    """Whose stamps these are."""
    host, pid, ticks = file.stem.rsplit("-", 2)
    return Member(host=host, pid=int(pid), ticks=int(ticks))
