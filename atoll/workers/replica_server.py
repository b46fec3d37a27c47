"""A serving replica: builds the model, fills it from a checkpoint, and answers OpenAI-style requests over HTTP.

It listens on the node's address behind the run's secret; people reach it through the gateway, which checks their tokens.
A wish to stop, or SIGTERM, lets the requests in hand finish (up to `_DRAIN_S`) and takes no new ones. An engine that
cannot go on ends the replica with the reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import nn

from atoll.checkpoint.fs_store import Store
from atoll.clock import SystemClock
from atoll.errors import AtollError, AuthError, CheckpointError, ClusterError, SpecError
from atoll.schema.http_requests import AskerGone, TooLargeError, json_object, read_body, while_there
from atoll.schema.ids import Step
from atoll.schema.messages import ServerReady
from atoll.schema.spec import JobSpec
from atoll.workers.engine import Finish, Output
from atoll.workers.engine import Request as EngineRequest
from atoll.workers.host import Host
from atoll.workers.http_completions import Completion, StopWatch, chunk, parse, problem, usage
from atoll.workers.program_runtime import load_function
from atoll.workers.serving_runtime import EngineThread, warm
from atoll.workers.tokenizer_runtime import Tokenizer, load
from atoll.workers.torch_serving import TorchEngine
from atoll.workers.torch_weights import weights_of

_DRAIN_S = 10
_POLL_S = 0.2
_STATUS = {AuthError.code: 401, SpecError.code: 400, TooLargeError.code: 413, ClusterError.code: 503}
# What servers by custom write down for an asker that is gone; nobody reads it.
_GONE_STATUS = 499


def serve(host: Host) -> None:
    """Serve `spec.model` with the weights of `spec.resume` until asked to stop."""
    spec = host.identity.spec
    if spec.model is None:
        raise SpecError("model is not set: name the function or class of your file that builds the model")
    model = load_function(spec, spec.model)()
    if not isinstance(model, nn.Module):
        raise SpecError(f"model={spec.model!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    engine = TorchEngine(model.to("cuda") if spec.gpus_per_worker > 0 and torch.cuda.is_available() else model)
    step = _fill(engine, spec, model.state_dict().keys())
    tokenizer = load(spec.tokenizer, Path(spec.working_dir))
    warm(engine)
    thread = EngineThread(engine)
    try:
        replica = Replica(thread, tokenizer, spec.name, host.identity.secret.hex())
        with socket.create_server((host.listener.host, 0), backlog=128) as listener:
            _run(replica, listener, host, step)
    finally:
        thread.close()
    if thread.failure is not None:
        raise thread.failure


def _fill(engine: TorchEngine, spec: JobSpec, names: Collection[str]) -> int:
    if spec.resume is None:
        raise CheckpointError("resume is not set: name the checkpoint directory to serve from")
    path = Path(spec.resume)
    number = path.name.removeprefix("step-")
    single = number != path.name and number.isdigit()
    store = Store(path.parent if single else path)
    newest = store.latest()
    step = int(number) if single else newest.step if newest else None
    flat = store.open(step)
    engine.load(weights_of(flat, names))
    return step or 0


def _run(replica: Replica, listener: socket.socket, host: Host, step: int) -> None:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        port = listener.getsockname()[1]
        host.tell(
            ServerReady(
                trainer=host.identity.trainer,
                host=host.listener.host,
                port=port,
                model=replica.model,
                step=Step(step),
            )
        )
        watch = asyncio.create_task(_stop_when_asked(server, host, replica.engine))
        yield
        watch.cancel()

    app = application(replica, lifespan)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_DRAIN_S, lifespan="on", ws="none"
    )
    server = uvicorn.Server(settings)
    server.run(sockets=[listener])


async def _stop_when_asked(server: uvicorn.Server, host: Host, engine: EngineThread) -> None:
    # Both are set by other threads, which know of no event loop.
    while host.mailbox.stop is None and engine.failure is None:  # noqa: ASYNC110 - as said
        await asyncio.sleep(_POLL_S)
    server.should_exit = True


@dataclass(slots=True)
class Replica:
    """What the HTTP side needs. `secret` is what callers must show as bearer."""

    engine: EngineThread
    tokenizer: Tokenizer
    model: str
    secret: str

    async def text_of(
        self, ident: str, index: int, wanted: Completion
    ) -> AsyncGenerator[tuple[str, Finish | None, int], None]:
        """Pieces of one prompt's completion: (text, reason if the last, tokens so far)."""
        request = EngineRequest(id=f"{ident}-{index}", prompt=wanted.prompts[index], sampling=wanted.sampling)
        outputs, decoder, watch = self.engine.submit(request), self.tokenizer.decoder(), StopWatch(wanted.stops)
        count, done = 0, False
        try:
            if wanted.echo:
                yield wanted.texts[index], None, 0
            while not done:
                output = await outputs.get()
                if isinstance(output, AtollError):
                    raise output
                count += output.token is not None
                text, finish = _piece(output, decoder.feed, decoder.flush, watch)
                done = finish is not None
                yield text, finish, count
        finally:
            # Also when the reader went away or a stop string ended it.
            self.engine.abort(request.id)


