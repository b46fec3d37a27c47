"""What a caller may do, asked before each route by the route itself: the row of `permissions.TABLE` for its template.

The router has chosen the route by then, so that no spelling of a path can lead past its row. Below `operator` a row may ask
whose the run is. What changes something is written into the audit log here, before it is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

from fastapi import Request

from atoll.control_plane.identity import Caller
from atoll.control_plane.permissions import check_owner, check_role, required, submitted_by
from atoll.control_plane.rest_people import People, caller_of, note
from atoll.errors import AuthError, SpecError
from atoll.schema.codec import encode
from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.people import CLUSTER_USER, Role
from atoll.schema.spec import JobSpec, check_spec
from atoll.schema.views import EventView, MetricPoint, RunView

IDEMPOTENCY_HEADER = "Idempotency-Key"
_KEY_CHARS = 200
_HIDDEN = "(hidden)"


class Runs(Protocol):
    """What knows whose a run is, what happened in it, and what it wrote."""

    async def run(self, run: RunId) -> RunView:
        """One run. Raises `NotFoundError`."""
        ...

    async def events(self, run: RunId | None, after: int) -> list[EventView]:
        """Events numbered above `after`."""
        ...

    async def metrics(self, run: RunId, after: int) -> list[MetricPoint]:
        """Committed steps above `after`."""
        ...

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        """A piece of a log."""
        ...


def people_of(request: Request) -> People:
    """Who is who here. Raises `AuthError` where no guard stands before the application."""
    people = request.scope.get("atoll.people")
    if not isinstance(people, People):
        raise AuthError("nobody was let in here: the application has no guard")
    return people


def authorize(runs: Runs) -> Callable[[Request], Awaitable[None]]:
    """A dependency of all routes. Raises `AuthError`, `ForbiddenError`, `NotFoundError`."""

    async def check(request: Request) -> None:
        template = request.scope["route"].path
        permission = required(request.method, template)
        if permission.role is None:
            return
        caller = caller_of(request.scope)
        check_role(caller, permission, f"{request.method} {template}")
        if permission.own and not caller.role.at_least(Role.OPERATOR):
            view = await runs.run(RunId(str(request.path_params["run"])))
            check_owner(caller, owner_of(view), view.run)
        if permission.audited:
            request.scope["atoll.entry"] = await people_of(request).begin(request.scope, caller)

    return check


def owner_of(view: RunView) -> str:
    """Who submitted a run, '' for the cluster itself."""
    return view.spec.owner if view.spec is not None else ""


def shown_to(caller: Caller, view: RunView) -> RunView:
    """`view` with the values of its environment, which may be secrets, for its owner and operators alone."""
    mine = caller.user == (owner_of(view) or CLUSTER_USER)
    if mine or caller.role.at_least(Role.OPERATOR) or view.spec is None or not view.spec.env:
        return view
    hidden = dataclasses.replace(view.spec, env=dict.fromkeys(view.spec.env, _HIDDEN))
    return dataclasses.replace(view, spec=hidden)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShownTo:
    """What a stream reads, as its caller may see it, and no longer than that."""

    runs: Runs
    people: People
    caller: Caller

    async def run(self, run: RunId) -> RunView:
        """One run. Raises `NotFoundError`, and `AuthError` once the caller's token is good no more."""
        return shown_to(self.people.still(self.caller), await self.runs.run(run))

    async def events(self, run: RunId | None, after: int) -> list[EventView]:
        """Events numbered above `after`."""
        return await self.runs.events(run, after)

    async def metrics(self, run: RunId, after: int) -> list[MetricPoint]:
        """Committed steps above `after`."""
        return await self.runs.metrics(run, after)

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        """A piece of a log. Raises `AuthError` as `run` does."""
        self.people.still(self.caller)
        return await self.runs.logs(run, trainer, offset, limit)


async def submission(request: Request, spec: JobSpec) -> JobSpec:
    """`spec` with its owner, and under an Idempotency-Key with the run id that the first such submission was given.

    The control plane answers the same spec under the same run id as it did before. Raises `SpecError`, `ForbiddenError`,
    `KeyReused`.
    """
    people, caller = people_of(request), caller_of(request.scope)
    owned = check_spec(submitted_by(caller, spec, people.queues_of(caller)))
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is not None:
        if not 0 < len(key) <= _KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
            raise SpecError(f"{IDEMPOTENCY_HEADER}: 1 to {_KEY_CHARS} characters of ASCII, without spaces")
        run = spec.run_id or RunId(f"{spec.name}-{secrets.token_hex(3)}")
        kept = await people.run_for(caller, key, hashlib.sha256(encode(owned)).hexdigest(), run)
        owned = dataclasses.replace(owned, run_id=RunId(kept))
    note(request.scope, f"run={owned.run_id or owned.name} queue={owned.queue}")
    return owned
