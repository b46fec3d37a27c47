"""`/v1/*` on the cluster's own address: finds a replica that serves the asked model and passes the request on.

The user's token is checked before (by the web server's guard); replicas see the run's secret instead. Replicas of one
model take turns. One that cannot be reached is passed over as long as nothing was answered; a stream that breaks later
ends with an error chunk.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from atoll.errors import AtollError

Servers = Callable[[], Awaitable[list[dict[str, Any]]]]
# A replica on a busy machine may take this long to its first token; connecting never does.
_TIMEOUT = httpx.Timeout(120.0, connect=2.0)


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


def gateway(servers: Servers) -> APIRouter:
    """The routes. `servers` gives the replicas that answer now: run, trainer, host, port, model, step, secret."""
    router = APIRouter()
    turns = itertools.count()

    @router.get("/v1/models")
    async def models() -> Response:
        try:
            found = await servers()
        except AtollError as error:
            return _refusal(503, error.code, str(error))
        names = sorted({str(s["model"]) for s in found})
        return JSONResponse(
            {"object": "list", "data": [{"id": n, "object": "model", "owned_by": "atoll"} for n in names]}
        )

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await request.body()
        try:
            tries = candidates(await servers(), _model_in(body), next(turns))
            return await _forward(tries, body)
        except Unroutable as error:
            return _refusal(error.status, error.code, str(error))
        except AtollError as error:
            return _refusal(503, error.code, str(error))

    return router


def _model_in(body: bytes) -> str | None:
    try:
        model = json.loads(body).get("model")
    except (ValueError, AttributeError) as error:
        raise Unroutable(400, "bad-body", f"the body is no JSON object: {error}") from None
    if model is not None and not isinstance(model, str):
        raise Unroutable(400, "bad-model", f"model={model!r}: a name")
    return model


async def _forward(tries: Sequence[Mapping[str, Any]], body: bytes) -> Response:
    client, problems = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False), []
    for server in tries:
        headers = {"authorization": f"Bearer {server['secret']}", "content-type": "application/json"}
        url = f"http://{server['host']}:{server['port']}/v1/completions"
        try:
            answer = await client.send(client.build_request("POST", url, content=body, headers=headers), stream=True)
        except httpx.TransportError as error:
            problems.append(f"{server['trainer']}: {error or type(error).__name__}")
            continue
        kind = answer.headers.get("content-type", "application/json")
        return StreamingResponse(_pass_on(client, answer), status_code=answer.status_code, media_type=kind)
    await client.aclose()
    raise Unroutable(503, "replica-unreachable", f"no replica answers ({'; '.join(problems)}); try again shortly")


async def _pass_on(client: httpx.AsyncClient, answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TransportError as error:
        text = f"the replica broke off: {error or type(error).__name__}; ask again"
        yield f"data: {json.dumps(_problem('replica-lost', text))}\n\n".encode()
    finally:
        await answer.aclose()
        await client.aclose()


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


def _refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse(_problem(code, message), status_code=status)