def _piece(output: Output, feed: Any, flush: Any, watch: StopWatch) -> tuple[str, Finish | None]:
    text = feed(output.token) if output.token is not None else ""
    if output.finish is not None:
        text += flush()
    shown = watch.feed(text)
    if watch.stopped:
        return shown, Finish.STOP
    return (shown + watch.flush(), output.finish) if output.finish else (shown, None)


def application(replica: Replica, lifespan: Any = None) -> FastAPI:
    """The replica's HTTP interface."""
    app = FastAPI(title="Atoll replica", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    clock = SystemClock()

    @app.exception_handler(AtollError)
    async def refuse(_request: Request, error: AtollError) -> Response:
        return JSONResponse(problem(str(error), error.code), status_code=_STATUS.get(error.code, 500))

    @app.get("/health")
    async def health() -> dict[str, str]:
        if replica.engine.failure is not None:
            raise ClusterError(str(replica.engine.failure))
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _check(request, replica.secret)
        return {"object": "list", "data": [{"id": replica.model, "object": "model", "owned_by": "atoll"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        _check(request, replica.secret)
        engine, seed = replica.engine, int.from_bytes(os.urandom(4), "big")
        body = json_object(await read_body(request.stream()))
        wanted = parse(body, replica.tokenizer, seed=seed, context=engine.context, vocab=engine.vocab)
        if engine.failure is not None:
            # Before a stream begins: the gateway can still ask another replica.
            raise ClusterError(str(engine.failure))
        ident, created = f"cmpl-{os.urandom(8).hex()}", int(clock.now())
        try:
            if wanted.stream:
                return await while_there(request.receive, _begun(_stream(replica, ident, created, wanted)))
            return JSONResponse(await while_there(request.receive, _whole(replica, ident, created, wanted)))
        except AskerGone:
            return Response(status_code=_GONE_STATUS)

    return app


def _check(request: Request, secret: str) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    # Hashed, so that the comparison takes text of any kind and says nothing of its length.
    if not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(secret.encode()).digest()):
        raise AuthError("a replica answers its gateway only; ask the cluster's own address with your token")


class _Stream(StreamingResponse):
    """Events, whose source is closed as soon as the asker is gone, not when its memory is collected."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(_chained(first, events), media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _chained(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in events:
        yield event


async def _begun(events: AsyncGenerator[bytes, None]) -> Response:
    """A stream that has something to show. Up to then an error has a status, and the gateway another replica."""
    return _Stream(await anext(events), events)


async def _stream(replica: Replica, ident: str, created: int, wanted: Completion) -> AsyncGenerator[bytes, None]:
    """Events up to [DONE]. An error after the first one is an event, before it is raised."""
    made, begun = 0, False
    try:
        async with aclosing(replica.text_of(ident, 0, wanted)) as pieces:
            async for text, finish, made in pieces:  # noqa: B007 - the last one counts
                if text or finish:
                    begun = True
                    yield _event(chunk(ident, created, replica.model, 0, text, finish))
        if wanted.usage:
            last = chunk(ident, created, replica.model, 0, "", None)
            yield _event({**last, "choices": [], "usage": usage(len(wanted.prompts[0]), made)})
    except AtollError as error:
        if not begun:
            raise
        yield _event(problem(str(error), error.code))
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


async def _whole(replica: Replica, ident: str, created: int, wanted: Completion) -> dict[str, Any]:
    async def one(index: int) -> tuple[str, Finish | None, int]:
        async with aclosing(replica.text_of(ident, index, wanted)) as stream:
            pieces = [piece async for piece in stream]
        return "".join(text for text, _, _ in pieces), pieces[-1][1], pieces[-1][2]

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i)) for i in range(len(wanted.prompts))]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    results = [task.result() for task in tasks]
    answer = chunk(ident, created, replica.model, 0, "", None)
    answer["choices"] = [
        chunk(ident, created, replica.model, i, text, finish)["choices"][0]
        for i, (text, finish, _) in enumerate(results)
    ]
    answer["usage"] = usage(sum(map(len, wanted.prompts)), sum(made for _, _, made in results))
    return answer
