"""`atoll users`: who may use this cluster and for what; and `atoll audit`: who did.

A token is printed once, on standard output and nothing else beside it there, so that it can go into a file.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.clock import SystemClock
from atoll.schema.people import DEFAULT_DAYS, AuditLine, Role, RotateWish, TokenGiven, UserView, UserWish

if TYPE_CHECKING:
    from atoll.client import Client

users_app = typer.Typer(help="Users of this cluster, their tokens and teams.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The user's name.")]
Days = Annotated[float, typer.Option(help="How many days the token is good for.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the views as JSON.")]
_DAY_S = 86_400.0


def _client() -> Client:
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    return Client()


def _print_json(value: Any) -> None:
    from atoll.schema.codec import to_plain  # noqa: PLC0415 - as above

    sys.stdout.write(json.dumps(to_plain(value)) + "\n")


def _print_token(given: TokenGiven) -> None:
    days = (given.expires_at - SystemClock().now()) / _DAY_S
    typer.echo(
        f"token {given.token_id} of {given.user}, good for {days:.0f} days; it is shown this once, give it as ATOLL_TOKEN:",
        err=True,
    )
    typer.echo(given.token)


@users_app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="What the user may do.")] = Role.USER,
    team: Annotated[str | None, typer.Option(help="Whose queues the user may submit to.")] = None,
    days: Days = DEFAULT_DAYS,
) -> None:
    """Add a user and print the token."""
    with _client() as client:
        _print_token(client.add_user(UserWish(name=name, role=role, team=team, days=days)))


@users_app.command()
def rotate(
    name: Name,
    days: Days = DEFAULT_DAYS,
    grace: Annotated[float, typer.Option(help="Seconds for which the old tokens stay good.")] = 0.0,
) -> None:
    """Print a new token for a user and end the old ones."""
    with _client() as client:
        _print_token(client.rotate_token(name, RotateWish(days=days, grace_s=grace)))


@users_app.command()
def revoke(
    name: Name,
    token: Annotated[str | None, typer.Option(help="End only this token, by its id.")] = None,
) -> None:
    """End a user with all tokens, or one token."""
    with _client() as client:
        client.revoke(name, token)
    typer.echo(f"{name}: token {token} is revoked" if token else f"{name} is no user any more")


@users_app.command()
def ls(*, as_json: AsJson = False) -> None:
    """List users and their tokens."""
    with _client() as client:
        found = client.users()
    if as_json:
        _print_json(found)
        return
    now = SystemClock().now()
    for user in found:
        typer.echo(f"{user.name:<20} {user.role:<9} {user.team or '-':<16} {_tokens(user, now)}")


@users_app.command()
def team(
    name: Annotated[str, typer.Argument(help="The team's name.")],
    queue: Annotated[list[str] | None, typer.Option(help="A queue that its members may submit to; repeat it.")] = None,
) -> None:
    """Set the queues of a team; without any the team is gone."""
    with _client() as client:
        kept = client.set_team(name, queue or ())
    typer.echo(f"{kept.team}: {', '.join(kept.queues)}" if kept.queues else f"{kept.team} is no team any more")


@users_app.command()
def teams(*, as_json: AsJson = False) -> None:
    """List teams and their queues."""
    with _client() as client:
        found = client.teams()
    if as_json:
        _print_json(found)
        return
    for each in found:
        typer.echo(f"{each.team:<16} {', '.join(each.queues)}")


@users_app.command()
def me(*, as_json: AsJson = False) -> None:
    """Say who this command's token belongs to."""
    with _client() as client:
        found = client.me()
    if as_json:
        _print_json(found)
        return
    queues = "all queues" if found.queues is None else ", ".join(found.queues) or "no queue"
    typer.echo(f"{found.user}, {found.role}, team {found.team or '-'}, may submit to {queues}")


def audit(
    limit: Annotated[int, typer.Option(min=1, help="So many lines.")] = 50,
    before: Annotated[int, typer.Option(min=0, help="Only lines numbered below this one.")] = 0,
    user: Annotated[str | None, typer.Option(help="Only what this user asked for.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Who asked for what, from where, and what came of it; the newest first."""
    with _client() as client:
        found = client.audit(limit, before, user)
    if as_json:
        _print_json(found)
        return
    for line in found:
        typer.echo(_line(line))


def _tokens(user: UserView, now: float) -> str:
    shown = []
    for token in user.tokens:
        ends = min(token.expires_at, token.ended_at if token.ended_at is not None else token.expires_at)
        left = (ends - now) / _DAY_S
        shown.append(f"{token.token_id} ({left:.0f} days left)" if ends > now else f"{token.token_id} (ended)")
    return ", ".join(shown) or "the file `token` under ATOLL_HOME"


def _line(line: AuditLine) -> str:
    at = dt.datetime.fromtimestamp(line.at, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    outcome = f"{line.status} {line.code}".strip() if line.status else "no answer"
    who = f"{line.user or '(unknown)'} ({line.role or '-'}) from {line.source}"
    return f"{line.seq:>6}  {at}  {who}: {line.method} {line.path} -> {outcome}  {line.note}".rstrip()
