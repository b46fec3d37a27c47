"""The routes of people: who am I, users and their tokens, teams, and the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from atoll.control_plane.rest_answers import json_response
from atoll.control_plane.rest_authorize import people_of
from atoll.control_plane.rest_bodies import NAME, answers, body, decode, read_body
from atoll.control_plane.rest_numbers import LAST
from atoll.control_plane.rest_people import MOST_DAYS, caller_of, note
from atoll.schema.people import (
    AuditLine,
    CallerView,
    RevokeWish,
    RotateWish,
    TeamView,
    TeamWish,
    TokenGiven,
    UserView,
    UserWish,
)

AUDIT_PAGE = 1000
_DAYS = {"exclusiveMinimum": 0, "maximum": MOST_DAYS}
_GRACE = {"minimum": 0, "maximum": MOST_DAYS * 86_400}
_QUEUES = {"queues": {"items": {"type": "string"} | NAME}}


def people_routes() -> APIRouter:
    """All of them. Who may call them is in `permissions`."""
    router = APIRouter(prefix="/api", tags=["people"])
    _add_users(router)
    _add_teams(router)

    @router.get("/me", **answers(CallerView))
    async def me(request: Request) -> Response:
        """Who the asker is taken for; to a page, also what it has to send back as X-Atoll-CSRF."""
        return json_response(people_of(request).view(caller_of(request.scope)))

    @router.get("/audit", **answers(list[AuditLine]))
    async def audit(
        request: Request,
        before: Annotated[int, Query(ge=0, le=LAST)] = 0,
        limit: Annotated[int, Query(ge=1, le=AUDIT_PAGE)] = 200,
        user: str | None = None,
    ) -> Response:
        """Who asked for what, newest first: lines numbered below `before`, 0 for the last ones."""
        return json_response(await people_of(request).audit(before, limit, user))

    return router


def _add_users(router: APIRouter) -> None:
    @router.get("/users", **answers(list[UserView]))
    async def users(request: Request) -> Response:
        """All users and the ids of their tokens."""
        return json_response(people_of(request).users())

    @router.post(
        "/users", openapi_extra=body(UserWish, limits={"name": NAME, "days": _DAYS}), **answers(TokenGiven, 201)
    )
    async def add(request: Request) -> Response:
        """Add a user; answers with the first token, which is shown this once."""
        wish = decode(UserWish, await read_body(request))
        given = await people_of(request).add(wish)
        note(request.scope, f"user={wish.name} role={wish.role} team={wish.team or '-'} token={given.token_id}")
        return json_response(given, status=201)

    @router.post(
        "/users/{user}/rotate",
        openapi_extra=body(RotateWish, required=False, limits={"days": _DAYS, "grace_s": _GRACE}),
        **answers(TokenGiven, 201),
    )
    async def rotate(user: str, request: Request) -> Response:
        """A new token for a user, which is shown this once; the old ones end."""
        given_body = await read_body(request)
        wish = decode(RotateWish, given_body) if given_body else RotateWish()
        given = await people_of(request).rotate(user, wish)
        note(request.scope, f"token={given.token_id}")
        return json_response(given, status=201)

    @router.post("/users/{user}/revoke", openapi_extra=body(RevokeWish, required=False), **answers(list[UserView]))
    async def revoke(user: str, request: Request) -> Response:
        """End one token, or the user with all of them; answers with the users that are left."""
        given_body = await read_body(request)
        wish = decode(RevokeWish, given_body) if given_body else RevokeWish()
        note(request.scope, f"token={wish.token or 'all'}")
        await people_of(request).revoke(user, wish)
        return json_response(people_of(request).users())


def _add_teams(router: APIRouter) -> None:
    @router.get("/teams", **answers(list[TeamView]))
    async def teams(request: Request) -> Response:
        """All teams and their queues."""
        return json_response(people_of(request).teams())

    @router.put("/teams/{team}", openapi_extra=body(TeamWish, limits=_QUEUES), **answers(TeamView))
    async def set_team(team: Annotated[str, Path(pattern=NAME["pattern"])], request: Request) -> Response:
        """Set the queues of a team; none: the team is gone."""
        wish = decode(TeamWish, await read_body(request))
        note(request.scope, f"queues={','.join(wish.queues) or '-'}")
        return json_response(await people_of(request).set_team(team, wish.queues))
