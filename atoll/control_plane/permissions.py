"""What each endpoint asks of its caller: one table, and nothing passes that has no row in it.

A row is keyed by method and path template as the router knows them. `own`: below `operator` only for runs that the caller
submitted. `queue`: below `operator` only to queues of the caller's team. `audited`: it changes something, so who asked
for it is written down before it is done; a driver's beat, each few seconds, is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from atoll.control_plane.identity import Caller
from atoll.errors import ForbiddenError
from atoll.schema.people import CLUSTER_USER, Role
from atoll.schema.spec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """`role` None: anybody, also without a token."""

    role: Role | None
    own: bool = False
    queue: bool = False
    audited: bool = False


_ANYBODY = Permission(role=None)
_SEE = Permission(role=Role.VIEWER)
_OWN = Permission(role=Role.USER, own=True, audited=True)
_OPERATE = Permission(role=Role.OPERATOR, audited=True)
_ADMIN = Permission(role=Role.ADMIN, audited=True)

TABLE: dict[tuple[str, str], Permission] = {
    ("GET", "/api/health"): _ANYBODY,
    ("GET", "/api/version"): _SEE,
    ("GET", "/api/status"): _SEE,
    ("GET", "/api/me"): _SEE,
    ("GET", "/api/openapi.json"): _SEE,
    ("GET", "/metrics"): _SEE,
    ("GET", "/api/runs"): _SEE,
    ("POST", "/api/runs"): Permission(role=Role.USER, queue=True, audited=True),
    ("GET", "/api/runs/{run}"): _SEE,
    ("POST", "/api/runs/{run}/stop"): _OWN,
    ("POST", "/api/runs/{run}/harm"): _OWN,
    ("POST", "/api/runs/{run}/beat"): replace(_OWN, audited=False),
    ("GET", "/api/runs/{run}/events"): _SEE,
    ("GET", "/api/runs/{run}/metrics"): _SEE,
    ("GET", "/api/runs/{run}/stream"): _SEE,
    ("GET", "/api/runs/{run}/logs"): _SEE,
    ("GET", "/api/runs/{run}/logs/stream"): _SEE,
    ("GET", "/api/runs/{run}/checkpoints"): _SEE,
    ("GET", "/api/nodes"): _SEE,
    ("POST", "/api/nodes/{node}/drain"): _OPERATE,
    ("POST", "/api/nodes/{node}/undrain"): _OPERATE,
    ("POST", "/api/machines"): replace(_OPERATE, audited=False),
    ("GET", "/api/topology"): _SEE,
    ("GET", "/api/doctor"): Permission(role=Role.OPERATOR),
    ("GET", "/api/story"): _SEE,
    ("POST", "/api/plan"): _SEE,
    ("GET", "/api/runs/{run}/why"): _SEE,
    ("POST", "/api/runs/{run}/resize"): _OWN,
    ("POST", "/api/runs/{run}/suspend"): _OWN,
    ("POST", "/api/runs/{run}/resume"): _OWN,
    ("GET", "/api/top"): _SEE,
    ("GET", "/api/queues"): _SEE,
    ("PUT", "/api/queues"): _OPERATE,
    ("GET", "/api/users"): Permission(role=Role.ADMIN),
    ("POST", "/api/users"): _ADMIN,
    ("POST", "/api/users/{user}/revoke"): _ADMIN,
    ("POST", "/api/users/{user}/rotate"): _ADMIN,
    ("GET", "/api/teams"): _SEE,
    ("PUT", "/api/teams/{team}"): _ADMIN,
    ("GET", "/api/audit"): Permission(role=Role.ADMIN),
    ("GET", "/v1/models"): _SEE,
    # Tokens that a model makes cost the cluster work.
    ("POST", "/v1/completions"): Permission(role=Role.USER),
}
# What has no row here is answered with "no such path" or method, which whoever is let in may be told.
UNKNOWN = ("/api/{rest:path}", "/v1/{rest:path}", "/metrics")


def methods_of(path: str) -> list[str]:
    """The methods that some row takes at this path."""
    parts = path.split("/")
    return sorted(
        method
        for method, template in TABLE
        if len(wanted := template.split("/")) == len(parts)
        and all(w == p or (w.startswith("{") and p) for w, p in zip(wanted, parts, strict=True))
    )


def required(method: str, template: str) -> Permission:
    """The row of an endpoint. Raises `ForbiddenError` where the table has none."""
    found = TABLE.get((method, template))
    if found is None:
        raise ForbiddenError(f"{method} {template} has no row in the table of permissions")
    return found


def check_role(caller: Caller, permission: Permission, what: str) -> None:
    """Raises `ForbiddenError` where the caller's role is not enough."""
    if permission.role is not None and not caller.role.at_least(permission.role):
        raise ForbiddenError(f"{what} needs the role {permission.role}; {caller.user} is {caller.role}")


def check_owner(caller: Caller, owner: str, run: str) -> None:
    """Raises `ForbiddenError` where the run is somebody else's. A run without an owner is the cluster's own."""
    if not caller.role.at_least(Role.OPERATOR) and caller.user != (owner or CLUSTER_USER):
        raise ForbiddenError(
            f"run {run} belongs to {owner or CLUSTER_USER}; {caller.user} ({caller.role}) may act on own runs only"
        )


def submitted_by(caller: Caller, spec: JobSpec, queues: tuple[str, ...] | None) -> JobSpec:
    """`spec` as it enters the queue: with its owner and team, whatever it said itself. Raises `ForbiddenError`.

    An admin may submit for others; what an admin leaves open is the cluster's own.
    """
    if queues is not None and spec.queue not in queues:
        known = ", ".join(queues) or "none"
        team = f"team {caller.team}" if caller.team else "users without a team"
        raise ForbiddenError(f"queue={spec.queue!r}: {team} may submit to: {known}")
    if caller.role is Role.ADMIN:
        return spec if caller.user == CLUSTER_USER or spec.owner else replace(spec, owner=caller.user)
    return replace(spec, owner=caller.user, team=caller.team if queues is not None else caller.team or spec.team)
