"""Calls about the queue, by name: wishes that become events, and questions answered from the core's state at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atoll.control_plane import events as ev
from atoll.control_plane.desk import Desk
from atoll.control_plane.explain import plan, queues, why
from atoll.control_plane.ledger import goodput
from atoll.errors import NotFoundError
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.ids import RunId
from atoll.schema.queues import Sharing
from atoll.schema.sharing_views import TopView
from atoll.schema.spec import JobSpec

Body = Mapping[str, Any]


def _resize(request: str, body: Body) -> ev.Event:
    return ev.ResizeAsked(
        request=request,
        run=_run(body),
        workers=int(body.get("workers", 0)),
        reason=str(body.get("reason") or "asked to"),
    )


def _suspend(request: str, body: Body) -> ev.Event:
    return ev.SuspendAsked(request=request, run=_run(body), reason=str(body.get("reason") or "asked to"))


def _resume(request: str, body: Body) -> ev.Event:
    return ev.ResumeAsked(request=request, run=_run(body), reason=str(body.get("reason") or "asked to"))


def _set_queues(request: str, body: Body) -> ev.Event:
    sharing = from_plain(Sharing, body.get("sharing"))
    return ev.QueuesAsked(request=request, sharing=sharing, by=str(body.get("by") or "an operator"))


def _run(body: Body) -> RunId:
    return RunId(str(body.get("run")))


def _plan(desk: Desk, body: Body) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(plan(desk, from_plain(JobSpec, body.get("spec"))))
    return plain


def _why(desk: Desk, body: Body) -> dict[str, Any]:
    run = desk.cluster.runs.get(_run(body))
    if run is None:
        raise NotFoundError(f"no run {body.get('run')!r}; `atoll ls` lists all")
    plain: dict[str, Any] = to_plain(why(desk, run))
    return plain


def _top(desk: Desk, body: Body) -> dict[str, Any]:
    del body
    view = TopView(at=desk.now, since=desk.ledger.since, queues=queues(desk), goodput=goodput(desk.ledger))
    plain: dict[str, Any] = to_plain(view)
    return plain


def _queues(desk: Desk, body: Body) -> dict[str, Any]:
    del body
    plain: dict[str, Any] = to_plain(desk.cluster.sharing)
    return plain


WISHES: dict[str, Callable[[str, Body], ev.Event]] = {
    "resize": _resize,
    "suspend": _suspend,
    "resume": _resume,
    "set_queues": _set_queues,
}
QUESTIONS: dict[str, Callable[[Desk, Body], dict[str, Any]]] = {
    "plan": _plan,
    "why": _why,
    "top": _top,
    "queues": _queues,
}
