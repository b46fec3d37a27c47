"""Who may talk to the web process: an ASGI layer around everything that it serves.

Three questions, in this order, on HTTP and WebSocket alike.

1. Is the Host header one of ours? A page of a foreign site can point its own name at 127.0.0.1 (DNS rebinding) and
   would then be of the same origin as we are; its Host header betrays it.
2. Is an Origin header, where there is one, that of the Host? A foreign page may send requests here, but not hide where
   it comes from.
3. Is the token there: as `Authorization: Bearer`, or as the cookie that a sign-in set? Compared in constant time.

The cookie does not hold the token but a value derived from it: cookies are sent to every port of this host, and a
bearer token must not be handed to whatever listens on another one. Signing in is `GET /any/page?token=...` (the link
that `atoll status --link` prints) or the form at /login. `/api/health` needs no token.
"""

from __future__ import annotations

import hashlib
import hmac
import html
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.control_plane.rest_answers import problem_response
from atoll.errors import AuthError

COOKIE = "atoll_session"
LOGIN = "/login"
_OPEN = frozenset({"/api/health", LOGIN, "/favicon.ico"})
_LOGIN_BODY_LIMIT = 4096
_SEE_OTHER = 303
_MISDIRECTED = 421
_FORBIDDEN = 403
# RFC 6455: 1008 is "policy violation".
_WS_REFUSED = 1008

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Atoll: sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:28rem;margin:15vh auto;padding:0 1rem;color:#12303a}}
input,button{{font:inherit;padding:.5rem .7rem;width:100%;box-sizing:border-box;margin:.3rem 0}}
.problem{{color:#a3211b}}</style>
<h1>Atoll</h1><p>Paste the token of this cluster. It is in the file <code>token</code> under ATOLL_HOME
(<code>~/.atoll/token</code> unless set).</p>{problem}
<form method="post" action="{action}"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button type="submit">Sign in</button></form></html>"""


def session_value(token: str) -> str:
    """The cookie's value: proves knowledge of `token` without telling it."""
    return hmac.new(token.encode(), b"atoll dashboard session", hashlib.sha256).hexdigest()


def same(given: str, expected: str) -> bool:
    """Equality in constant time, for any text."""
    return hmac.compare_digest(given.encode(), expected.encode())


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in small letters; '' where it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class Guard:
    """Answers the three questions, and lets through what passes. `hosts` are the names this server goes by."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: frozenset[str]) -> None:
        self._app = app
        self._token = token
        self._session = session_value(token)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = await self._decide(scope, receive)
        if refusal is None:
            await self._app(scope, receive, _hardened(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _WS_REFUSED, "reason": "refused"})
        else:
            await refusal(scope, receive, _hardened(send))

    async def _decide(self, scope: Scope, receive: Receive) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host_name(host) not in self._hosts:
            problem = AuthError(f"this server does not go by the name {host!r}; use http://127.0.0.1:PORT")
            return problem_response(problem, status=_MISDIRECTED)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return problem_response(AuthError(f"requests from pages of {origin} are refused"), status=_FORBIDDEN)
        path = scope["path"]
        if path == LOGIN and scope["type"] == "http":
            return await self._login(Request(scope, receive))
        if path in _OPEN or self._known(HTTPConnection(scope)):
            return self._without_token_in_url(scope) if scope["type"] == "http" else None
        return self._refuse(scope)

    def _known(self, connection: HTTPConnection) -> bool:
        scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(bearer.strip(), self._token)
        return same(connection.cookies.get(COOKIE, ""), self._session)

    def _refuse(self, scope: Scope) -> Response:
        signed_in = self._without_token_in_url(scope)
        if signed_in is not None:
            return signed_in
        if scope["type"] == "http" and wants_page(scope):
            return RedirectResponse(f"{LOGIN}?next={quote(scope['path'])}", status_code=_SEE_OTHER)
        problem = AuthError(
            "no or wrong token; send `Authorization: Bearer TOKEN` (the file `token` in ATOLL_HOME, ~/.atoll unless set, or ATOLL_TOKEN)"
        )
        return problem_response(problem)

    def _without_token_in_url(self, scope: Scope) -> Response | None:
        """Signs in by `?token=` and goes on to the same page without it, so that it stays in no history."""
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        given = dict(query).get("token")
        if given is None or scope.get("method") != "GET" or not same(given, self._token):
            return None
        rest = urlencode([(k, v) for k, v in query if k != "token"])
        return self._signed_in(_local(scope["path"] + (f"?{rest}" if rest else "")))

    async def _login(self, request: Request) -> Response:
        target = _local(request.query_params.get("next", "/"))
        if request.method != "POST":
            return _form(target, "")
        given = parse_qs(await _small_body(request)).get("token", [""])[0].strip()
        if same(given, self._token):
            return self._signed_in(target)
        return _form(target, "That is not the token of this cluster.")

    def _signed_in(self, target: str) -> Response:
        answer = RedirectResponse(target, status_code=_SEE_OTHER)
        answer.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/")
        return answer


def wants_page(scope: Scope) -> bool:
    """True for a browser's navigation, which is better answered by a page than by JSON."""
    path = scope["path"]
    is_program = path.startswith(("/api/", "/v1/")) or path == "/metrics"
    return scope.get("method") == "GET" and not is_program and "text/html" in Headers(scope=scope).get("accept", "")


def _local(target: str) -> str:
    # "//host" and "/\host" are other sites to a browser.
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if safe else "/"


def _form(target: str, problem: str) -> Response:
    note = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    action = html.escape(f"{LOGIN}?next={quote(target)}")
    return HTMLResponse(_PAGE.format(problem=note, action=action), status_code=401 if problem else 200)


async def _small_body(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LOGIN_BODY_LIMIT:
            return ""
    return body.decode("utf-8", "replace")


def _hardened(send: Send) -> Send:
    """`send` with headers that keep pages from being framed, sniffed, or named to other sites."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                (b"x-content-type-options", b"nosniff"),
                (b"x-frame-options", b"DENY"),
                (b"referrer-policy", b"no-referrer"),
            ]
        await send(message)

    return wrapped
