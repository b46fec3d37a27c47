"""What the trainers of a run write, followed as server-sent events.

Three event types: `log` (a piece of one trainer's log), `gap` (a log that cannot be read now, and why, said once for each
reason), `end` (the run has ended and all was read). A message's id names how far each log was read, so that a reader that
lost its connection goes on behind it. Trainers join as the run's view names them; one that is gone stays until its log was
read to the end. The run is looked at before its logs: what was written before it ended is among them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from sse_starlette import ServerSentEvent

from atoll.control_plane.rest_numbers import is_place
from atoll.control_plane.rest_source import LOG_LIMIT
from atoll.errors import AtollError, AuthError, NotFoundError
from atoll.schema.codec import encode
from atoll.schema.ids import RunId, TrainerId, is_safe_name
from atoll.schema.messages import LogChunk
from atoll.schema.views import LogGap, LogPiece, RunView

# Each look is a question to an agent for each trainer.
POLL_S = 0.5


class Logged(Protocol):
    """What such a stream reads."""

    async def run(self, run: RunId) -> RunView:
        """One run."""
        ...

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        """A piece of a log."""
        ...


@dataclass(slots=True, kw_only=True)
class LogCursor:
    """How far each trainer's log was read, and what was said of those that cannot be."""

    offsets: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> LogCursor:
        """The cursor in a Last-Event-ID, which may be anything: what is no `trainer:offset` is passed over."""
        parts = [part.rpartition(":") for part in (text or "").split(",")]
        return cls(offsets={name: int(at) for name, _, at in parts if is_safe_name(name) and is_place(at)})

    def message(self, kind: str, value: object) -> ServerSentEvent:
        """`value` as a message that carries this position."""
        at = ",".join(f"{name}:{offset}" for name, offset in self.offsets.items())
        return ServerSentEvent(encode(value).decode(), event=kind, id=at)


async def follow_logs(
    source: Logged, run: RunId, cursor: LogCursor, only: str | None, poll_s: float = POLL_S
) -> AsyncIterator[ServerSentEvent]:
    """What the trainers of `run` wrote from `cursor` on (of `only` one where named), until it has ended."""
    while True:
        view = await source.run(run)
        for trainer in view.trainers:
            if only in {None, trainer.trainer}:
                cursor.offsets.setdefault(trainer.trainer, 0)
        for name in [name for name in cursor.offsets if only in {None, name}]:
            async for message in _read(source, run, name, cursor):
                yield message
        if view.state.ended:
            yield cursor.message("end", {"run": run, "state": view.state})
            return
        await asyncio.sleep(poll_s)


async def _read(source: Logged, run: RunId, name: str, cursor: LogCursor) -> AsyncIterator[ServerSentEvent]:
    while True:
        offset = cursor.offsets[name]
        try:
            chunk = await source.logs(run, TrainerId(name), offset, LOG_LIMIT)
        except AuthError:
            raise
        except AtollError as error:  # its agent is away, or has no such log: the others are read all the same
            if cursor.gaps.get(name) != error.code:
                cursor.gaps[name] = error.code
                yield cursor.message("gap", LogGap(trainer=TrainerId(name), code=error.code, problem=str(error)))
            return
        cursor.gaps.pop(name, None)
        if chunk.next_offset <= offset:
            return
        cursor.offsets[name] = chunk.next_offset
        piece = LogPiece(trainer=TrainerId(name), offset=offset, next_offset=chunk.next_offset, text=chunk.text)
        yield cursor.message("log", piece)


async def check_trainer(source: Logged, run: RunId, only: str | None) -> None:
    """Raises `NotFoundError` where the run has trainers and none of this name."""
    names = [trainer.trainer for trainer in (await source.run(run)).trainers]
    if only is not None and names and only not in names:
        raise NotFoundError(f"run {run} has no trainer {only!r}; it has {', '.join(names)}")
