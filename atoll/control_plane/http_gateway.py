"""`/v1/*` on the cluster's own address: finds a replica that serves the asked model and passes the request on.

The user's token is checked before (by the web server's guard); replicas see the run's secret instead. Replicas of one
model take turns. One that cannot be reached, that says it cannot serve, or that is lost is passed over as long as nothing
was answered, of a stream its first piece; one that breaks later ends with an error chunk.

A replica that was declared lost may only have been frozen, or cut off from the control plane, and answer all the same.
Who the replicas of a run are is the control plane's to say, so an answer that took long is held against its list before
it is passed on, and a stream each second: what a fenced replica says is dropped (law 1). With the control plane away
nobody is fenced, and streams go on.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from atoll.errors import AtollError, SpecError
from atoll.schema.http_requests import AskerGone, TooLargeError, json_object, read_body, while_there

Servers = Callable[[], Awaitable[list[dict[str, Any]]]]
# A replica on a busy machine may take this long to its first token; connecting never does.
_TIMEOUT = httpx.Timeout(120.0, connect=2.0)
# Replicas speak plain HTTP behind their secret. Without this each client would read all of the machine's certificates
# (measured: 14 ms of the event loop for each request, against 0.3 ms); it trusts nobody.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_UNAVAILABLE = 503
# What servers by custom write down for an asker that is gone; nobody reads it.
_GONE_STATUS = 499
_STREAM = "text/event-stream"
_FENCED = "it was declared lost while it answered"


# How long a replica may be taken for one of the list without another look, and how long that look may take.
_LOOK_EVERY_S = 1.0
_LOOK_WITHIN_S = 0.5
# Without an answer of the control plane, streams are not held up by asking again soon.
_LOOK_LATER_S = 10.0


class _Standing:
    """Whether `server` still is a replica, as the control plane sees it."""

    def __init__(self, servers: Servers, server: Mapping[str, Any]) -> None:
        self._servers, self._server = servers, server
        self._next = asyncio.get_running_loop().time() + _LOOK_EVERY_S

    async def lost(self) -> bool:
        """True where the control plane says so; looks at most once a second."""
        now = asyncio.get_running_loop().time
        if now() < self._next:
            return False
        try:
            known = await asyncio.wait_for(self._servers(), _LOOK_WITHIN_S)
        except (AtollError, TimeoutError):
            self._next = now() + _LOOK_LATER_S
            return False
        self._next = now() + _LOOK_EVERY_S
        mine = (self._server["run"], self._server["trainer"])
        return mine not in {(s["run"], s["trainer"]) for s in known}


class Unroutable(Exception):
    """No replica for the request; `status` and `code` for the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def candidates(servers: Sequence[Mapping[str, Any]], model: str | None, turn: int) -> list[Mapping[str, Any]]:
    """The replicas to try, in order, `turn` deciding who is first. Raises `Unroutable`."""
    names = sorted({str(s["model"]) for s in servers})
    if not servers:
        raise Unroutable(503, "no-replica", "no model is served; start one with `atoll serve RUN`")
    if model is None and len(names) > 1:
        raise Unroutable(400, "no-model", f"several models are served, name one of {', '.join(names)}")
    found = [s for s in servers if model is None or s["model"] == model]
    if not found:
        raise Unroutable(404, "unknown-model", f"model {model!r} is not served; there are {', '.join(names)}")
    first = turn % len(found)
    return found[first:] + found[:first]


