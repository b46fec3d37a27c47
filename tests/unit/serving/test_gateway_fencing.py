"""Replicas that answer after they were declared lost: woken after a freeze, or cut off from the control plane only."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from fake_replicas import EVENTS, FakeReplica, block, reply, server
from fastapi import FastAPI

from atoll.control_plane import http_gateway
from atoll.control_plane.http_gateway import gateway
from atoll.errors import ConnectError

HEAD = f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n".encode()
END = b"0\r\n\r\n"
ASK = {"model": "tiny", "prompt": "x", "stream": True}


@pytest.fixture(autouse=True)
def always_look(monkeypatch):
    monkeypatch.setattr(http_gateway, "_LOOK_EVERY_S", 0.0)


class ControlPlane:
    """Who the replicas are; `away` is one that does not answer."""

    def __init__(self):
        self.servers, self.away, self.asked = [], False, 0

    async def now(self):
        self.asked += 1
        if self.away:
            raise ConnectError("the control plane does not answer")
        return list(self.servers)

    def fence(self, name):
        self.servers = [s for s in self.servers if s["trainer"] != name]


@asynccontextmanager
async def cluster(*replicas):
    plane = ControlPlane()
    listeners = [await asyncio.start_server(r.answer, "127.0.0.1", 0) for r in replicas]
    ports = [one.sockets[0].getsockname()[1] for one in listeners]
    plane.servers = [server(r.name, port=p) for r, p in zip(replicas, ports, strict=True)]
    app = FastAPI()
    app.include_router(gateway(plane.now))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            yield client, plane
    finally:
        for one in listeners:
            one.close()
            await one.wait_closed()


async def asked_of(replica, plane, client, **body):
    """A request that `replica` has in hand."""
    asking = asyncio.create_task(client.post("/v1/completions", json={**ASK, **body}))
    await asyncio.wait_for(replica.came.wait(), 5)
    return asking


def test_answer_of_a_replica_fenced_meanwhile_is_dropped_and_another_asked():
    async def play():
        woken = asyncio.Event()
        zombie, other = FakeReplica("a", woken, reply({"from": "a"})), FakeReplica("b")
        async with cluster(zombie, other) as (client, plane):
            asking = await asked_of(zombie, plane, client, stream=False)
            plane.fence("a")
            woken.set()
            return (await asking).json()

    assert asyncio.run(play()) == {"from": "b"}


def test_first_piece_of_a_replica_fenced_meanwhile_is_dropped_and_another_asked():
    async def play():
        woken = asyncio.Event()
        zombie = FakeReplica("a", HEAD, woken, block(b"data: old\n\n"), END)
        other = FakeReplica("b", HEAD, block(b"data: new\n\n"), END)
        async with cluster(zombie, other) as (client, plane):
            asking = await asked_of(zombie, plane, client)
            plane.fence("a")
            woken.set()
            return (await asking).text

    assert asyncio.run(play()) == "data: new\n\n"


def test_stream_of_a_replica_fenced_in_the_middle_ends_with_an_error():
    async def play():
        woken = asyncio.Event()
        zombie = FakeReplica("a", HEAD, block(b"data: 1\n\n"), woken, block(b"data: 2\n\n"), END)
        async with cluster(zombie) as (client, plane):
            asking = await asked_of(zombie, plane, client)
            for _ in range(200):
                if plane.asked >= 2:  # the first piece was held against the list
                    break
                await asyncio.sleep(0.005)
            plane.fence("a")
            woken.set()
            return (await asking).text

    text = asyncio.run(play())
    assert text.startswith("data: 1\n\n")
    assert "data: 2" not in text
    assert "replica-lost" in text


def test_streams_go_on_while_the_control_plane_is_away():
    async def play():
        on = asyncio.Event()
        replica = FakeReplica("a", HEAD, block(b"data: 1\n\n"), on, block(b"data: 2\n\n"), END)
        async with cluster(replica) as (client, plane):
            asking = await asked_of(replica, plane, client)
            plane.away = True
            on.set()
            return (await asking).text

    assert asyncio.run(play()) == "data: 1\n\ndata: 2\n\n"
