"""The REST interface: one FastAPI application over a `ClusterSource`.

Every route is a thin translation of one call of the source. Bodies go through the schema's codec in both directions, so
that a spec is checked by the same code wherever it comes from; an `AtollError` anywhere becomes a `ProblemView`. The
OpenAPI description is at /api/openapi.json. Who may call at all is decided outside, in `rest_auth`, who may call what
in `permissions`.
"""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import atoll
from atoll.control_plane import rest_logs, rest_stream
from atoll.control_plane.permissions import UNKNOWN, methods_of
from atoll.control_plane.rest_answers import json_response, problem_response
from atoll.control_plane.rest_authorize import ShownTo, authorize, people_of, shown_to, submission
from atoll.control_plane.rest_bodies import (
    MachinesTaken,
    NodeDrained,
    NodeNamed,
    RunHarmed,
    RunNamed,
    answers,
    body,
    decode,
    describe,
    events_of,
    paged,
    read_body,
    text_of,
)
from atoll.control_plane.rest_identity import people_routes
from atoll.control_plane.rest_numbers import LAST
from atoll.control_plane.rest_people import caller_of, note
from atoll.control_plane.rest_sharing import sharing_routes
from atoll.control_plane.rest_source import LOG_LIMIT, PAGE, ClusterSource
from atoll.errors import AtollError, InternalError, NotFoundError, SpecError
from atoll.schema.harm import HarmWish
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.messages import PROTOCOL, Finding, LogChunk
from atoll.schema.offers import Offers, check_offers
from atoll.schema.spec import JobSpec
from atoll.schema.views import (
    CheckpointView,
    DrainWish,
    EventView,
    MetricPoint,
    NodeView,
    ProblemView,
    RunView,
    StopWish,
    TopologyView,
)
from atoll.ui import prometheus

STORY_LIMIT, RUNS_PAGE = 1000, 500
_NOT_ALLOWED = 405

After = Annotated[int, Query(ge=0, le=LAST)]
AfterStep = Annotated[int, Query(ge=-1, le=LAST)]
Limit = Annotated[int, Query(ge=1, le=PAGE)]
Offset = Annotated[int, Query(ge=-LAST, le=LAST)]


def application(source: ClusterSource, on_close: Callable[[], Awaitable[None]] | None = None) -> FastAPI:
    """The application with all routes under /api and /metrics."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if on_close is not None:
            await on_close()

    app = FastAPI(
        title="Atoll",
        version=atoll.__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        dependencies=[Depends(authorize(source))],
        responses={"default": {"model": ProblemView, "description": "Not a success"}},
    )
    app.include_router(_about(source))
    app.include_router(_runs(source))
    app.include_router(_one_run(source))
    app.include_router(_cluster(source))
    app.include_router(sharing_routes(source))
    app.include_router(people_routes())
    _answer_errors(app)
    describe(app)
    return app


def refuse_the_rest(app: FastAPI) -> None:
    """Answer every other path under /api and /v1 with a problem, and not with the dashboard's page for lost people."""
    for path in UNKNOWN:
        app.router.routes.append(Route(path, _Unknown()))


