"""The gateway in front of replicas that are a few lines of socket each, so that they can misbehave."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from fake_replicas import EVENTS, FakeReplica, block, reply, server
from fastapi import FastAPI

from atoll.control_plane import http_gateway
from atoll.control_plane.http_gateway import Unroutable, candidates, gateway
from atoll.errors import ConnectError


@asynccontextmanager
async def cluster(*replicas, extra=()):
    """A client of the gateway in front of these replicas."""
    listeners = [await asyncio.start_server(r.answer, "127.0.0.1", 0) for r in replicas]
    ports = [one.sockets[0].getsockname()[1] for one in listeners]
    servers = [*extra, *(server(r.name, r.model, p) for r, p in zip(replicas, ports, strict=True))]

    async def now():
        return servers

    app = FastAPI()
    app.include_router(gateway(now))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            client.app = app
            yield client
    finally:
        for one in listeners:
            one.close()
            await one.wait_closed()


def ask(client, **body):
    return client.post("/v1/completions", json={"prompt": "hi", **body}, headers={"authorization": "Bearer user"})


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def error_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


def test_replicas_of_a_model_take_turns():
    found = [server("a"), server("b"), server("c", "other")]
    assert [[s["trainer"] for s in candidates(found, "tiny", turn)] for turn in range(3)] == [
        ["a", "b"],
        ["b", "a"],
        ["a", "b"],
    ]


@pytest.mark.parametrize(
    ("found", "model", "status", "said"),
    [
        ([], "tiny", 503, "no model is served"),
        ([], None, 503, "no model is served"),
        ([server("a")], "big", 404, "'big' is not served; there are tiny"),
        ([server("a"), server("b", "big")], None, 400, "name one of big, tiny"),
    ],
)
def test_request_without_a_replica_is_refused_with_what_there_is(found, model, status, said):
    with pytest.raises(Unroutable, match=said) as caught:
        candidates(found, model, 0)
    assert caught.value.status == status


def test_only_model_need_not_be_named():
    assert [s["trainer"] for s in candidates([server("a"), server("b")], None, 1)] == ["b", "a"]


def test_request_goes_to_its_model_with_the_secret_instead_of_the_users_token():
    async def run():
        tiny, big = FakeReplica("t"), FakeReplica("b", model="big")
        async with cluster(tiny, big) as client:
            answer = await ask(client, model="big", max_tokens=3)
        assert answer.json() == {"from": "b"}
        assert tiny.asked == []
        [(head, body)] = big.asked
        assert "bearer secret-b" in head.lower()
        assert "user" not in head.lower().replace("user-agent", "")
        assert json.loads(body) == {"prompt": "hi", "model": "big", "max_tokens": 3}

    asyncio.run(run())


def test_turns_are_taken_over_http():
    async def run():
        async with cluster(FakeReplica("a"), FakeReplica("b")) as client:
            return [(await ask(client)).json()["from"] for _ in range(4)]

    assert asyncio.run(run()) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("bad", ["unreachable", "drops", "breaks", "cannot serve"])
def test_replica_that_does_not_answer_is_passed_over(bad):
    async def run():
        parts = {
            "drops": (b"",),
            "breaks": (reply({"a": "long answer"})[:-5],),
            "cannot serve": (reply({"error": {"message": "device lost"}}, "503 Service Unavailable"),),
        }
        extra = [server("x", port=free_port())] if bad == "unreachable" else []
        ill = [] if extra else [FakeReplica("x", *parts[bad])]
        async with cluster(*ill, FakeReplica("b"), extra=extra) as client:
            return [(await ask(client)).json() for _ in range(2)]

    assert asyncio.run(run()) == [{"from": "b"}] * 2


def test_when_no_replica_answers_each_ones_reason_is_said():
    async def run():
        ill = FakeReplica("y", reply({"error": {"message": "device lost"}}, "503 Service Unavailable"))
        async with cluster(ill, extra=[server("x", port=free_port())]) as client:
            return await ask(client)

    answer = asyncio.run(run())
    assert error_of(answer) == (503, "replica-unreachable")
    assert "x: " in answer.json()["error"]["message"]
    assert "y: device lost" in answer.json()["error"]["message"]


def test_slow_replica_is_not_asked_twice(monkeypatch):
    monkeypatch.setattr(http_gateway, "_TIMEOUT", httpx.Timeout(0.05, connect=2.0))

    async def run():
        slow, other, end = FakeReplica("slow"), FakeReplica("other"), asyncio.Event()
        slow.parts = (end,)
        async with cluster(slow, other) as client:
            answer = await ask(client)
            end.set()
        assert other.asked == []
        return answer

    answer = asyncio.run(run())
    assert error_of(answer) == (504, "replica-slow")
    assert "'stream': true" in answer.json()["error"]["message"]


def test_refusal_of_a_replica_comes_back_as_it_is():
    async def run():
        async with cluster(FakeReplica("a", reply({"error": {"code": "x"}}, "400 Bad Request"))) as client:
            return await ask(client)

    assert error_of(asyncio.run(run())) == (400, "x")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad-body"),
        (b"[]", 400, "bad-body"),
        (b"\xff{", 400, "bad-body"),
        (b"[" * 100_000, 400, "bad-body"),
        (b'{"model": 5}', 400, "bad-model"),
        (b'{"model": "none"}', 404, "unknown-model"),
        (b" " * ((8 << 20) + 1), 413, "too-large"),
    ],
)
def test_bad_body_is_refused_before_any_replica_is_asked(body, status, code):
    async def run():
        replica = FakeReplica("a")
        async with cluster(replica) as client:
            answer = await client.post("/v1/completions", content=body)
        assert replica.asked == []
        return answer

    assert error_of(asyncio.run(run())) == (status, code)


def test_models_are_named_once():
    async def run():
        async with cluster(FakeReplica("a"), FakeReplica("b"), FakeReplica("c", model="big")) as client:
            return (await client.get("/v1/models")).json()

    assert [m["id"] for m in asyncio.run(run())["data"]] == ["big", "tiny"]


def test_cluster_that_cannot_be_asked_is_503():
    async def away():
        raise ConnectError("the control plane is away")

    async def run():
        app = FastAPI()
        app.include_router(gateway(away))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            return await client.get("/v1/models"), await ask(client)

    assert [error_of(a) for a in asyncio.run(run())] == [(503, "cannot-connect")] * 2


def stream_of(*parts):
    return FakeReplica("a", f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n".encode(), *parts)


def test_stream_is_passed_on_whole():
    async def run():
        async with cluster(stream_of(block(b"data: 1\n\n"), block(b"data: [DONE]\n\n"), b"0\r\n\r\n")) as client:
            return await ask(client, stream=True)

    answer = asyncio.run(run())
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "data: 1\n\ndata: [DONE]\n\n"


def test_stream_that_breaks_off_ends_with_an_error_chunk():
    async def run():
        async with cluster(stream_of(block(b"data: 1\n\n")), FakeReplica("b")) as client:
            return await ask(client, stream=True)

    first, last, rest = asyncio.run(run()).text.split("\n\n")
    assert (first, rest) == ("data: 1", "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "replica-lost"
    assert "broke off" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_user_that_goes_away_ends_the_connection_to_the_replica(stream):
    async def run():
        end = asyncio.Event()
        replica = stream_of(block(b"data: 1\n\n"), end) if stream else FakeReplica("a")
        replica.parts = replica.parts or (end,)
        async with cluster(replica) as client:
            await leave(client.app, replica)
            await asyncio.wait_for(replica.left.wait(), 5)
            end.set()

    asyncio.run(run())


async def leave(app, replica):
    """One request whose asker goes away as soon as the replica has it."""
    messages = [{"type": "http.request", "body": b'{"prompt": "hi"}', "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await replica.came.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await asyncio.wait_for(app(scope, receive, send), 5)
