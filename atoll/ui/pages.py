"""Mounts the dashboard on the web server: three pages, each refreshed once a second from a `Source`.

Everything the browser loads comes from this process: no other host is asked, so the dashboard works on a cluster without
the internet. Who may see it is the web server's business: its token check stands before every route, the pages' WebSocket
included. The import of NiceGUI takes a second, so only the web process imports this module.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI
from nicegui import ui
from starlette.requests import Request

from atoll.clock import Clock, SystemClock
from atoll.errors import AtollError, NotFoundError
from atoll.schema.ids import RunId
from atoll.ui import wording
from atoll.ui.nicegui_network import NetworkPage
from atoll.ui.nicegui_overview import Overview
from atoll.ui.nicegui_parts import LOGO, Empty, Frame
from atoll.ui.nicegui_run import RunPage
from atoll.ui.source import Source

# People cannot read faster, and a step takes about this long.
_REFRESH_S = 1.0
# A long history is read before the first paint.
_FIRST_ANSWER_S = 15.0


class _Page(Protocol):
    frame: Frame

    async def refresh(self, *, now: float) -> None: ...


def mount(
    app: FastAPI,
    source: Source,
    *,
    clock: Clock | None = None,
    mount_path: str = "/",
    as_seen: Callable[[Request], Source] | None = None,
) -> None:
    """Serve the dashboard from `app`. Call once a process and after all other routes: at `/` it takes what is left.

    `as_seen` gives the source of whoever opens a page; without it all see the same one.
    """
    tick = clock or SystemClock()

    def own(request: Request) -> Source:
        return source if as_seen is None else as_seen(request)

    @ui.page("/", response_timeout=_FIRST_ANSWER_S)
    async def overview(request: Request) -> None:
        await _live(Overview(own(request)), tick)

    @ui.page("/network", response_timeout=_FIRST_ANSWER_S)
    async def network(request: Request) -> None:
        await _live(NetworkPage(own(request)), tick)

    @ui.page("/runs/{run}", response_timeout=_FIRST_ANSWER_S)
    async def one_run(run: str, request: Request) -> None:
        seen = own(request)
        try:
            await seen.run(RunId(run))
        except NotFoundError as error:
            _missing(run, str(error))
            return
        await _live(RunPage(seen, RunId(run)), tick)

    ui.run_with(
        app,
        mount_path=mount_path,
        title="Atoll",
        favicon=LOGO,
        tailwind=False,
        binding_refresh_interval=None,
        show_welcome_message=False,
        # Nothing is kept in the browser's session; a secret of this process is enough to sign an empty one.
        storage_secret=secrets.token_hex(32),
    )


async def _live(page: _Page, clock: Clock) -> None:
    refresh = _guarded(page, clock)
    await refresh()
    ui.timer(_REFRESH_S, refresh, immediate=False)


def _guarded(page: _Page, clock: Clock) -> Callable[[], Awaitable[Any]]:
    """A refresh whose failure becomes a notice: the page keeps what it had and asks again a second later."""

    async def refresh() -> None:
        now = clock.now()
        try:
            await page.refresh(now=now)
        except AtollError as error:
            page.frame.trouble(str(error))
        except Exception as error:  # noqa: BLE001 - the page's outer edge: a person reads it, the next second tries again
            page.frame.trouble(f"The dashboard could not read the cluster ({type(error).__name__}: {error}).")
        else:
            page.frame.fresh(wording.clock_time(now))

    return refresh


def _missing(run: str, problem: str) -> None:
    frame = Frame("No such run", run)
    with frame.body:
        Empty("No such run", problem)
        ui.link("All runs", "/")
