"""What a page that stays open may still do: it asks past the routes, and is asked the same as they ask."""

import asyncio

import pytest

from atoll.control_plane.rest_pages import PageSource
from atoll.errors import AuthError, ConnectError, ForbiddenError
from atoll.schema.ids import RunId
from atoll.schema.views import RunState

RUN = RunId("tiny-1")


def page_of(site, token):
    caller = site.people.by_token(token, "here")
    scope = {"type": "http", "path": "/runs/tiny-1", "method": "GET", "client": ("10.0.0.9", 1)}
    return PageSource(source=site.source, people=site.people, caller=caller, scope=scope)


def stop(page):
    asyncio.run(page.stop(RUN))


@pytest.fixture
def hers(site):
    site.add_run(owner="ann")
    return site


def lines(site):
    return [(a["user"], a["method"], a["path"], a["source"], a["status"]) for a in site.get("/api/audit").json()]


def test_page_of_the_owner_stops_the_run_and_that_is_written_down(hers):
    stop(page_of(hers, hers.user("ann")))
    assert hers.reader.views[RUN].state is RunState.STOPPED
    assert "by ann" in hers.reader.views[RUN].reason
    assert lines(hers) == [("ann", "PAGE", "/api/runs/tiny-1/stop", "10.0.0.9", 202)]


@pytest.mark.parametrize(("name", "role"), [("eve", "viewer"), ("bob", "user")])
def test_page_of_somebody_else_stops_nothing_and_that_is_written_down(hers, name, role):
    page = page_of(hers, hers.user(name, role))
    with pytest.raises(ForbiddenError):
        stop(page)
    assert hers.control.asked == []
    assert lines(hers) == [(name, "PAGE", "/api/runs/tiny-1/stop", "10.0.0.9", 403)]


def test_page_of_an_operator_stops_any_run(hers):
    stop(page_of(hers, hers.user("ops", "operator")))
    assert hers.reader.views[RUN].state is RunState.STOPPED


def test_stop_that_failed_is_written_down_as_such(hers):
    hers.control.away = True
    page = page_of(hers, hers.user("ann"))
    with pytest.raises(ConnectError):
        stop(page)
    assert lines(hers)[0][-1] == 503


@pytest.mark.parametrize(
    "read",
    [
        lambda page: page.runs(),
        lambda page: page.run(RUN),
        lambda page: page.events(None, 0),
        lambda page: page.metrics(RUN, 0),
        lambda page: page.checkpoints(RUN),
        lambda page: page.nodes(),
        lambda page: page.topology(),
        lambda page: page.stop(RUN),
    ],
    ids=["runs", "run", "events", "metrics", "checkpoints", "nodes", "topology", "stop"],
)
def test_open_page_sees_and_does_nothing_more_once_its_token_is_revoked(hers, read):
    page = page_of(hers, hers.user("ann"))
    hers.post("/api/users/ann/revoke", json={})
    with pytest.raises(AuthError):
        asyncio.run(read(page))
    assert hers.control.asked == []
