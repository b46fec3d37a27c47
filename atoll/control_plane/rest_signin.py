"""Signing a browser in and out: the form, the link with a token, and the page that ends a session.

The cookie holds no token but a session (`identity`): cookies are sent to every port of this host, and a bearer token must
not be handed to whatever listens on another one. Over TLS it is `__Host-` and `Secure`. A link signs in only where a
person opened it, not where a page of another site led to it.
"""

from __future__ import annotations

import html
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from atoll.control_plane.identity import SESSION_S, Caller
from atoll.control_plane.rest_answers import status_of
from atoll.control_plane.rest_people import People, source_of
from atoll.errors import AtollError, AuthError

COOKIE = "atoll_session"
LOGIN, LOGOUT = "/login", "/logout"
_BODY_LIMIT = 4096
_SEE_OTHER = 303

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Atoll: sign {way}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:28rem;margin:15vh auto;padding:0 1rem;color:#12303a}}
input,button{{font:inherit;padding:.5rem .7rem;width:100%;box-sizing:border-box;margin:.3rem 0}}
.problem{{color:#a3211b}}</style>
<h1>Atoll</h1>"""
_IN = """<p>Paste your token. That of the cluster itself is in the file <code>token</code> under ATOLL_HOME
(<code>~/.atoll/token</code> unless set).</p>{problem}
<form method="post" action="{action}"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button type="submit">Sign in</button></form></html>"""
_OUT = """<p>Signed in as {user}, {role}.</p>
<form method="post" action="/logout"><input name="csrf" type="hidden" value="{csrf}">
<button type="submit">Sign out</button></form></html>"""


def cookie_name(scope: Scope) -> str:
    """The cookie's name: over TLS one that no other port or path of the host can set."""
    return f"__Host-{COOKIE}" if scope.get("scheme") in {"https", "wss"} else COOKIE


def session_in(scope: Scope) -> str:
    """The session that a connection shows, or ''."""
    jar = SimpleCookie()
    try:
        jar.load(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return ""
    found = jar.get(cookie_name(scope))
    return found.value if found is not None else ""


def foreign(scope: Scope) -> bool:
    """True where the browser says that a page of another site is behind the request."""
    return Headers(scope=scope).get("sec-fetch-site", "none") not in {"none", "same-origin"}


async def login(request: Request, people: People) -> Response:
    """The form, and what was filled in."""
    target = _local(request.query_params.get("next", "/"))
    if request.method != "POST":
        return _form(target, "", 200)
    given = parse_qs(await _small_body(request)).get("token", [""])[0].strip()
    request.scope["atoll.tell"] = True
    try:
        return _sign_in(request.scope, people, given, target)
    except AtollError as error:
        unknown = "That is not a token of this cluster, or no longer a good one."
        return _form(target, unknown if isinstance(error, AuthError) else str(error), status_of(error))


def by_link(scope: Scope, people: People) -> Response | None:
    """Signs in by `?token=` and goes on to the same page without it, so that it stays in no history."""
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    given = dict(query).get("token")
    if given is None or scope.get("method") != "GET" or foreign(scope) or scope["path"].startswith(("/api/", "/v1/")):
        return None
    rest = urlencode([(k, v) for k, v in query if k != "token"])
    scope["atoll.tell"] = True
    try:
        return _sign_in(scope, people, given, _local(scope["path"] + (f"?{rest}" if rest else "")))
    except AtollError:
        return None


async def logout(request: Request, people: People, caller: Caller) -> Response:
    """The page that ends a session; without its own hidden field nothing ends."""
    if request.method == "POST":
        given = parse_qs(await _small_body(request)).get("csrf", [""])[0]
        if given == caller.csrf and caller.csrf:
            request.scope["atoll.tell"] = True
            await people.sign_out(caller)
            answer = RedirectResponse(LOGIN, status_code=_SEE_OTHER)
            answer.delete_cookie(cookie_name(request.scope), path="/")
            return answer
    page = _HEAD.format(way="out") + _OUT.format(user=caller.user, role=caller.role, csrf=caller.csrf)
    return HTMLResponse(page)


def _sign_in(scope: Scope, people: People, given: str, target: str) -> Response:
    caller, session = people.sign_in(given, source_of(scope))
    scope["atoll.caller"] = caller
    answer = RedirectResponse(target, status_code=_SEE_OTHER)
    name = cookie_name(scope)
    answer.set_cookie(
        name,
        session,
        max_age=int(SESSION_S),
        httponly=True,
        samesite="strict",
        path="/",
        secure=name.startswith("__Host-"),
    )
    return answer


def wants_page(scope: Scope) -> bool:
    """True for a browser's navigation, which is better answered by a page than by JSON."""
    path = scope["path"]
    is_program = path.startswith(("/api/", "/v1/")) or path == "/metrics"
    return scope.get("method") == "GET" and not is_program and "text/html" in Headers(scope=scope).get("accept", "")


def to_login(scope: Scope) -> Response:
    """A page that asks for a token, and leads back."""
    return RedirectResponse(f"{LOGIN}?next={quote(scope['path'])}", status_code=_SEE_OTHER)


def _local(target: str) -> str:
    # "//host" and "/\host" are other sites to a browser.
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if safe else "/"


def _form(target: str, problem: str, status: int) -> Response:
    note = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    action = html.escape(f"{LOGIN}?next={quote(target)}")
    return HTMLResponse(_HEAD.format(way="in") + _IN.format(problem=note, action=action), status_code=status)


async def _small_body(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_LIMIT:
            return ""
    return body.decode("utf-8", "replace")