# What refuses before this router does so as the rest of the API does.
_REFUSED: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Not a success",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/ProblemView"},
                        {
                            "type": "object",
                            "required": ["error"],
                            "properties": {
                                "error": {
                                    "type": "object",
                                    "required": ["message", "type", "code"],
                                    "properties": {
                                        "message": {"type": "string"},
                                        "type": {"type": "string"},
                                        "code": {"type": "string"},
                                    },
                                }
                            },
                        },
                    ]
                }
            }
        },
    }
}
_ASKED = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["prompt"],
                    "properties": {
                        "prompt": {"type": "string"},
                        "model": {"type": "string"},
                        "max_tokens": {"type": "integer", "minimum": 1},
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


def gateway(servers: Servers) -> APIRouter:
    """The routes. `servers` gives the replicas that answer now: run, trainer, host, port, model, step, secret."""
    router = APIRouter(tags=["models"], responses=_REFUSED)
    turns = itertools.count()

    @router.get("/v1/models")
    async def models() -> Response:
        """The models that are served, in OpenAI's form."""
        try:
            found = await servers()
        except AtollError as error:
            return _refusal(503, error.code, str(error))
        names = sorted({str(s["model"]) for s in found})
        return JSONResponse(
            {"object": "list", "data": [{"id": n, "object": "model", "owned_by": "atoll"} for n in names]}
        )

    @router.post("/v1/completions", openapi_extra=_ASKED)
    async def completions(request: Request) -> Response:
        """A completion in OpenAI's form; with `stream`, server-sent events."""
        try:
            body = await read_body(request.stream())
            tries = candidates(await servers(), _model_in(body), next(turns))
            return await while_there(request.receive, _forward(tries, body, servers))
        except Unroutable as error:
            return _refusal(error.status, error.code, str(error))
        except TooLargeError as error:
            return _refusal(413, error.code, str(error))
        except AskerGone:
            return Response(status_code=_GONE_STATUS)
        except AtollError as error:
            return _refusal(_UNAVAILABLE, error.code, str(error))

    return router


def _model_in(body: bytes) -> str | None:
    try:
        model = json_object(body).get("model")
    except SpecError as error:
        raise Unroutable(400, "bad-body", str(error)) from None
    if model is not None and not isinstance(model, str):
        raise Unroutable(400, "bad-model", "model: not a text; give the name of a served model")
    return model


async def _forward(tries: Sequence[Mapping[str, Any]], body: bytes, servers: Servers) -> Response:
    client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, verify=_NO_TLS)
    # Closed here, whatever happens, unless a stream goes on and closes it at its end.
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        problems = []
        for server in tries:
            standing = _Standing(servers, server)
            try:
                answer = await client.send(_request(client, server, body), stream=True)
                if answer.status_code == _UNAVAILABLE:
                    problems.append(f"{server['trainer']}: {_message(await answer.aread())}")
                elif answer.headers.get("content-type", "").startswith(_STREAM):
                    stack.push_async_callback(answer.aclose)
                    pieces = answer.aiter_raw()
                    first = await anext(pieces, b"")
                    if not await standing.lost():
                        return _Stream(_pass_on(first, pieces, standing), stack.pop_all())
                    problems.append(f"{server['trainer']}: {_FENCED}")
                else:
                    kind = answer.headers.get("content-type", "application/json")
                    whole = await answer.aread()
                    if not await standing.lost():
                        return Response(whole, status_code=answer.status_code, media_type=kind)
                    problems.append(f"{server['trainer']}: {_FENCED}")
            except httpx.ReadTimeout:
                # It is at work; the next one would take as long, and the work would be done twice.
                raise Unroutable(504, "replica-slow", _slow(server)) from None
            except httpx.TransportError as error:
                problems.append(f"{server['trainer']}: {error or type(error).__name__}")
    raise Unroutable(
        _UNAVAILABLE, "replica-unreachable", f"no replica answers ({'; '.join(problems)}); try again shortly"
    )


def _request(client: httpx.AsyncClient, server: Mapping[str, Any], body: bytes) -> httpx.Request:
    host = f"[{server['host']}]" if ":" in server["host"] else server["host"]
    headers = {"authorization": f"Bearer {server['secret']}", "content-type": "application/json"}
    return client.build_request("POST", f"http://{host}:{server['port']}/v1/completions", content=body, headers=headers)


def _message(body: bytes) -> str:
    try:
        return str(json_object(body)["error"]["message"])
    except (SpecError, KeyError, TypeError):
        return "cannot serve now"


def _slow(server: Mapping[str, Any]) -> str:
    return f"replica {server['trainer']} did not answer within {_TIMEOUT.read:g} s; ask for fewer tokens, or set 'stream': true"


class _Stream(StreamingResponse):
    """A replica's stream. Its connection is closed at the end, also when the asker was gone before the first piece."""

    def __init__(self, pieces: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(pieces, media_type=_STREAM)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _pass_on(first: bytes, rest: AsyncIterator[bytes], standing: _Standing) -> AsyncIterator[bytes]:
    yield first
    try:
        async for piece in rest:
            if await standing.lost():
                yield _broken_off(_FENCED)
                return
            yield piece
    except httpx.TransportError as error:
        yield _broken_off(str(error) or type(error).__name__)


def _broken_off(why: str) -> bytes:
    return f"data: {json.dumps(_problem('replica-lost', f'the replica broke off: {why}; ask again'))}\n\n".encode()


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


def _refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse(_problem(code, message), status_code=status)
