"""A job to simulate: when it comes, how many workers it may have, what it computes, and how much of that there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.schema.ids import RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a job computes. `speeds`: samples/s of one worker alone by device type; `sync_bytes`: added up at each step.

    `batch` is what each of the workers that were asked for computes in a step. The sum over them is the job's batch,
    which stays the same whatever it runs on.
    """

    name: str
    batch: float
    speeds: Mapping[str, float]
    sync_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job: `samples` of `model`, on `workers` as its user asked; `sizes` are all numbers of workers that are legal."""

    id: RunId
    submitted_s: float
    model: Model
    samples: float
    workers: int
    sizes: tuple[int, ...]
    queue: str = "default"
    user: str = ""
    priority: int = 50

    @property
    def batch(self) -> float:
        """Samples of one step over all workers."""
        return self.model.batch * self.workers

    @property
    def elastic(self) -> bool:
        """Whether it may have another number of workers than was asked for."""
        return len(self.sizes) > 1
