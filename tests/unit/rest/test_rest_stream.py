import asyncio
import json

import pytest

from atoll.control_plane.rest_stream import Cursor, follow
from atoll.schema.views import RunState


def messages(site, run, cursor=None, until=None):
    """(event, id, data) of the messages about `run`; `until(number)` may change the site between polls."""

    async def collect():
        got = []
        async for message in follow(site.source, run, cursor or Cursor(), poll_s=0):
            got.append((message.event, message.id, json.loads(message.data)))
            if until is not None:
                until(len(got))
        return got

    return asyncio.run(collect())


def test_ended_run_is_told_in_the_order_of_time_with_its_state_last(site):
    site.add_run()
    site.reader.tell("tiny-1", "tiny-1", "epoch", "one")
    site.reader.commit("tiny-1", 1, loss=1.0)
    site.reader.commit("tiny-1", 2, loss=0.5)
    site.reader.tell("tiny-1", "tiny-1", "ended", "two")
    site.reader.become("tiny-1", state=RunState.SUCCEEDED)
    got = messages(site, "tiny-1")
    assert [kind for kind, _, _ in got] == ["event", "metric", "event", "metric", "state"]
    assert got[-1][1] == "2.2"


def test_reader_that_comes_back_with_any_id_misses_and_repeats_nothing(site):
    site.add_run()
    for number in range(1, 6):
        site.reader.tell("tiny-1", "tiny-1", "note", str(number))
        site.reader.commit("tiny-1", number, loss=1.0)
    site.reader.become("tiny-1", state=RunState.FAILED)
    whole = messages(site, "tiny-1")
    for cut, (_, last_id, _) in enumerate(whole[:-1], 1):
        assert messages(site, "tiny-1", Cursor.parse(last_id, 0, -1)) == whole[cut:]


def test_state_is_told_at_once_and_again_only_when_more_than_the_step_changed(site):
    site.add_run()

    def change(number):
        if number == 1:
            site.reader.commit("tiny-1", 1, loss=1.0)
        if number == 2:
            site.reader.become("tiny-1", members=1)
        if number == 3:
            site.reader.become("tiny-1", state=RunState.STOPPED)

    got = messages(site, "tiny-1", until=change)
    assert [(kind, data.get("members"), data.get("state")) for kind, _, data in got] == [
        ("state", 2, "running"),
        ("metric", 2, None),
        ("state", 1, "running"),
        ("state", 1, "stopped"),
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (5, 7)),
        ("", (5, 7)),
        ("9.3", (9, 7)),
        ("3.9", (5, 9)),
        ("8.-1", (8, 7)),
        ("x.y", (5, 7)),
        ("8", (5, 7)),
        ("-8.2", (5, 7)),
        ("1e9.2", (5, 7)),
        ("9.--9", (5, 7)),
        (f"{10**18}.9", (5, 7)),
        (f"9.{'9' * 5000}", (5, 7)),
    ],
)
def test_cursor_is_the_later_of_query_and_header_whatever_the_header_holds(header, expected):
    cursor = Cursor.parse(header, 5, 7)
    assert (cursor.after, cursor.after_step) == expected


def test_stream_over_http_is_server_sent_events(site):
    site.add_run(state=RunState.SUCCEEDED)
    answer = site.get("/api/runs/tiny-1/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("id: 0.-1\r\nevent: state\r\ndata: {")
