"""Which checkpoints stay, by what rule. When it is safe to delete the others is another matter (`fs_retention`)."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from atoll.schema.spec import JobSpec


class Why(enum.StrEnum):
    """Why a step stays, or that nothing keeps it."""

    LAST = "one of the last"
    EVERY = "one in so many"
    YOUNG = "young"
    NOTHING = "nothing keeps it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The last `last` steps stay, and those divisible by `every`, and those younger than `seconds`; 0: none by that."""

    last: int = 3
    every: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last={self.last}: the newest checkpoint always stays, so at least 1")

    @classmethod
    def of(cls, spec: JobSpec) -> Retention:
        """What a job asks for."""
        return cls(last=spec.keep_checkpoints, every=spec.keep_every, seconds=spec.keep_for_s)

    def why(self, steps: Iterable[tuple[int, float]], now: float) -> dict[int, Why]:
        """For each (step, made at), oldest or newest first, why it stays, or that nothing keeps it."""
        ordered = sorted(steps)
        last = {step for step, _ in ordered[-self.last :]}
        return {step: self._why(step, at, now, last) for step, at in ordered}

    def surplus(self, steps: Iterable[tuple[int, float]], now: float) -> list[int]:
        """Those that nothing keeps, oldest first."""
        return [step for step, why in self.why(steps, now).items() if why is Why.NOTHING]

    def _why(self, step: int, at: float, now: float, last: set[int]) -> Why:
        if step in last:
            return Why.LAST
        if self.every and step % self.every == 0:
            return Why.EVERY
        return Why.YOUNG if self.seconds and now - at < self.seconds else Why.NOTHING
