"""What reading a checkpoint back found, as values: by pack, and within a pack by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFinding:
    """A block whose bytes [begin, end) are not those that were written; `of` names what it holds and its writer."""

    block: int
    begin: int
    end: int
    expected: str
    found: str
    of: str = ""

    def line(self) -> str:
        """For a person."""
        return (
            f"block {self.block} (bytes {self.begin} to {self.end}) has checksum {self.found}, "
            f"{self.expected} was written{self.of}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """One pack: `problem` where it could not be read as a whole, else the blocks that do not verify."""

    file: str
    bytes: int
    checked: int
    problem: str = ""
    findings: tuple[BlockFinding, ...] = ()

    @property
    def ok(self) -> bool:
        """True where every block verified."""
        return not self.problem and not self.findings

    def lines(self) -> list[str]:
        """One for each thing that is wrong."""
        whole = [f"{self.file}: {self.problem}"] if self.problem else []
        return whole + [f"{self.file}: {finding.line()}" for finding in self.findings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One step. `problem` is what is wrong with its commit record; then no pack could be read.

    `newer`: nothing is wrong with it but that a newer build wrote it.
    """

    step: int
    path: Path
    bytes: int
    packs: tuple[PackReport, ...] = ()
    problem: str = ""
    newer: bool = False

    @property
    def ok(self) -> bool:
        """True where the record reads and every block of every pack verified."""
        return not self.problem and all(p.ok for p in self.packs)

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each thing that is wrong."""
        return (*([self.problem] if self.problem else []), *(line for p in self.packs for line in p.lines()))

    def line(self) -> str:
        """One line for a person, and one more for each problem."""
        blocks = sum(p.checked for p in self.packs)
        state = "ok" if self.ok else "NOT READ" if self.newer else "DAMAGED"
        head = (
            f"step {self.step}: {state}, {len(self.packs)} files, {blocks} blocks, {self.bytes / 1e6:.1f} MB, "
            f"{self.path}"
        )
        return "\n".join([head, *(f"  {p}" for p in self.problems)])
