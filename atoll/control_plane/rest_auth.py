"""Who may talk to the web process: an ASGI layer around everything that it serves.

Four questions, in this order, on HTTP and WebSocket alike.

1. Is the Host header one of ours? A page of a foreign site can point its own name at 127.0.0.1 (DNS rebinding) and
   would then be of the same origin as we are; its Host header betrays it.
2. Is an Origin header, where there is one, ours? A foreign page may send requests here, but not hide where it comes
   from; newer browsers say so in Sec-Fetch-Site, too. No answer allows another origin (no CORS).
3. Who is it: by `Authorization: Bearer`, or by the session of a cookie (`identity`)? `/api/health` needs neither.
4. If a session asks for a change: does the page prove that it is ours? A browser adds cookies by itself, so Origin must
   be there, and under /api and /v1 the session's own X-Atoll-CSRF, which only a page of ours could read at /api/me.

What the caller may do is asked behind this, by route (`permissions`). Here is also the end of each line of the audit log:
it is on disk before the answer leaves.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.control_plane import rest_signin as signin
from atoll.control_plane.identity import Caller
from atoll.control_plane.permissions import TABLE
from atoll.control_plane.rest_answers import PROBLEM_HEADER, problem_response
from atoll.control_plane.rest_people import Entry, People, source_of
from atoll.errors import AuthError, ForbiddenError, ThrottledError

CSRF_HEADER = "x-atoll-csrf"
_OPEN = frozenset({where for where, needs in TABLE.items() if needs.role is None} | {("GET", "/favicon.ico")})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MISDIRECTED = 421
# RFC 6455: 1008 is "policy violation".
_WS_REFUSED = 1008
_HTTP_OF = {"ws": "http", "wss": "https"}
_HARDENED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "content-security-policy": "frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in small letters; '' where it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class Guard:
    """Answers the four questions, and lets through what passes. `hosts` are the names this server goes by.

    `people` says who is who; without it only the cluster's own `token` is known.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: frozenset[str], people: People | None = None) -> None:
        self._app = app
        self._people = people or People(token)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["atoll.people"] = self._people
        refusal = await self._decide(scope, receive)
        if refusal is None:
            await self._app(scope, receive, self._outgoing(scope, send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _WS_REFUSED, "reason": "refused"})
        else:
            await refusal(scope, receive, self._outgoing(scope, send))

    async def _decide(self, scope: Scope, receive: Receive) -> Response | None:
        foreign = self._foreign(scope)
        if foreign is not None:
            return foreign
        is_http, path = scope["type"] == "http", scope["path"]
        if is_http and (scope["method"], path) in _OPEN:
            return None
        if is_http and path == signin.LOGIN:
            return await signin.login(Request(scope, receive), self._people)
        return (signin.by_link(scope, self._people) if is_http else None) or await self._let_in(scope, receive)

    async def _let_in(self, scope: Scope, receive: Receive) -> Response | None:
        """None where the application may answer; it finds the caller in the scope."""
        is_http = scope["type"] == "http"
        try:
            caller = scope["atoll.caller"] = self._who(scope)
            _check_page(scope, caller)
        except (AuthError, ThrottledError, ForbiddenError) as error:
            sign_in = is_http and not isinstance(error, ForbiddenError) and signin.wants_page(scope)
            return signin.to_login(scope) if sign_in else problem_response(error)
        if is_http and scope["path"] == signin.LOGOUT:
            return await signin.logout(Request(scope, receive), self._people, caller)
        return None

    def _foreign(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or host_name(host) not in self._hosts:
            problem = ForbiddenError(f"this server does not go by the name {host!r}; use http://127.0.0.1:PORT")
            return problem_response(problem, status=_MISDIRECTED)
        scheme = scope.get("scheme", "http")
        own = f"{_HTTP_OF.get(scheme, scheme)}://{host}".lower()
        wrong = [origin for origin in headers.getlist("origin") if origin.lower() != own]
        if wrong:
            return problem_response(ForbiddenError(f"requests from pages of {wrong[0]} are refused"))
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if changes and signin.foreign(scope):
            return problem_response(ForbiddenError("requests from pages of other sites are refused"))
        return None

    def _who(self, scope: Scope) -> Caller:
        scheme, _, bearer = Headers(scope=scope).get("authorization", "").partition(" ")
        session = signin.session_in(scope)
        try:
            if scheme.lower() == "bearer" and bearer.strip():
                return self._people.by_token(bearer.strip(), source_of(scope))
            if session:
                return self._people.by_session(session)
        except AuthError as error:
            scope["atoll.tell"] = True
            raise AuthError(f"{error} (the file `token` in ATOLL_HOME, or ATOLL_TOKEN)") from None
        raise AuthError(
            "no token; send `Authorization: Bearer TOKEN` (the file `token` in ATOLL_HOME, ~/.atoll unless set, or ATOLL_TOKEN)"
        )

    def _outgoing(self, scope: Scope, send: Send) -> Send:
        """`send` with the headers that keep pages from being framed, sniffed, cached, or named to other sites."""

        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                await self._told(scope, int(message["status"]), headers.get(PROBLEM_HEADER, ""))
                for name, value in _HARDENED.items():
                    headers[name] = value
                if scope["path"].startswith("/api/"):
                    headers.setdefault("cache-control", "no-store")
                message["headers"] = headers.raw
            await send(message)

        return wrapped

    async def _told(self, scope: Scope, status: int, code: str) -> None:
        entry, caller = scope.get("atoll.entry"), scope.get("atoll.caller")
        if isinstance(entry, Entry):
            await self._people.finish(entry, status, code)
        elif scope.get("atoll.tell") or (code == ForbiddenError.code and caller is not None):
            await self._people.tell(scope, caller, status, code)


def _check_page(scope: Scope, caller: Caller) -> None:
    """Raises `ForbiddenError` where a browser's session asks for a change and no page of ours is behind it."""
    changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
    if not caller.session or not changes:
        return
    headers = Headers(scope=scope)
    if "origin" not in headers:
        raise ForbiddenError("a change asked for by a browser's session needs the header Origin; programs use a token")
    if scope["path"].startswith(("/api/", "/v1/")):
        given = headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(given.encode(), caller.csrf.encode()):
            raise ForbiddenError("a change asked for by a browser's session needs X-Atoll-CSRF, as /api/me tells it")
