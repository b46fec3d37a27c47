"""REST routes about the queue: what would become of a job, why a run waits, who has what, and how it is shared.

Questions are answered by the control plane itself, from the very state that its next decision rests upon.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from atoll.control_plane.rest_answers import json_response
from atoll.control_plane.rest_bodies import RunNamed, answers, body, decode, read_body
from atoll.control_plane.rest_people import caller_of
from atoll.control_plane.rest_source import ClusterSource
from atoll.errors import NotFoundError
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.ids import RunId, is_safe_name
from atoll.schema.queues import Sharing, check_sharing
from atoll.schema.sharing_views import PlanView, ResizeWish, TopView, WhyView
from atoll.schema.spec import JobSpec, check_spec
from atoll.schema.views import StopWish

T = TypeVar("T")

# A reason is one line of the story.
_REASON_CHARS = 500


def sharing_routes(source: ClusterSource) -> APIRouter:
    """All of them."""
    router = APIRouter(prefix="/api", tags=["queue"])
    _questions(router, source)
    _wishes(router, source)
    return router


def _questions(router: APIRouter, source: ClusterSource) -> None:
    @router.post("/plan", openapi_extra=body(JobSpec), **answers(PlanView))
    async def plan(request: Request) -> Response:
        """What would become of a job if it were submitted now. Nothing is carried out."""
        spec = check_spec(decode(JobSpec, await read_body(request)))
        return json_response(await _asked(source, PlanView, "plan", {"spec": to_plain(spec)}))

    @router.get("/runs/{run}/why", **answers(WhyView))
    async def why(run: str) -> Response:
        """Why a run waits, or stands as it does."""
        return json_response(await _asked(source, WhyView, "why", {"run": await _known(source, run)}))

    @router.get("/top", **answers(TopView))
    async def top() -> Response:
        """Queues and shares now, and what the devices were used for."""
        return json_response(await _asked(source, TopView, "top", {}))

    @router.get("/queues", **answers(Sharing))
    async def queues() -> Response:
        """How the cluster is shared: flavors, queues, quotas."""
        return json_response(await _asked(source, Sharing, "queues", {}))


def _wishes(router: APIRouter, source: ClusterSource) -> None:
    @router.put("/queues", openapi_extra=body(Sharing), **answers(Sharing))
    async def set_queues(request: Request) -> Response:
        """Share the cluster so from now on. What runs goes on; who may yield for whom follows from it."""
        sharing = check_sharing(decode(Sharing, await read_body(request)))
        by = caller_of(request.scope).user
        await source.ask("set_queues", {"sharing": to_plain(sharing), "by": by})
        return json_response(sharing)

    @router.post("/runs/{run}/resize", openapi_extra=body(ResizeWish), **answers(RunNamed, 202))
    async def resize(run: str, request: Request) -> Response:
        """Have an elastic run go on with so many workers, and with no more."""
        wish = decode(ResizeWish, await read_body(request))
        told = {"run": await _known(source, run), "workers": wish.workers, "reason": wish.reason[:_REASON_CHARS]}
        await source.ask("resize", told)
        return json_response(RunNamed(run=run), status=202)

    @router.post("/runs/{run}/suspend", openapi_extra=body(StopWish, required=False), **answers(RunNamed, 202))
    async def suspend(run: str, request: Request) -> Response:
        """Have a run save, leave its seats and wait until it is resumed."""
        await source.ask("suspend", {"run": await _known(source, run), "reason": await _reason(request)})
        return json_response(RunNamed(run=run), status=202)

    @router.post("/runs/{run}/resume", openapi_extra=body(StopWish, required=False), **answers(RunNamed, 202))
    async def resume(run: str, request: Request) -> Response:
        """Let a run that was suspended wait for seats again."""
        await source.ask("resume", {"run": await _known(source, run), "reason": await _reason(request)})
        return json_response(RunNamed(run=run), status=202)


async def _asked(source: ClusterSource, cls: type[T], method: str, told: dict[str, Any]) -> T:
    return from_plain(cls, await source.ask(method, told))


async def _known(source: ClusterSource, run: str) -> RunId:
    if not is_safe_name(run):
        raise NotFoundError(f"no run {run!r}; `atoll ls` lists the runs of this cluster")
    return (await source.run(RunId(run))).run


async def _reason(request: Request) -> str:
    given = await read_body(request)
    wish = decode(StopWish, given) if given else StopWish()
    return wish.reason[:_REASON_CHARS]
