"""The kinds of failure that can be made on any cluster through agents, as `atoll chaos table` makes them one by one. Pure.

Each is a list of faults with delays. What takes a cable or a whole host to be hurt needs a lab or a person and is not
here: `python -m benchmarks.recovery` has those.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atoll.fault.chaos import Fault
from atoll.fault.costs import Cost
from atoll.schema.harm import Harm
from atoll.schema.views import EventView

# A death at a place waits for the step to come there; what follows it must not come before it is armed.
_ARMED_S = 0.5
# Longer than any detector takes; whoever is stopped is fenced long before.
_STOPPED_S = 60.0
LOSSES = ("lost", "evicted", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row. `verdict`: what the story has to say of the loss; `loses`: whether members change at all.

    `workers`: how many a run must have at least, to bear it.
    """

    name: str
    faults: tuple[Fault, ...]
    verdict: str = "killed by SIGKILL"
    loses: bool = True
    workers: int = 1


def _at(what: Harm, whom: str, at_s: float = 0.0, *, place: str = "", for_s: float = 0.0) -> Fault:
    return Fault(what=what, whom=whom, at_s=at_s, at=place, for_s=for_s)


def _dies(place: str, whom: str = "others") -> tuple[Fault, ...]:
    return (_at(Harm.DIE, whom, place=place),)


KINDS: tuple[Kind, ...] = (
    Kind(name="worker SIGKILL", faults=(_at(Harm.KILL, "others"),)),
    Kind(name="rank 0 SIGKILL", faults=(_at(Harm.KILL, "rank 0"),)),
    Kind(name="worker SIGSTOP", faults=(_at(Harm.STOP, "others", for_s=_STOPPED_S),), verdict="hung"),
    Kind(name="GIL held forever", faults=(_at(Harm.GIL, "others"),), verdict="hung"),
    Kind(name="bit flipped in a replica", faults=(_at(Harm.FLIP, "others"),), verdict="corrupt", workers=3),
    Kind(name="two at once", faults=(_at(Harm.KILL, "rank 0"), _at(Harm.KILL, "rank 1"))),
    Kind(name="death before the vote", faults=_dies("before-vote")),
    Kind(name="death after the vote", faults=_dies("after-vote")),
    Kind(name="death inside the update", faults=_dies("in-update")),
    Kind(
        name="failure during recovery",
        faults=(_at(Harm.DIE, "rank 1", place="in-regroup"), _at(Harm.KILL, "rank 0", _ARMED_S)),
    ),
    Kind(
        name="failure while state is handed over",
        faults=(_at(Harm.DIE, "rank 0", place="in-transfer"), _at(Harm.KILL, "rank 1", _ARMED_S)),
    ),
    Kind(name="agent SIGKILL", faults=(_at(Harm.AGENT, "others"),), verdict="", loses=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one kind cost. `seconds`: of each trial that recovered; `wrong`: losses of trainers that nobody hurt."""

    kind: str
    trials: int
    seconds: tuple[float, ...]
    right: int
    wrong: int

    @property
    def median(self) -> float | None:
        """Of those that recovered; None where none did."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def worst(self) -> float | None:
        """As above."""
        return max(self.seconds, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fault of a kind: its cost (None: not in time, or nothing to recover from), and what the story said."""

    cost: Cost | None
    pause_s: float
    right: bool
    wrong: int


def judged(kind: Kind, hurt: set[str], told: Iterable[EventView]) -> tuple[bool, int]:
    """Whether the loss was seen for what it was, and how many others were condemned."""
    losses = [(e.subject, e.text) for e in told if e.kind in LOSSES]
    of_hurt = [text for subject, text in losses if subject in hurt]
    right = not of_hurt if not kind.loses else any(re.search(kind.verdict, text) for text in of_hurt)
    return right, sum(1 for subject, _ in losses if subject not in hurt)


def row(kind: Kind, trials: Sequence[Trial]) -> Row:
    """The trials of a kind in one line; a kind that loses nobody costs the longest pause instead."""
    if kind.loses:
        seconds = tuple(t.cost.seconds for t in trials if t.cost is not None)
    else:
        seconds = tuple(t.pause_s for t in trials)
    return Row(
        kind=kind.name,
        trials=len(trials),
        seconds=seconds,
        right=sum(t.right for t in trials),
        wrong=sum(t.wrong for t in trials),
    )
