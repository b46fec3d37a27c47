"""Reading the logs of all trainers of a run. Pure.

`LogReader` reads what is there, in turn: it says what to read next and keeps the offsets. A trainer that is gone stays in
the list until its log was read to the end. `LogFollower` takes the lines of the server's stream, and knows how to go on
with it where it broke: a message's id says how far each log was read.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll._client_sse import Parser
from atoll.errors import NotFoundError
from atoll.schema.codec import decode_as
from atoll.schema.ids import TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.views import LogPiece, RunView

__all__ = ["LOG_PIECE", "LogFollower", "LogPiece", "LogReader"]

# 64 KiB a piece: a quick answer from the agent, and few of them for an ordinary log.
LOG_PIECE = 1 << 16


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

    def take(self, want: Want, chunk: LogChunk | None) -> LogPiece | None:
        """Take the answer, None where there is no such log; a trainer without news leaves the round."""
        if chunk is None:
            self._round.remove(want.trainer)
            return None
        self._offsets[want.trainer] = max(want.offset, chunk.next_offset)
        if chunk.next_offset <= want.offset:
            self._round.remove(want.trainer)
        piece = LogPiece(trainer=want.trainer, text=chunk.text, offset=want.offset, next_offset=chunk.next_offset)
        return piece if chunk.text else None


class LogFollower:
    """How far logs were followed, over any number of connections."""

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._at = ""
        self._parser = Parser()
        self.ended = False

    def reconnect(self) -> dict[str, str | int]:
        """The query of the next connection."""
        self._parser = Parser()
        return {} if self._only is None else {"trainer": self._only}

    def headers(self) -> dict[str, str]:
        """Its headers."""
        return {"Last-Event-ID": self._at} if self._at else {}

    def feed(self, line: str) -> LogPiece | None:
        """Take one line; the piece of a log that it completes, or None."""
        message = self._parser.feed(line)
        if message is None:
            return None
        self._at = message.id or self._at
        self.ended = message.event == "end"
        return decode_as(LogPiece, message.data) if message.event == "log" else None
