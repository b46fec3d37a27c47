"""The people of one cluster while the web process runs: who shows what token, who was given one, who did what.

`identity` judges and `sql_identity` keeps; this joins them with clock, chance and threads. Everything that is judged lies
in memory, since this process is the only writer, so that no request waits for a disk to be let in. What changes is on disk
before it is answered.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from atoll.clock import Clock, SystemClock
from atoll.control_plane import identity as ids
from atoll.control_plane.identity import CLUSTER_TOKEN, Caller, Directory, Token, User
from atoll.control_plane.sql_identity import IdentityStore
from atoll.control_plane.tries import Tries
from atoll.errors import (
    AlreadyThere,
    AtollError,
    AuthError,
    ForbiddenError,
    KeyReused,
    NotFoundError,
    SpecError,
    ThrottledError,
)
from atoll.schema.ids import is_safe_name
from atoll.schema.people import (
    CLUSTER_USER,
    AuditLine,
    CallerView,
    RevokeWish,
    RotateWish,
    TeamView,
    TokenGiven,
    TokenView,
    UserView,
    UserWish,
)
from atoll.schema.sharing import DEFAULT_QUEUE

_DAY_S = 86_400.0
MOST_DAYS = 3650.0
# A client tries a submission again for minutes; a day covers one that a person repeats.
_KEY_S = _DAY_S
_PATH_CHARS, _NOTE_CHARS = 200, 300


@dataclass(slots=True)
class Entry:
    """A line of the audit log that was begun and is not finished."""

    seq: int
    note: str = ""


def source_of(scope: Scope) -> str:
    """The address that a connection comes from. Headers that claim another are not believed."""
    client = scope.get("client")
    return str(client[0]) if client else "local"


def caller_of(scope: Scope) -> Caller:
    """Whoever the guard let in. Raises `AuthError` where no guard stands before the application."""
    caller = scope.get("atoll.caller")
    if not isinstance(caller, Caller):
        raise AuthError("nobody was let in here: the application has no guard")
    return caller


def note(scope: Scope, words: str) -> None:
    """Add to what the audit log says of this request."""
    entry = scope.get("atoll.entry")
    if isinstance(entry, Entry):
        # What cannot be written (half a surrogate pair, in a JSON string) must not keep the line from being finished.
        entry.note = words[:_NOTE_CHARS].encode("utf-8", "replace").decode()


class People:
    """Users, teams, sessions and the audit log. Without a store everything is kept in memory."""

    def __init__(
        self,
        token: str,
        *,
        secret: bytes | None = None,
        store: IdentityStore | None = None,
        clock: Clock | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
        tries: Tries | None = None,
    ) -> None:
        self._store = store or IdentityStore()
        self._clock = clock or SystemClock()
        self._random = random
        self._tries = tries or Tries()
        self._told = Tries()
        self._directory = Directory(key=ids.derived_key(secret or random(32)))
        self._store.load(self._directory, self._clock.now())
        self._directory.own(token)
        # What is read, judged, written and then put in memory is one change: two at once would undo one another.
        self._changing = asyncio.Lock()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    # -- at the door -------------------------------------------------------------------------------------------------

    def by_token(self, given: str, source: str) -> Caller:
        """Who shows this bearer token. Raises `AuthError`, or `ThrottledError` where wrong ones come too fast."""
        try:
            return self._directory.by_token(given, self._clock.now())
        except AuthError as error:
            raise self._failed(source, error) from None

    def by_session(self, value: str) -> Caller:
        """Who the browser's session belongs to. Raises `AuthError`."""
        return self._directory.by_session(value, self._clock.now())

    def sign_in(self, given: str, source: str) -> tuple[Caller, str]:
        """A session for whoever shows this token. Raises `AuthError`, `ThrottledError`."""
        now = self._clock.now()
        if self._tries.exhausted(source, now):
            raise self._failed(source, AuthError("that is not a token of this cluster"))
        caller = self.by_token(given, source)
        return caller, self._directory.session(caller, now, self._random(ids.NONCE_BYTES))

    async def sign_out(self, caller: Caller) -> None:
        """End the session that `caller` came by."""
        now = self._clock.now()
        until = self._directory.sign_out(caller.session, now)
        await run_in_threadpool(self._store.sign_out, caller.session, until, now)

    def still(self, caller: Caller) -> Caller:
        """`caller` as known now: a page that stays open outlives neither session nor token. Raises `AuthError`."""
        if caller.session:
            return self.by_session(caller.session)
        token, now = self._directory.tokens.get(caller.token_id), self._clock.now()
        if token is None or token.problem(now):
            raise AuthError(f"the token {caller.token_id} is good no more")
        return caller

    def _failed(self, source: str, error: AuthError) -> AtollError:
        wait_s = self._tries.failed(source, self._clock.now())
        if wait_s > 0:
            return ThrottledError(f"too many wrong tokens from {source}; the next is heard in {wait_s:.0f} s")
        return error

    # -- what may be done --------------------------------------------------------------------------------------------

    def queues_of(self, caller: Caller) -> tuple[str, ...] | None:
        """The queues that `caller` may submit to; None for all."""
        return self._directory.queues_of(caller, DEFAULT_QUEUE)

    def view(self, caller: Caller) -> CallerView:
        """Who `caller` is taken for."""
        return CallerView(
            user=caller.user,
            role=caller.role,
            team=caller.team,
            expires_at=caller.expires_at,
            queues=self.queues_of(caller),
            csrf=caller.csrf,
        )

    async def run_for(self, caller: Caller, key: str, digest: str, run: str) -> str:
        """The run id of this submission: `run`, or that of the same one before. Raises `KeyReused`."""
        now = self._clock.now()
        kept, known = await run_in_threadpool(self._store.wish, caller.user, key, digest, run, now, now - _KEY_S)
        if kept != digest:
            raise KeyReused(f"Idempotency-Key {key!r} came with another job before (run {known}); make a new key")
        return known

    # -- users and teams ---------------------------------------------------------------------------------------------

    def users(self) -> list[UserView]:
        """All users by name, and their tokens."""
        users = sorted(self._directory.users.values(), key=lambda user: user.name)
        return [self._user_view(user) for user in users]

    def teams(self) -> list[TeamView]:
        """All teams by name."""
        return [TeamView(team=team, queues=queues) for team, queues in sorted(self._directory.teams.items())]

    async def add(self, wish: UserWish) -> TokenGiven:
        """A new user and the first token. Raises `SpecError`, `NotFoundError`, `AlreadyThere`."""
        async with self._changing:
            if not is_safe_name(wish.name):
                raise SpecError(f"name={wish.name!r}: letters, digits, '_', '.' and '-' only")
            if wish.name in self._directory.users:
                raise AlreadyThere(
                    f"name={wish.name!r}: there is such a user; `atoll users rotate {wish.name}` makes a token"
                )
            if wish.team is not None and wish.team not in self._directory.teams:
                known = ", ".join(sorted(self._directory.teams)) or "none"
                raise NotFoundError(
                    f"team={wish.team!r}: no such team; there are: {known} (`atoll users team NAME --queue Q`)"
                )
            user = User(name=wish.name, role=wish.role, team=wish.team, made_at=self._clock.now())
            token, given = self._new_token(wish.name, wish.days)
            await run_in_threadpool(self._store.put, user, [token])
            self._directory.users[user.name] = user
            self._directory.tokens[token.token_id] = token
            return given

    async def rotate(self, name: str, wish: RotateWish) -> TokenGiven:
        """A new token for a user; the old ones end after `grace_s`. Raises `NotFoundError`, `SpecError`."""
        async with self._changing:
            self._known(name)
            if not 0 <= wish.grace_s <= _DAY_S * MOST_DAYS:
                raise SpecError(f"grace_s={wish.grace_s}: seconds, 0 or more")
            token, given = self._new_token(name, wish.days)
            old = ids.ended(self._directory.tokens, name, self._clock.now() + wish.grace_s)
            await run_in_threadpool(self._store.put, None, [*old, token])
            self._directory.tokens |= {t.token_id: t for t in (*old, token)}
            return given

    async def revoke(self, name: str, wish: RevokeWish) -> None:
        """End a token, or a user with all tokens. Raises `NotFoundError`, `SpecError`."""
        async with self._changing:
            self._known(name)
            now = self._clock.now()
            ended = ids.ended(self._directory.tokens, name, now, wish.token)
            if wish.token is not None and not ended:
                raise NotFoundError(f"{name} has no token {wish.token!r} that is good; `atoll users ls` lists them")
            if wish.token is None:
                await run_in_threadpool(self._store.remove, name, ended)
                del self._directory.users[name]
            else:
                await run_in_threadpool(self._store.put, None, ended)
            self._directory.tokens |= {t.token_id: t for t in ended}

    async def set_team(self, team: str, queues: tuple[str, ...]) -> TeamView:
        """The queues of a team; none: the team is gone. Raises `SpecError`."""
        async with self._changing:
            wrong = [name for name in (team, *queues) if not is_safe_name(name)]
            if wrong:
                raise SpecError(f"{wrong[0]!r}: letters, digits, '_', '.' and '-' only")
            held = sorted(user.name for user in self._directory.users.values() if user.team == team)
            if not queues and held:
                raise SpecError(f"queues=(): team {team} has members ({', '.join(held)}); revoke them first")
            kept = tuple(sorted(set(queues)))
            await run_in_threadpool(self._store.set_team, team, kept)
            if kept:
                self._directory.teams[team] = kept
            else:
                self._directory.teams.pop(team, None)
            return TeamView(team=team, queues=kept)

    def _known(self, name: str) -> User:
        if name == CLUSTER_USER:
            raise ForbiddenError(
                f"{name} is the cluster's own token, a file: put another one there and restart the web process"
            )
        user = self._directory.users.get(name)
        if user is None:
            raise NotFoundError(f"no user {name!r}; `atoll users ls` lists them")
        return user

    def _new_token(self, name: str, days: float) -> tuple[Token, TokenGiven]:
        if not 0 < days <= MOST_DAYS:
            raise SpecError(f"days={days}: above 0, at most {MOST_DAYS:.0f}")
        now, token_id = self._clock.now(), self._random(ids.ID_BYTES).hex()
        salt, text = self._random(ids.SALT_BYTES), ids.written(token_id, self._random(ids.TOKEN_BYTES))
        expires_at = now + days * _DAY_S
        token = Token(
            token_id=token_id,
            user=name,
            salt=salt,
            digest=ids.token_digest(self._directory.key, salt, text),
            made_at=now,
            expires_at=expires_at,
        )
        return token, TokenGiven(user=name, token=text, token_id=token_id, expires_at=expires_at)

    def _user_view(self, user: User) -> UserView:
        tokens = sorted((t for t in self._directory.tokens.values() if t.user == user.name), key=lambda t: t.made_at)
        return UserView(
            name=user.name,
            role=user.role,
            team=user.team,
            made_at=user.made_at,
            tokens=tuple(
                TokenView(token_id=t.token_id, made_at=t.made_at, expires_at=t.expires_at, ended_at=t.ended_at)
                for t in tokens
                if t.expires_at is not None
            ),
        )

    # -- audit -------------------------------------------------------------------------------------------------------

    async def begin(self, scope: Scope, caller: Caller, *, path: str | None = None) -> Entry | None:
        """Write down, before it is done, that `caller` asks for something. Raises `ClusterError` on a full disk.

        Whoever holds the cluster's own token may act all the same, to stop a run that fills the disk, say.
        """
        line = self._line(scope, caller, path=path)
        try:
            return Entry(seq=await run_in_threadpool(self._store.begin, line))
        except AtollError as error:
            if caller.token_id != CLUSTER_TOKEN:
                raise
            _log(f"not in the audit log ({error}): {line}")
            return None

    async def finish(self, entry: Entry, status: int, code: str) -> None:
        """Write down what came of it."""
        try:
            await run_in_threadpool(self._store.finish, entry.seq, status, code, entry.note)
        except AtollError as error:
            _log(f"not in the audit log ({error}): line {entry.seq} was answered {status} {code}")

    async def tell(self, scope: Scope, caller: Caller | None, status: int, code: str) -> None:
        """Write down what was refused, or who signed in: so many lines of one user, or of one address of nobody known."""
        teller = caller.user if caller else f"@{source_of(scope)}"  # no user's name has an @
        if self._told.failed(teller, self._clock.now()) > 0:
            return
        line = replace(self._line(scope, caller), status=status, code=code)
        try:
            await run_in_threadpool(functools.partial(self._store.begin, line, changes=False))
        except AtollError as error:
            _log(f"not in the audit log ({error}): {line}")

    async def audit(self, before: int, limit: int, user: str | None) -> list[AuditLine]:
        """Lines numbered below `before` (0: the last), newest first."""
        return await run_in_threadpool(self._store.audit, before, limit, user)

    def _line(self, scope: Scope, caller: Caller | None, *, path: str | None = None) -> AuditLine:
        asked: Any = path if path is not None else scope["path"]
        return AuditLine(
            seq=0,
            at=self._clock.now(),
            user=caller.user if caller else "",
            role=caller.role.value if caller else "",
            source=source_of(scope),
            method=scope.get("method", "WEBSOCKET"),
            path="".join(c if c.isprintable() else "?" for c in str(asked)[:_PATH_CHARS])
            .encode("utf-8", "replace")
            .decode(),
            status=0,
        )


def _log(words: str) -> None:
    print(f"atoll: {words}", file=sys.stderr)  # noqa: T201 - web.log
