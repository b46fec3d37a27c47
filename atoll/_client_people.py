"""Calls about people, for both clients: who am I, users and their tokens, teams, the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from atoll._client_calls import Call
from atoll.schema.codec import from_plain, to_plain
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

T = TypeVar("T")
# Lines of the audit log that are asked for at a time.
AUDIT_PAGE = 500


def me() -> Call[CallerView]:
    """Who the token is taken for."""
    return Call(method="GET", path="/api/me", read=lambda a: from_plain(CallerView, a))


def users() -> Call[list[UserView]]:
    """All users."""
    return Call(method="GET", path="/api/users", read=_users)


def add_user(wish: UserWish) -> Call[TokenGiven]:
    """A new user. Not sent twice: the token would be lost with the first answer."""
    return Call(method="POST", path="/api/users", body=to_plain(wish), read=_token, repeatable=False)


def rotate(user: str, wish: RotateWish) -> Call[TokenGiven]:
    """A new token. Not sent twice, as above."""
    path = f"/api/users/{quote(user, safe='')}/rotate"
    return Call(method="POST", path=path, body=to_plain(wish), read=_token, repeatable=False)


def revoke(user: str, wish: RevokeWish) -> Call[list[UserView]]:
    """The end of a token or user; the users that are left. The second time there is nothing to end."""
    path = f"/api/users/{quote(user, safe='')}/revoke"
    return Call(method="POST", path=path, body=to_plain(wish), read=_users, repeatable=False)


def teams() -> Call[list[TeamView]]:
    """All teams."""
    return Call(method="GET", path="/api/teams", read=lambda a: [from_plain(TeamView, item) for item in a])


def set_team(team: str, wish: TeamWish) -> Call[TeamView]:
    """The queues of a team. Twice is as once."""
    path = f"/api/teams/{quote(team, safe='')}"
    return Call(method="PUT", path=path, body=to_plain(wish), read=lambda a: from_plain(TeamView, a))


def audit(before: int, limit: int, user: str | None) -> Call[list[AuditLine]]:
    """A page of the audit log, newest first, below the line `before`; 0: the last lines."""
    params: dict[str, str | int] = {"before": before, "limit": limit} | ({} if user is None else {"user": user})
    return Call(
        method="GET", path="/api/audit", params=params, read=lambda a: [from_plain(AuditLine, item) for item in a]
    )


def _users(plain: Any) -> list[UserView]:
    return [from_plain(UserView, item) for item in plain]


def _token(plain: Any) -> TokenGiven:
    return from_plain(TokenGiven, plain)


class PeopleCalls:
    """What `Client` says about people. Raises `ForbiddenError` where the token's role is not enough."""

    def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    def me(self) -> CallerView:
        """Who this client's token is taken for."""
        return self._send(me())

    def users(self) -> list[UserView]:
        """All users, and the ids of their tokens."""
        return self._send(users())

    def add_user(self, wish: UserWish) -> TokenGiven:
        """Add a user; the token in the answer is shown this once. Raises `SpecError`."""
        return self._send(add_user(wish))

    def rotate_token(self, user: str, wish: RotateWish | None = None) -> TokenGiven:
        """A new token for a user; the old ones end. Raises `NotFoundError`, `SpecError`."""
        return self._send(rotate(user, wish or RotateWish()))

    def revoke(self, user: str, token: str | None = None) -> list[UserView]:
        """End one token of a user, or the user; the users that are left. Raises `NotFoundError`."""
        return self._send(revoke(user, RevokeWish(token=token)))

    def teams(self) -> list[TeamView]:
        """All teams and their queues."""
        return self._send(teams())

    def set_team(self, team: str, queues: Sequence[str]) -> TeamView:
        """Set the queues of a team; none: the team is gone. Raises `SpecError`."""
        return self._send(set_team(team, TeamWish(queues=tuple(queues))))

    def audit(self, limit: int = 200, before: int = 0, user: str | None = None) -> list[AuditLine]:
        """Who asked for what, newest first: up to `limit` lines below the line `before`; 0: the last ones."""
        found: list[AuditLine] = []
        while len(found) < limit:
            wanted = min(AUDIT_PAGE, limit - len(found))
            page = self._send(audit(found[-1].seq if found else before, wanted, user))
            found += page
            if len(page) < wanted:
                break
        return found


class AsyncPeopleCalls:
    """What `AsyncClient` says about people. Raises `ForbiddenError` where the token's role is not enough."""

    async def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def me(self) -> CallerView:
        """Who this client's token is taken for."""
        return await self._send(me())

    async def users(self) -> list[UserView]:
        """All users, and the ids of their tokens."""
        return await self._send(users())

    async def add_user(self, wish: UserWish) -> TokenGiven:
        """Add a user; the token in the answer is shown this once. Raises `SpecError`."""
        return await self._send(add_user(wish))

    async def rotate_token(self, user: str, wish: RotateWish | None = None) -> TokenGiven:
        """A new token for a user; the old ones end. Raises `NotFoundError`, `SpecError`."""
        return await self._send(rotate(user, wish or RotateWish()))

    async def revoke(self, user: str, token: str | None = None) -> list[UserView]:
        """End one token of a user, or the user; the users that are left. Raises `NotFoundError`."""
        return await self._send(revoke(user, RevokeWish(token=token)))

    async def teams(self) -> list[TeamView]:
        """All teams and their queues."""
        return await self._send(teams())

    async def set_team(self, team: str, queues: Sequence[str]) -> TeamView:
        """Set the queues of a team; none: the team is gone. Raises `SpecError`."""
        return await self._send(set_team(team, TeamWish(queues=tuple(queues))))

    async def audit(self, limit: int = 200, before: int = 0, user: str | None = None) -> list[AuditLine]:
        """Who asked for what, newest first: up to `limit` lines below the line `before`; 0: the last ones."""
        found: list[AuditLine] = []
        while len(found) < limit:
            wanted = min(AUDIT_PAGE, limit - len(found))
            page = await self._send(audit(found[-1].seq if found else before, wanted, user))
            found += page
            if len(page) < wanted:
                break
        return found
