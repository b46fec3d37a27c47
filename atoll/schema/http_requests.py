"""What both services of completions, the gateway and the replica, need of a request: its body, and its sender's presence.

A body is read up to a limit, not at whatever size it comes. An answer is computed while its asker is there: when the
connection ends, so does the work, and with it the place in the engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from atoll.errors import SpecError

T = TypeVar("T")
# The longest contexts of today as token ids, and some.
BODY_LIMIT = 8 << 20


class TooLargeError(SpecError):
    """A body over the limit."""

    code = "too-large"


class AskerGone(Exception):
    """The connection ended before the answer."""


async def read_body(stream: AsyncIterable[bytes]) -> bytes:
    """The body. Raises `TooLargeError` as soon as it is over the limit."""
    body = bytearray()
    async for piece in stream:
        body += piece
        if len(body) > BODY_LIMIT:
            raise TooLargeError(f"the body is over {BODY_LIMIT} bytes; send fewer prompts at a time")
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `SpecError`."""
    try:
        found = json.loads(body)
    except ValueError as error:
        raise SpecError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise SpecError("the body is JSON nested too deep") from None
    if not isinstance(found, dict):
        raise SpecError(f"the body is no JSON object but of type {type(found).__name__}; send {{'prompt': ...}}")
    return found


async def while_there(receive: Callable[[], Awaitable[Mapping[str, Any]]], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises `AskerGone`, with `work` cancelled, when the asker goes away before it is done.

    `receive` is the request's own, after its body was read: from then on it tells of the end of the connection only.
    """
    task, leaving = asyncio.create_task(work), asyncio.create_task(_leaving(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise AskerGone
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _leaving(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
