"""Reading the logs of all trainers of a run in turn. Pure: says what to read next and keeps the offsets.

A trainer that is gone stays in the list until its log was read to the end; new ones join as the run's view names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.errors import NotFoundError
from atoll.schema.ids import TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.views import RunView

# 64 KiB a piece: a quick answer from the agent, and few of them for an ordinary log.
LOG_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """Text that one trainer wrote."""

    trainer: TrainerId
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """The next piece to read."""

    trainer: TrainerId
    offset: int


class LogReader:
    """Offsets into the logs of a run's trainers; `see` starts a round, `next` and `take` go through it."""

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._offsets: dict[TrainerId, int] = {}
        self._round: list[TrainerId] = []

    def see(self, view: RunView) -> None:
        """Start a round over the trainers in `view`. Raises `NotFoundError` for a named trainer that never was."""
        names = [t.trainer for t in view.trainers]
        for name in names:
            if self._only in {None, name}:
                self._offsets.setdefault(name, 0)
        if self._only is not None and names and self._only not in self._offsets:
            raise NotFoundError(f"run {view.run} has no trainer {self._only!r}; it has {', '.join(names)}")
        self._round = list(self._offsets)

    def next(self) -> Want | None:
        """What to read next in this round, or None at its end."""
        if not self._round:
            return None
        return Want(trainer=self._round[0], offset=self._offsets[self._round[0]])

    def take(self, want: Want, chunk: LogChunk) -> LogPiece | None:
        """Take the answer; a trainer without news leaves the round."""
        self._offsets[want.trainer] = max(want.offset, chunk.next_offset)
        if chunk.next_offset <= want.offset:
            self._round.remove(want.trainer)
        return LogPiece(trainer=want.trainer, text=chunk.text) if chunk.text else None
