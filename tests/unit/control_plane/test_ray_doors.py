import asyncio
import contextlib
import socket

import grpc
import grpc.aio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from atoll.clock import SystemClock
from atoll.control_plane import ray_doors
from atoll.control_plane.ray_doors import Door, RayDoors, doors, open_ones

HERE = "127.0.0.1"


@contextlib.asynccontextmanager
async def grpc_door(status):
    """A server that answers any call with `status`, None: with success."""

    class Answers(grpc.GenericRpcHandler):
        def service(self, _):
            async def answer(_, context):
                if status is not None:
                    await context.abort(status, "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Answers(),))
    port = server.add_insecure_port(f"{HERE}:0")
    await server.start()
    yield Door(what="controller", host=HERE, port=port, question=ray_doors._CONTROLLER)
    await server.stop(None)


@contextlib.asynccontextmanager
async def http_door(status):
    async def answer(_):
        return PlainTextResponse("[]", status_code=status)

    listener = socket.create_server((HERE, 0))
    app = Starlette(routes=[Route(ray_doors._JOBS, answer)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield Door(what="Jobs API", host=HERE, port=listener.getsockname()[1], question=ray_doors._JOBS)
    server.should_exit = True
    await serving
    listener.close()


def is_open(made):
    async def look():
        async with made as door:
            return await open_ones([door]) == [door]

    return asyncio.run(look())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, True),
        (grpc.StatusCode.UNIMPLEMENTED, True),
        (grpc.StatusCode.INVALID_ARGUMENT, True),
        (grpc.StatusCode.UNAUTHENTICATED, False),
        (grpc.StatusCode.PERMISSION_DENIED, False),
    ],
)
def test_controller_is_open_unless_it_asks_who_is_there(status, expected):
    assert is_open(grpc_door(status)) is expected


@pytest.mark.parametrize(("status", "expected"), [(200, True), (401, False), (403, False), (404, False)])
def test_jobs_api_is_open_where_it_lists_jobs_to_anybody(status, expected):
    assert is_open(http_door(status)) is expected


def test_port_where_nothing_listens_or_nothing_is_said_is_not_open():
    with socket.create_server((HERE, 0)) as mute:
        port = mute.getsockname()[1]
        silent = [Door(what="x", host=HERE, port=port, question=q) for q in (ray_doors._JOBS, ray_doors._CLIENT)]
        assert asyncio.run(open_ones(silent)) == []
    assert asyncio.run(open_ones(silent)) == []


def test_every_outer_address_is_looked_at_and_the_controllers_own():
    found = {(d.host, d.port) for d in doors("10.0.0.9:6379", ("10.0.0.4",))}
    assert found == {("10.0.0.4", p) for p in (8265, 10001, 6379)} | {("10.0.0.9", 6379)}
    assert {d.host for d in doors("127.0.0.1:6379", ("10.0.0.4",))} == {"10.0.0.4"}
    assert doors("127.0.0.1:6379", ()) == ()


def test_loopback_is_no_address_that_others_reach():
    assert not {"127.0.0.1", "::1"} & set(ray_doors.reachable())
    assert all(ray_doors._is_inner(a) for a in ("127.0.0.1", "::1", "localhost", "169.254.1.1", "fe80::1%eth0"))
    assert not ray_doors._is_inner("10.0.0.4")


def test_open_door_is_a_finding_with_its_remedy_and_a_line_of_the_story(monkeypatch):
    told = []

    async def look():
        async with grpc_door(None) as door:
            watch = RayDoors(f"10.0.0.4:{door.port}", "10.0.0.4", SystemClock(), hosts=lambda: (HERE,))
            monkeypatch.setattr(ray_doors, "doors", lambda *_: (door,))
            await watch.run(told.append)
            return door, await watch.findings()

    door, findings = asyncio.run(look())
    assert [(f.ok, f.node) for f in findings] == [(False, "node-10-0-0-4")]
    assert f"controller at {HERE}:{door.port} answers without a token" in findings[0].detail
    assert "RAY_AUTH_MODE=token" in findings[0].remedy
    assert [(n.kind, n.subject) for n in told] == [("ray-port-open", "node-10-0-0-4")]


def test_closed_doors_are_one_finding_and_no_line(monkeypatch):
    told = []

    async def look():
        async with grpc_door(grpc.StatusCode.UNAUTHENTICATED) as door:
            watch = RayDoors(f"127.0.0.1:{door.port}", "10.0.0.4", SystemClock())
            monkeypatch.setattr(ray_doors, "doors", lambda *_: (door,))
            await watch.run(told.append)
            return await watch.findings()

    (finding,) = asyncio.run(look())
    assert finding.ok
    assert told == []