class _Unknown:
    """An endpoint that takes any method, those that nobody has heard of included."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        problem = NotFoundError(f"no {method} {path}; see /api/openapi.json")
        known = methods_of(path)
        answer = problem_response(problem, status=_NOT_ALLOWED if known else None)
        if known:
            answer.headers["Allow"] = ", ".join(known)
        await answer(scope, receive, send)


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(AtollError)
    async def _atoll(_: Request, error: AtollError) -> Response:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem_response(SpecError(f"{where}={first.get('input')!r}: {first['msg']}"), status=422)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        problem = NotFoundError(f"{request.method} {request.url.path}: {error.detail}; see /api/openapi.json")
        answer = problem_response(problem, status=error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        # uvicorn logs the traceback to web.log; nothing of it leaves the host.
        what = type(error).__name__
        return problem_response(InternalError(f"{request.method} {request.url.path} failed ({what}); see web.log"))


def _about(source: ClusterSource) -> APIRouter:
    router = APIRouter(tags=["about"])

    @router.get("/api/health", openapi_extra={"security": []}, **answers(dict[str, bool]))
    async def health() -> Response:
        """This process answers. Needs no token and tells nothing else."""
        return json_response({"ok": True})

    @router.get("/api/version", **answers(dict[str, str | int]))
    async def version() -> Response:
        """Versions of what answers here."""
        return json_response(
            {"atoll": atoll.__version__, "protocol": PROTOCOL, "python": platform.python_version()},
        )

    @router.get("/api/status", **answers(dict[str, Any]))
    async def status() -> Response:
        """The control plane: incarnation, pid and start."""
        return json_response(await source.status())

    @router.get("/metrics", **text_of("the metrics"))
    async def metrics() -> Response:
        """The cluster in Prometheus text format."""
        text = prometheus.render(await source.runs(), await source.nodes(), await source.top())
        return PlainTextResponse(text, media_type=prometheus.CONTENT_TYPE)

    return router


def _runs(source: ClusterSource) -> APIRouter:
    router = APIRouter(prefix="/api/runs", tags=["runs"])

    @router.get("", **answers(list[RunView]))
    async def runs(after: str | None = None, limit: Annotated[int, Query(ge=1, le=RUNS_PAGE)] = RUNS_PAGE) -> Response:
        """Runs, the newest first, without their specs; the page behind the run `after`. `Link` names the next page."""
        return paged(await source.runs(), after, limit)

    @router.post("", openapi_extra=body(JobSpec, keyed=True), **answers(RunNamed, 201))
    async def submit(request: Request) -> Response:
        """Submit a job; answers with its run id."""
        spec = await submission(request, decode(JobSpec, await read_body(request)))
        run = await source.submit(spec)
        note(request.scope, f"run={run} queue={spec.queue}")
        return json_response({"run": run}, status=201)

    @router.get("/{run}", **answers(RunView))
    async def run(run: str, request: Request) -> Response:
        """One run with its spec; the values of its environment only to its owner and to operators."""
        return json_response(shown_to(caller_of(request.scope), await source.run(RunId(run))))

    @router.post("/{run}/stop", openapi_extra=body(StopWish, required=False), **answers(RunNamed, 202))
    async def stop(run: str, request: Request) -> Response:
        """Ask a run to stop at its next step boundary."""
        given = await read_body(request)
        wish = decode(StopWish, given) if given else StopWish()
        await source.stop(RunId(run), wish.reason[:500])
        return json_response({"run": run}, status=202)

    @router.post("/{run}/harm", openapi_extra=body(HarmWish), **answers(RunHarmed, 202))
    async def harm(run: str, request: Request) -> Response:
        """Hurt a trainer on purpose, where the run's spec says chaos; answers with the moment, in Unix seconds."""
        wish = decode(HarmWish, await read_body(request))
        return json_response({"run": run, "at": await source.harm(RunId(run), wish)}, status=202)

    @router.post("/{run}/beat", **answers(RunNamed))
    async def beat(run: str) -> Response:
        """The run's driver lives."""
        await source.beat(RunId(run))
        return json_response({"run": run})

    return router


