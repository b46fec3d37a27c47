"""Server-sent events as both clients read them. Pure: lines in, values out.

`Follower` remembers how far a followed run was read, so that a broken stream is taken up where it stopped: the server
numbers each message `<event seq>.<step>` and starts after both numbers. The stream ends for good with a state that is
final; anything else that ends it is a gap to be bridged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from atoll.errors import SchemaError, by_code
from atoll.schema.codec import decode_as
from atoll.schema.views import EventView, MetricPoint, RunView

FollowItem = EventView | MetricPoint | RunView
I_co = TypeVar("I_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One server-sent event."""

    event: str
    data: str
    id: str


class Parser:
    """Collects the lines of one event; the empty line that ends it gives the `Message`."""

    def __init__(self) -> None:
        self._event = "message"
        self._data: list[str] = []
        self._id = ""

    def feed(self, line: str) -> Message | None:
        """Take one line without its end. Comments (pings) and unknown fields are ignored."""
        if not line:
            return self._flush()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            self._id = value
        return None

    def _flush(self) -> Message | None:
        event, data = self._event, self._data
        self._event, self._data = "message", []
        return Message(event=event, data="\n".join(data), id=self._id) if data else None


class Followed(Protocol[I_co]):
    """A stream that may break: what to ask for next, and what its lines say."""

    @property
    def ended(self) -> bool:
        """Whether all was said."""
        ...

    def reconnect(self) -> dict[str, str | int]:
        """The query of the next connection."""
        ...

    def headers(self) -> dict[str, str]:
        """Its headers."""
        ...

    def feed(self, line: str) -> I_co | None:
        """Take one line; what it completes, or None."""
        ...


class Follower:
    """How far a run was followed, over any number of connections."""

    def __init__(self, after: int, after_step: int) -> None:
        self.after = after
        self.after_step = after_step
        self.ended = False
        self._parser = Parser()

    def reconnect(self) -> dict[str, str | int]:
        """The query of the next connection."""
        self._parser = Parser()
        return {"after": self.after, "after_step": self.after_step}

    def headers(self) -> dict[str, str]:
        """Its headers: the query says it all."""
        return {}

    def feed(self, line: str) -> FollowItem | None:
        """Take one line; what it completes, or None."""
        message = self._parser.feed(line)
        if message is None:
            return None
        match message.event:
            case "event":
                event = decode_as(EventView, message.data)
                self.after = max(self.after, event.seq)
                return event
            case "metric":
                point = decode_as(MetricPoint, message.data)
                self.after_step = max(self.after_step, point.step)
                return point
            case "state":
                view = decode_as(RunView, message.data)
                self.ended = view.state.ended
                return view
            case _:
                return None


class Completion:
    """The text of a streamed completion. `done` is set by the closing `[DONE]`."""

    def __init__(self) -> None:
        self.done = False
        self._parser = Parser()

    def feed(self, line: str) -> str:
        """Take one line; the text it completes, or ''. Raises the error that the stream carries."""
        message = self._parser.feed(line)
        if message is None:
            return ""
        if message.data == "[DONE]":
            self.done = True
            return ""
        return _chunk_text(message.data)


def _chunk_text(data: str) -> str:
    try:
        plain: Any = json.loads(data)
        if "error" in plain:
            error = plain["error"]
            raise by_code(str(error.get("code")))(str(error.get("message")))
        return str(plain["choices"][0]["text"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SchemaError(f"a completion chunk in an unknown form: {data[:80]!r} ({error!r})") from None
