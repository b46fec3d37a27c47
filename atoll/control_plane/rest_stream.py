"""A followed run as server-sent events.

Three event types: `event` (a line of the story), `metric` (a committed step), `state` (the run as a whole, whenever
anything but its step changed). Each message's id is `<event seq>.<step>`: with it, or with `after` and `after_step`, a
reader that lost its connection goes on without loss or repetition. The run is read before its events and steps: what
made it final is then among them, and the final `state` comes last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
from collections.abc import AsyncIterator
from typing import Any, Protocol

from sse_starlette import ServerSentEvent

from atoll.control_plane.rest_numbers import is_place
from atoll.schema.codec import encode
from atoll.schema.ids import RunId, Step
from atoll.schema.views import EventView, MetricPoint, RunView

# People see four updates a second as live; a reader costs a few small SQLite queries each.
POLL_S = 0.25
PING_S = 5


class Followed(Protocol):
    """What a stream reads."""

    async def run(self, run: RunId) -> RunView:
        """One run."""
        ...

    async def events(self, run: RunId | None, after: int) -> list[EventView]:
        """Events numbered above `after`."""
        ...

    async def metrics(self, run: RunId, after: int) -> list[MetricPoint]:
        """Committed steps above `after`."""
        ...


@dataclasses.dataclass(slots=True, kw_only=True)
class Cursor:
    """How far a reader has got."""

    after: int = 0
    after_step: int = -1

    @classmethod
    def parse(cls, last_event_id: str | None, after: int, after_step: int) -> Cursor:
        """The later of the query's numbers and a browser's Last-Event-ID, which may be anything."""
        seq, _, step = (last_event_id or "").partition(".")
        if is_place(seq) and is_place(step.removeprefix("-")):
            return cls(after=max(after, int(seq)), after_step=max(after_step, int(step)))
        return cls(after=after, after_step=after_step)

    def take(self, item: EventView | MetricPoint) -> None:
        """Move past `item`."""
        if isinstance(item, EventView):
            self.after = max(self.after, item.seq)
        else:
            self.after_step = max(self.after_step, item.step)

    def message(self, kind: str, value: Any) -> ServerSentEvent:
        """`value` as a message that carries this position."""
        return ServerSentEvent(encode(value).decode(), event=kind, id=f"{self.after}.{self.after_step}")


async def follow(
    source: Followed, run: RunId, cursor: Cursor, poll_s: float = POLL_S
) -> AsyncIterator[ServerSentEvent]:
    """Messages about `run` from `cursor` on, until it has ended and all was said."""
    shown: RunView | None = None
    while True:
        view = await source.run(run)
        async for message in _news(source, run, cursor):
            yield message
        if shown is None or _outline(view) != _outline(shown):
            yield cursor.message("state", view)
            shown = view
        if view.state.ended:
            return
        await asyncio.sleep(poll_s)


async def _news(source: Followed, run: RunId, cursor: Cursor) -> AsyncIterator[ServerSentEvent]:
    """All that came since `cursor`, in the order of time. Pages are read until one brings nothing new."""
    while True:
        events = await source.events(run, cursor.after)
        points = await source.metrics(run, cursor.after_step)
        if not events and not points:
            return
        # A merge and no sort: each kind keeps the order of its numbers, by which a reader resumes.
        both: list[list[EventView | MetricPoint]] = [[*events], [*points]]
        for item in heapq.merge(*both, key=_time):
            cursor.take(item)
            yield cursor.message("event" if isinstance(item, EventView) else "metric", item)


def _time(item: EventView | MetricPoint) -> float:
    return item.at


def _outline(view: RunView) -> RunView:
    """`view` without what each step changes, which `metric` messages tell already."""
    return dataclasses.replace(view, step=Step(0), last=None)
