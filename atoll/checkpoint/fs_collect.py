"""What can go from a folder of checkpoints, and letting it go: for a person who asks, outside of any run.

The same law as a run's own retention: nothing goes but behind a newer step of the same run that was just read back whole,
and nothing that someone is reading. Saves that never counted go where a newer step of their run does; where that run goes
on, one that it still waits for goes, too, and does not count then. What a deletion left that was cut off goes at once,
since it is deleted but for its bytes. Damaged steps that were set aside go only where that is asked for: someone may want
to see what is left of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atoll.checkpoint.fs_claims import DAMAGED, clear_debris, debris, discard
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.manifest import run_tag
from atoll.checkpoint.retention import Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """A step of `run` that goes, or (`litter`) files of it that no record names."""

    run: str
    step: int
    path: Path
    bytes: int
    litter: bool

    def line(self) -> str:
        """For a person."""
        what = "left over by a save that never counted" if self.litter else "nothing keeps it"
        return f"step {self.step} of run {self.run}: {self.bytes / 1e6:.1f} MB, {what}, {self.path}"


def doomed(store: Store, rules: Retention, now: float, only: str | None = None) -> list[Doomed]:
    """What would go, of run `only` or of all."""
    steps = store.list()
    found = []
    for run in sorted({s.run for s in steps if only in {None, s.run}}):
        mine = {s.step: s for s in steps if s.run == run}
        surplus = rules.surplus([(s.step, s.at) for s in mine.values()], now)
        found += [
            Doomed(run=run, step=step, path=mine[step].path, bytes=mine[step].bytes, litter=False) for step in surplus
        ]
        for step in sorted({*store.uncommitted_steps(), *mine} - set(surplus)):
            strays = store.strays(step, run) if step < max(mine) else ()
            if strays:
                size = _size(strays)
                found.append(Doomed(run=run, step=step, path=store.step_directory(step), bytes=size, litter=True))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What lies beside the steps: of deletions that were cut off, or (`aside`) a damaged step."""

    path: Path
    bytes: int
    aside: bool

    def line(self) -> str:
        """For a person."""
        what = "damaged, and set aside" if self.aside else "left over by a deletion that was cut off"
        return f"{self.bytes / 1e6:.1f} MB, {what}, {self.path}"


def left(store: Store, only: str | None = None, *, damaged: bool = False) -> list[Left]:
    """What lies beside the steps, of run `only` or of all; of damaged steps where `damaged`."""
    asides = sorted(store.directory.glob(f"{DAMAGED}*")) if damaged else []
    if only is not None:
        asides = [path for path in asides if any(path.glob(f"*-{run_tag(only)}*"))]
    found = [(path, False) for path in debris(store.directory, only)] + [(path, True) for path in asides]
    return [Left(path=path, bytes=_size([path, *_under(path)]), aside=aside) for path, aside in found]


def clear(store: Store, found: Sequence[Left]) -> None:
    """Let it go."""
    for one in found:
        if one.aside:
            discard(one.path)
        else:
            clear_debris(store.directory, one.path)


def collect(store: Store, found: Sequence[Doomed], verify: Callable[[int], str]) -> tuple[list[Doomed], list[str]]:
    """Let it go. What went, and why the rest did not; `verify` reads a step back and says what is wrong with it."""
    went, problems = list[Doomed](), list[str]()
    for run in dict.fromkeys(one.run for one in found):
        newest = max(s.step for s in store.list() if s.run == run)
        damage = verify(newest)
        if damage:
            problems.append(f"step {newest} of run {run} does not read back, older steps stay: {damage}")
            continue
        for one in (each for each in found if each.run == run):
            if one.litter:
                store.sweep(one.step, run)
            elif not store.delete(one.step):
                problems.append(f"step {one.step} of run {run} is being read, and stays")
                continue
            went.append(one)
    return went, problems


def _under(path: Path) -> Iterator[Path]:
    # Not `rglob`, which raises where a folder goes meanwhile.
    return (Path(folder, name) for folder, _, names in os.walk(path) for name in names)


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):  # it is being removed, and all the better
            total += path.stat().st_size if path.is_file() else 0
    return total
