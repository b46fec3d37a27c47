"""Ranks that have met and hold the state, and a folder on the disk that is measured; all of it is gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import checkpoint_ranks as ranks
from benchmarks.checkpoint_state import Shape
from benchmarks.ranks import Crew

RANKS = 4
# One thread of torch a rank, as each stands for a device; set before the forks, so that no pool of threads is inherited.
torch.set_num_threads(1)


class Ground:
    """A crew and its folders: `saves` is emptied between measurements."""

    def __init__(self, crew: Crew, folder: Path) -> None:
        self.crew, self.folder, self.saves = crew, folder, folder / "saves"
        self.saves.mkdir()
        self._step = 0

    def hold(self, shape: Shape, *, size: int = RANKS, values: bool = True) -> None:
        """The first `size` ranks have the state, each its part."""
        self.crew.call(ranks.join, folder=str(self.folder), size=size)
        self.crew.call(ranks.build, shape=shape.plain(), size=size, values=values)

    def lay(self, *, size: int = RANKS) -> list[int]:
        """Those ranks have writers. Bytes of the state on each."""
        found: list[int] = self.crew.call(ranks.lay, folder=str(self.saves), size=size)
        return found

    def save(self, by: str, *, compute_s: float = 0.0, rest_s: float = 0.0, clear: bool = True) -> list[dict[str, Any]]:
        """One save on all ranks; each one's moments. Then what it left is removed, unless `clear` is false."""
        self._step += 1
        found: list[dict[str, Any]] = self.crew.call(
            ranks.save,
            by=by,
            step=self._step,
            folder=str(self.saves),
            compute_s=compute_s,
            rest_s=rest_s,
            limit_s=ranks.SAVE_S,
        )
        if clear:
            self.clear()
        return found

    def write(self, by: str) -> list[dict[str, Any]]:
        """As `save`, from full slabs."""
        self._step += 1
        found: list[dict[str, Any]] = self.crew.call(
            ranks.write, by=by, step=self._step, folder=str(self.saves), limit_s=ranks.SAVE_S
        )
        self.clear()
        return found

    def train(self, *, saves: bool, steps: int, rows: int) -> list[dict[str, Any]]:
        """`steps` real steps on all ranks, with or without a save among them."""
        self._step += 1
        found: list[dict[str, Any]] = self.crew.call(
            ranks.train, saves=saves, steps=steps, step=self._step, rows=rows, limit_s=ranks.SAVE_S
        )
        self.clear()
        return found

    def clear(self) -> None:
        """Have nothing lie there."""
        self.crew.call(ranks.clear, folder=str(self.saves), limit_s=ranks.SAVE_S)


@contextmanager
def ground(place: Path, names: Sequence[str] = tuple(f"rank-{n}" for n in range(RANKS))) -> Iterator[Ground]:
    """Ranks and a folder of their own under `place`."""
    with scratch(place) as folder:
        crew = Crew(names, lambda _: None)
        try:
            yield Ground(crew, folder)
            crew.call(ranks.leave)
        finally:
            crew.close()


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A folder under `place` that is removed."""
    folder = Path(tempfile.mkdtemp(prefix="atoll-checkpoint-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