def _one_run(source: ClusterSource) -> APIRouter:
    router = APIRouter(prefix="/api/runs/{run}", tags=["run"])

    @router.get("/events", **answers(list[EventView]))
    async def events(run: str, after: After = 0, limit: Limit = PAGE) -> Response:
        """Events numbered above `after`, oldest first."""
        found = await source.run(RunId(run))
        return json_response(await source.events(found.run, after, limit))

    @router.get("/metrics", **answers(list[MetricPoint]))
    async def metrics(run: str, after_step: AfterStep = -1, limit: Limit = PAGE) -> Response:
        """Committed steps above `after_step`, oldest first."""
        found = await source.run(RunId(run))
        return json_response(await source.metrics(found.run, after_step, limit))

    @router.get("/stream", **events_of("event", "metric", "state"))
    async def stream(
        run: str,
        request: Request,
        after: After = 0,
        after_step: AfterStep = -1,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Server-sent events: `event`, `metric` and `state`, until the run has ended."""
        found = await source.run(RunId(run))  # here, so that an unknown run is a 404 and no empty stream
        cursor = rest_stream.Cursor.parse(last_event_id, after, after_step)
        shown = ShownTo(runs=source, people=people_of(request), caller=caller_of(request.scope))
        return EventSourceResponse(rest_stream.follow(shown, found.run, cursor), ping=rest_stream.PING_S)

    @router.get("/logs", **answers(LogChunk))
    async def logs(
        run: str, trainer: str, offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=LOG_LIMIT)] = 1 << 16
    ) -> Response:
        """A piece of a trainer's log; a negative `offset` counts from the end."""
        return json_response(await source.logs(RunId(run), TrainerId(trainer), offset, limit))

    @router.get("/logs/stream", **events_of("log", "gap", "end"))
    async def log_stream(
        run: str,
        request: Request,
        trainer: str | None = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Server-sent events: `log`, `gap` and `end`; of all trainers unless one is named, until the run has ended."""
        await rest_logs.check_trainer(source, RunId(run), trainer)
        cursor = rest_logs.LogCursor.parse(last_event_id)
        shown = ShownTo(runs=source, people=people_of(request), caller=caller_of(request.scope))
        told = rest_logs.follow_logs(shown, RunId(run), cursor, trainer)
        return EventSourceResponse(told, ping=rest_stream.PING_S)

    @router.get("/checkpoints", **answers(list[CheckpointView]))
    async def checkpoints(run: str) -> Response:
        """Durable checkpoints, oldest first."""
        return json_response(await source.checkpoints(RunId(run)))

    return router


def _cluster(source: ClusterSource) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["cluster"])

    @router.get("/nodes", **answers(list[NodeView]))
    async def nodes() -> Response:
        """The hosts."""
        return json_response(await source.nodes())

    @router.post("/nodes/{node}/drain", openapi_extra=body(DrainWish, required=False), **answers(NodeDrained, 202))
    async def drain(node: str, request: Request) -> Response:
        """Empty a node within so many seconds (30 unless said); answers with the deadline, in Unix seconds."""
        body = await read_body(request)
        wish = decode(DrainWish, body) if body else DrainWish()
        return json_response({"node": node, "until": await source.drain(NodeId(node), wish)}, status=202)

    @router.post("/nodes/{node}/undrain", **answers(NodeNamed))
    async def undrain(node: str) -> Response:
        """Let trainers be placed on a drained node again."""
        await source.undrain(NodeId(node))
        return json_response({"node": node})

    @router.post("/machines", openapi_extra=body(Offers), **answers(MachinesTaken, 202))
    async def machines(request: Request) -> Response:
        """What an autoscaler would start: for a minute, runs that would fit with these are not refused."""
        taken = await source.offer(check_offers(decode(Offers, await read_body(request))))
        return json_response({"offers": taken}, status=202)

    @router.get("/topology", **answers(TopologyView))
    async def topology() -> Response:
        """The network: NICs, measured links, trunks and islands."""
        return json_response(await source.topology())

    @router.get("/doctor", **answers(list[Finding]))
    async def doctor() -> Response:
        """Checks of every node."""
        return json_response(await source.doctor())

    @router.get("/story", **answers(list[EventView]))
    async def story(subject: str, limit: Annotated[int, Query(ge=1, le=STORY_LIMIT)] = 200) -> Response:
        """The last events about a run, trainer or node, or of one cause."""
        return json_response(await source.story(subject, limit))

    return router
