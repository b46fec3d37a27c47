import asyncio
import contextlib

import httpx
import pytest

from atoll.control_plane.http_gateway import gateway
from atoll.control_plane.rest_auth import Guard
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader, running
from atoll.control_plane.rest_people import People
from atoll.control_plane.rest_server import application, refuse_the_rest
from atoll.control_plane.rest_signin import COOKIE
from atoll.control_plane.rest_source import ClusterSource
from atoll.schema.people import Role, UserWish
from atoll.schema.spec import JobSpec

TOKEN = "t0ken-of-this-test"


class StillClock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.at = 1_000_000.0

    def now(self):
        return self.at

    def monotonic(self):
        return self.at


class Site:
    """The REST application in memory, asked without a socket."""

    def __init__(self):
        self.reader = MemoryReader()
        self.control = MemoryControl(self.reader)
        self.source = ClusterSource(self.reader, self.control)
        self.token = TOKEN
        self.clock = StillClock()
        self.people = People(TOKEN, clock=self.clock)
        self.application = application(self.source)
        self.application.include_router(gateway(self.source.servers))
        refuse_the_rest(self.application)
        hosts = frozenset({"127.0.0.1", "localhost"})
        self.app = Guard(self.application, token=TOKEN, hosts=hosts, people=self.people)

    def ask(self, method, path, *, token=TOKEN, headers=None, base="http://127.0.0.1:8440", **rest):
        own = {"Authorization": f"Bearer {token}"} if token else {}

        async def once():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, headers={**own, **(headers or {})}, **rest)

        return asyncio.run(once())

    def get(self, path, **rest):
        return self.ask("GET", path, **rest)

    def post(self, path, **rest):
        return self.ask("POST", path, **rest)

    def user(self, name="ann", role="user", team=None, days=90.0):
        """Add a user; the token."""
        return asyncio.run(self.people.add(UserWish(name=name, role=Role(role), team=team, days=days))).token

    def sign_in(self, token=TOKEN):
        """What a browser sends as its cookies after the form."""
        answer = self.post("/login", token=None, data={"token": token})
        return f"{COOKIE}={answer.cookies[COOKIE]}"

    def websocket(self, headers):
        """What is answered to a socket that asks to be opened."""
        sent = []

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items() if value is not None]
        scope = {"type": "websocket", "path": "/_nicegui_ws/", "query_string": b"", "headers": raw, "scheme": "ws"}
        with contextlib.suppress(RuntimeError):  # the application has no such socket: it was let through
            asyncio.run(self.app(scope, receive, send))
        return [(m["type"], m["code"]) for m in sent if m.get("reason") == "refused"]

    def add_run(self, run="tiny-1", owner="", **changes):
        self.reader.views[run] = running(run, a_spec(owner=owner))
        self.reader.become(run, **changes)


def a_spec(**changes):
    return JobSpec(**{"name": "tiny", "working_dir": "/work", "file": "train.py", "workers": 2, **changes})


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def spec():
    return a_spec()
