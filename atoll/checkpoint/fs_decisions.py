"""Which commit record of a step counts in a store that can decide nothing itself (law 8).

Object stores have no exclusive creation that all of them agree on, so the decision is made elsewhere, once: in a session by
the control plane (`atoll.workers.decisions_runtime`), and here by a file that is linked into the run's own folder of
checkpoints, which fails where it exists. The order is what makes it
safe: files, decision, record, word to others. So a record that lies in the store was decided on at some time; where the
decisions are lost with the disk they lay on, a lone record counts, and of two none does. What was withdrawn (its step is
damaged, or is being deleted) never counts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from atoll.checkpoint.fs_files import make_directory, publish
from atoll.checkpoint.manifest import run_tag


class Decisions(Protocol):
    """Who keeps the decisions of one run."""

    def decide(self, step: int, record: str) -> str:
        """The record of `step` that counts: `record`, or one that was decided on before. Durable when it returns."""

    def decided(self, step: int) -> str:
        """The record of `step` that counts; empty where none was decided on."""

    def steps(self) -> frozenset[int]:
        """Steps of which a record was decided on."""

    def withdrawn(self, step: int) -> frozenset[str]:
        """Records of `step` that will never count."""

    def withdraw(self, step: int, record: str) -> None:
        """Have `record` never count again; another may be decided on."""


class LinkDecisions:
    """Kept in a POSIX folder that all who may decide see.

    The decisions on a step are numbered files, each linked once; the one that stands is not withdrawn. So nothing is ever
    replaced, and whoever withdraws races with nobody.
    """

    def __init__(self, directory: Path, *, run: str) -> None:
        self._directory = directory / f"remote-{run_tag(run)}"

    def decide(self, step: int, record: str) -> str:
        """As `Decisions`."""
        make_directory(self._directory)
        while True:
            # Counted before it is looked at: whoever decides meanwhile takes this number, so that only one of two can.
            number = len(list(self._directory.glob(f"step-{step:08d}.decision-*")))
            found = self.decided(step)
            if found or record in self.withdrawn(step):
                return found
            publish(self._directory / f"step-{step:08d}.decision-{number}", record.encode())

    def decided(self, step: int) -> str:
        """As `Decisions`."""
        made = sorted(self._directory.glob(f"step-{step:08d}.decision-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        gone = self.withdrawn(step)
        # The lowest number that stands, so that all who look see the same.
        return next((name for name in (p.read_text() for p in made) if name not in gone), "")

    def steps(self) -> frozenset[int]:
        """As `Decisions`."""
        names = (p.name.partition(".")[0] for p in self._directory.glob("step-*.decision-*"))
        return frozenset(int(name.removeprefix("step-")) for name in names)

    def withdrawn(self, step: int) -> frozenset[str]:
        """As `Decisions`."""
        prefix = f"step-{step:08d}.withdrawn-"
        return frozenset(p.name.removeprefix(prefix) for p in self._directory.glob(f"{prefix}*"))

    def withdraw(self, step: int, record: str) -> None:
        """As `Decisions`."""
        make_directory(self._directory)
        publish(self._directory / f"step-{step:08d}.withdrawn-{record}", b"")


def counting(decisions: Decisions, step: int, there: Sequence[str]) -> tuple[str, str]:
    """Which of the records in the store counts, and what is wrong where none does; both empty: there is none."""
    standing = sorted(set(there) - decisions.withdrawn(step))
    decided = decisions.decided(step)
    if decided:
        return (decided, "") if decided in standing else ("", "")
    if len(standing) > 1:
        return "", f"step {step} has {len(standing)} records, and nobody knows which one was decided on"
    return (standing[0] if standing else ""), ""
