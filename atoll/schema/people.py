"""Who may do what, as people and programs see it: roles, users, their tokens, teams, and lines of the audit log.

A token is shown once, when it is made (`TokenGiven`); every other view names it by its id. Times are Unix seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

# The name that the cluster's own token goes by: whoever can read its file owns the cluster.
CLUSTER_USER = "admin"
DEFAULT_DAYS = 90.0


class Role(enum.StrEnum):
    """What a user may do; each may all that the one before it may."""

    VIEWER = "viewer"
    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"

    def at_least(self, other: Role) -> bool:
        """Whether this role may what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserWish:
    """A user to be added. `team` decides the queues to submit to; `days` is how long the first token is good for."""

    name: str
    role: Role = Role.USER
    team: str | None = None
    days: float = DEFAULT_DAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateWish:
    """A new token for a user. The old ones end `grace_s` seconds later, so that programs can be given the new one."""

    days: float = DEFAULT_DAYS
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeWish:
    """End one token of a user, or all of them and the user with it where none is named."""

    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamWish:
    """The queues that members of a team may submit to."""

    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGiven:
    """A new token: the only time that it is shown."""

    user: str
    token: str
    token_id: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token by its id. `ended_at`: when it was, or will be, revoked."""

    token_id: str
    made_at: float
    expires_at: float
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserView:
    """A user, and the tokens that are or were good for something."""

    name: str
    role: Role
    team: str | None
    made_at: float
    tokens: tuple[TokenView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamView:
    """A team and its queues."""

    team: str
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerView:
    """Who the asker is taken for. `csrf` is what a page has to send back as X-Atoll-CSRF; empty for a bearer token."""

    user: str
    role: Role
    team: str | None
    expires_at: float | None
    queues: tuple[str, ...] | None = None
    csrf: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLine:
    """Who did what, when, from where, and what came of it. `status` 0: begun, and no answer was given."""

    seq: int
    at: float
    user: str
    role: str
    source: str
    method: str
    path: str
    status: int
    code: str = ""
    note: str = ""
