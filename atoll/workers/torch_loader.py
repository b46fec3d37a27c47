"""Hands out the batch of a grain: in this process, or prefetched by loader processes.

A grain's rows are read under generators seeded for that grain, so random augmentation is the same whoever reads it.
Loader processes are spawned (never forked: a trainer has threads) and walk the grains that this rank will need next, as
the present membership shares them. After a regroup or a retry the walk starts anew from what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from atoll.errors import DataError, DeviceError
from atoll.workers.data import Rows, collate
from atoll.workers.samples import Plan
from atoll.workers.torch_grains import Draw, seed_all

# Three batches ahead of each process hide one slow read without holding much memory.
_AHEAD = 3

Spot = tuple[int, int]


class Loader(Protocol):
    """Batches by (step, grain)."""

    def fetch(self, step: int, grain: int) -> tuple[tuple[int, ...], Any]:
        """The rows' ids and the batch."""
        ...

    def restart(self) -> None:
        """The members changed: what was read ahead may not be this rank's any more."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


class LocalLoader:
    """Reads in this process, when asked."""

    def __init__(self, rows: Rows, plan: Plan) -> None:
        self._read, self._plan = _Reader(rows, plan), plan

    def fetch(self, step: int, grain: int) -> tuple[tuple[int, ...], Any]:
        """The rows' ids and the batch."""
        return self._read[(step, grain)]

    def restart(self) -> None:
        """Nothing is read ahead."""

    def close(self) -> None:
        """Nothing to let go of."""


class SpawnedLoader:
    """Reads in `processes` spawned processes, ahead of time.

    `following(spot)` names the grain that this rank computes after `spot`, by the membership of the moment.
    """

    def __init__(self, rows: Rows, plan: Plan, processes: int, following: Callable[[Spot], Spot | None]) -> None:
        self._walk = _Walk(following)
        self._loader: DataLoader[Any] = DataLoader(
            _Reader(rows, plan),
            batch_size=None,
            sampler=self._walk,
            num_workers=processes,
            collate_fn=_unchanged,
            multiprocessing_context="spawn",
            persistent_workers=True,
            prefetch_factor=_AHEAD,
            # The seed that torch draws for its loader must not move the generator of the grain in hand.
            generator=torch.Generator(),
        )
        self._batches: Iterator[Any] | None = None
        self._expected: Spot | None = None
        self._following = following

    def fetch(self, step: int, grain: int) -> tuple[tuple[int, ...], Any]:
        """The rows' ids and the batch."""
        spot = (step, grain)
        if self._batches is None or self._expected != spot:
            self._walk.start = spot
            self._batches = iter(self._loader)
        ids, batch = next(self._batches)
        self._expected = self._following(spot)
        return ids, batch

    def restart(self) -> None:
        """Read ahead anew, from the next grain that is asked for."""
        self._expected = None

    def close(self) -> None:
        """End the loader processes."""
        iterator, self._batches = self._batches, None
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


class _Walk(Sampler[Spot]):
    """The grains from `start` on."""

    def __init__(self, following: Callable[[Spot], Spot | None]) -> None:
        self.start: Spot | None = None
        self._following = following

    def __iter__(self) -> Iterator[Spot]:
        spot = self.start
        while spot is not None:
            yield spot
            spot = self._following(spot)


class _Reader(Dataset[Any]):
    """Row numbers to a batch; lives in the loader process."""

    def __init__(self, rows: Rows, plan: Plan) -> None:
        self._rows, self._plan = rows, plan

    def __getitem__(self, spot: Spot) -> tuple[tuple[int, ...], Any]:
        step, grain = spot
        ids = self._plan.grain(step, grain)
        seed_all(self._plan.seed, step, grain, Draw.DATA)
        return ids, self._batch(ids)

    def _batch(self, ids: tuple[int, ...]) -> Any:
        try:
            batch = collate([self._rows[i] for i in ids])
        except (TypeError, RuntimeError) as error:
            kind = type(self._rows[ids[0]]).__name__
            raise DataError(
                f"rows {list(ids[:4])}... of type {kind} cannot be stacked into a batch: {_first_line(error)}; "
                "return tensors or numbers of one shape from the data set"
            ) from None
        return batch


def check_rows(rows: Rows) -> None:
    """Rows must be CPU tensors: they cross processes and are moved by the program."""
    row = rows[0]
    for tensor in _tensors(row):
        if tensor.device.type != "cpu":
            raise DeviceError(
                f"the data set returns tensors on {tensor.device}; return CPU tensors and move the batch with "
                "batch.to(ctx.device)"
            )


def _tensors(row: Any) -> Iterator[torch.Tensor]:
    if isinstance(row, torch.Tensor):
        yield row
    elif isinstance(row, dict):
        for value in row.values():
            yield from _tensors(value)
    elif isinstance(row, list | tuple):
        for value in row:
            yield from _tensors(value)


def _unchanged(batch: Any) -> Any:
    return batch


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
