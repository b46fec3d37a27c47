"""Who somebody is: users, tokens and teams as values, and the judgement over what was presented at the door.

A token is `atoll_<id>_<64 hex digits>`: the id finds its record, the rest are 256 random bits. At rest there is only a
salted HMAC under a key that is derived from the cluster's secret, so that neither the database nor the secret alone
tells whether a guess is right. An unknown id is compared with a digest all the same: how long a refusal takes does not
tell which ids there are. The cluster's own token, the file `token` under ATOLL_HOME, is a token of the user `admin`
without an end.

A browser's session is a value that only this cluster can have made, out of a token's id and record; it is good as long as
that token is, at most `SESSION_S`, and until it is signed out of. Chance and time are handed in.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from atoll.errors import AuthError
from atoll.schema.people import CLUSTER_USER, Role

TOKEN_BYTES, ID_BYTES, SALT_BYTES, NONCE_BYTES = 32, 6, 16, 16
CLUSTER_TOKEN = "cluster"  # noqa: S105 - an id
# A working day: whoever comes back the next morning signs in again.
SESSION_S = 12 * 3600.0
_FORM = re.compile(r"atoll_([0-9a-f]{12})_[0-9a-f]{64}\Z")
_NO_SALT, _NO_DIGEST = bytes(SALT_BYTES), bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody with a name, a role and perhaps a team."""

    name: str
    role: Role
    team: str | None
    made_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token. It is good from `made_at` until `expires_at`, or `ended_at` where it was revoked."""

    token_id: str
    user: str
    salt: bytes
    digest: bytes
    made_at: float
    expires_at: float | None
    ended_at: float | None = None

    def problem(self, now: float) -> str:
        """Why it is not good now, or ''."""
        if self.ended_at is not None and now >= self.ended_at:
            return "was revoked"
        return "has expired" if self.expires_at is not None and now >= self.expires_at else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever passed the door. `csrf` is set for those who came by a browser's session."""

    user: str
    role: Role
    team: str | None
    token_id: str
    expires_at: float | None
    csrf: str = ""
    session: str = ""


def derived_key(secret: bytes) -> bytes:
    """The key under which tokens of people are hashed: of no use for what the cluster's secret itself opens."""
    return hmac.digest(secret, b"tokens of people", "sha256")


def token_digest(key: bytes, salt: bytes, token: str) -> bytes:
    """What is kept of `token`."""
    return hmac.digest(key, salt + token.encode(), "sha256")


def written(token_id: str, bits: bytes) -> str:
    """A token as its user sees it."""
    return f"atoll_{token_id}_{bits.hex()}"


@dataclass(slots=True)
class Directory:
    """All users, tokens and teams. `signed_out`: sessions that were ended, with the time at which they end anyway."""

    key: bytes
    users: dict[str, User] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    teams: dict[str, tuple[str, ...]] = field(default_factory=dict)
    signed_out: dict[str, float] = field(default_factory=dict)

    def own(self, token: str) -> None:
        """Take the cluster's own token."""
        self.users[CLUSTER_USER] = User(name=CLUSTER_USER, role=Role.ADMIN, team=None, made_at=0.0)
        digest = token_digest(self.key, _NO_SALT, token)
        self.tokens[CLUSTER_TOKEN] = Token(
            token_id=CLUSTER_TOKEN, user=CLUSTER_USER, salt=_NO_SALT, digest=digest, made_at=0.0, expires_at=None
        )

    def by_token(self, given: str, now: float) -> Caller:
        """Who `given` belongs to. Raises `AuthError`."""
        found = _FORM.match(given)
        token = self.tokens.get(found[1] if found else CLUSTER_TOKEN)
        salt, expected = (token.salt, token.digest) if token else (_NO_SALT, _NO_DIGEST)
        same = hmac.compare_digest(token_digest(self.key, salt, given), expected)
        if token is None or not same:
            raise AuthError("this token is unknown to the cluster")
        return self._caller(token, now)

    def session(self, caller: Caller, now: float, nonce: bytes) -> str:
        """A session for somebody who showed a token, as the value of a cookie."""
        until = min(now + SESSION_S, caller.expires_at or now + SESSION_S)
        said = f"{caller.token_id}.{until:.0f}.{nonce.hex()}"
        return f"{said}.{self._session_mac(self.tokens[caller.token_id], said)}"

    def by_session(self, value: str, now: float) -> Caller:
        """Who the session belongs to. Raises `AuthError`."""
        said, _, mac = value.rpartition(".")
        token_id, _, rest = said.partition(".")
        until = rest.partition(".")[0]
        token = self.tokens.get(token_id)
        expected = self._session_mac(token, said) if token else ""
        if not hmac.compare_digest(mac.encode(), expected.encode()) or token is None or not until.isdecimal():
            raise AuthError("this session is unknown to the cluster; sign in again")
        if now >= int(until) or value in self.signed_out:
            raise AuthError("this session has ended; sign in again")
        return replace(self._caller(token, now), csrf=self.csrf(value), session=value)

    def sign_out(self, session: str, now: float) -> float:
        """End a session; until when that has to be remembered."""
        self.signed_out = {value: until for value, until in self.signed_out.items() if until > now}
        self.signed_out[session] = now + SESSION_S
        return now + SESSION_S

    def csrf(self, session: str) -> str:
        """What a page of the session proves itself with: a page of another site cannot read it."""
        return hmac.new(self.key, b"csrf " + session.encode(), hashlib.sha256).hexdigest()

    def queues_of(self, caller: Caller, default: str) -> tuple[str, ...] | None:
        """The queues that `caller` may submit to; None for all of them."""
        if caller.role.at_least(Role.OPERATOR):
            return None
        return (default,) if caller.team is None else self.teams.get(caller.team, ())

    def _session_mac(self, token: Token, said: str) -> str:
        # With the token's digest in it, a session ends where its token is replaced.
        return hmac.new(self.key, b"session " + token.digest + said.encode(), hashlib.sha256).hexdigest()

    def _caller(self, token: Token, now: float) -> Caller:
        problem = token.problem(now)
        if problem:
            raise AuthError(
                f"the token {token.token_id} of {token.user} {problem}; ask an admin for `atoll users rotate`"
            )
        user = self.users.get(token.user)
        if user is None:
            raise AuthError(f"the user {token.user} was removed")
        ends = [t for t in (token.expires_at, token.ended_at) if t is not None]
        return Caller(
            user=user.name,
            role=user.role,
            team=user.team,
            token_id=token.token_id,
            expires_at=min(ends) if ends else None,
        )


def ended(tokens: Mapping[str, Token], user: str, at: float, only: str | None = None) -> list[Token]:
    """The tokens of `user` (or the one named) that are good beyond `at`, ended then."""
    mine = [t for t in tokens.values() if t.user == user and only in {None, t.token_id}]
    return [replace(t, ended_at=at) for t in mine if t.ended_at is None or t.ended_at > at]
