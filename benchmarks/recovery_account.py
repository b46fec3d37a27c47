"""From what trainers wrote down to what a fault cost. Pure, but for `Ledger`.

A step's moment is when the last of its members came back from `optimizer.step`: stamps say when, the account of samples
says in which epoch a step was decided, so a step that was redone counts where it was decided.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from atoll.fault.costs import Commit, Cost, cost
from atoll.workers.account import Account, merge


@dataclass(slots=True, kw_only=True)
class Books:
    """`moments`: of each step, when each process committed it, and `cpu`: its processor time until then, in seconds.

    `epochs`: in which epoch a step was decided; `faults`: moments that victims stamped themselves.
    """

    moments: dict[int, dict[int, float]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    faults: list[float] = field(default_factory=list)
    cpu: dict[int, dict[int, float]] = field(default_factory=dict)

    def stamp(self, pid: int, line: str) -> None:
        """Enter a line of a process's stamps."""
        what, value, at, used = json.loads(line)
        if what == "commit":
            self.moments.setdefault(value, {})[pid] = at
            self.cpu.setdefault(value, {})[pid] = used
        elif what == "fault":
            self.faults.append(at)

    def decide(self, line: str) -> None:
        """Enter a line of an account. Of what is fed `merge` takes care."""
        if line.startswith('{"committed"'):
            plain = json.loads(line)
            step = plain["committed"]
            self.epochs[step] = max(self.epochs.get(step, 0), plain["epoch"])

    def committed(self, step: int) -> float:
        """When the step was committed on all who did."""
        return max(self.moments[step].values())

    def commits(self) -> list[Commit]:
        """All steps that were decided, in their order."""
        return [
            Commit(step=s, at=self.committed(s), epoch=self.epochs[s], members=len(self.moments[s])) for s in self.steps
        ]

    def steps_since(self, moment: float, epoch: int | None = None) -> int:
        """How many steps were committed after this moment, in this epoch or in any."""
        return sum(1 for s in self.steps if epoch in (None, self.epochs[s]) and self.committed(s) > moment)

    @property
    def steps(self) -> list[int]:
        """All that were decided and stamped."""
        return sorted(self.moments.keys() & self.epochs.keys())


def recovery(books: Books, fault: float, *, epoch: int) -> Cost | None:
    """What a fault at this moment cost; None: that is not known yet."""
    return cost(books.commits(), fault, epoch=epoch)


def rate(books: Books, begin: float, end: float) -> float:
    """Steps a second that were committed in [begin, end]."""
    return sum(1 for s in books.steps if begin <= books.committed(s) <= end) / (end - begin)


class Ledger:
    """The books of a run, read on from where they ended the last time."""

    def __init__(self, stamps: Path, account: Path) -> None:
        self._stamps, self._account = stamps, account
        self._ends: dict[Path, int] = {}
        self.books = Books()

    def look(self) -> Books:
        """All that was written until now. A line that is being written is left for the next time."""
        for file in self._stamps.glob("*.jsonl"):
            for line in self._fresh(file):
                self.books.stamp(int(file.stem), line)
        for file in self._account.glob("*.jsonl"):
            for line in self._fresh(file):
                self.books.decide(line)
        return self.books

    def account(self) -> Account:
        """Samples fed and lost until now."""
        lines = [line for file in sorted(self._account.glob("*.jsonl")) for line in whole(file.read_text())]
        return merge(lines)

    def _fresh(self, file: Path) -> list[str]:
        with file.open() as opened:
            opened.seek(self._ends.get(file, 0))
            lines = whole(opened.read())
        self._ends[file] = self._ends.get(file, 0) + sum(map(len, lines))
        return lines


def whole(text: str) -> list[str]:
    """Its lines, without one that has no end yet."""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
