import asyncio

import httpx
import pytest

from atoll.control_plane.rest_auth import Guard
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader, running
from atoll.control_plane.rest_server import application
from atoll.control_plane.rest_source import ClusterSource
from atoll.schema.spec import JobSpec

TOKEN = "t0ken-of-this-test"


class Site:
    """The REST application in memory, asked without a socket."""

    def __init__(self):
        self.reader = MemoryReader()
        self.control = MemoryControl(self.reader)
        self.source = ClusterSource(self.reader, self.control)
        self.token = TOKEN
        app = application(self.source)
        self.app = Guard(app, token=TOKEN, hosts=frozenset({"127.0.0.1", "localhost"}))

    def ask(self, method, path, *, token=TOKEN, headers=None, **rest):
        own = {"Authorization": f"Bearer {token}"} if token else {}

        async def once():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8440") as client:
                return await client.request(method, path, headers={**own, **(headers or {})}, **rest)

        return asyncio.run(once())

    def get(self, path, **rest):
        return self.ask("GET", path, **rest)

    def post(self, path, **rest):
        return self.ask("POST", path, **rest)

    def add_run(self, run="tiny-1", **changes):
        self.reader.views[run] = running(run, a_spec())
        self.reader.become(run, **changes)


def a_spec(**changes):
    return JobSpec(**{"name": "tiny", "working_dir": "/work", "file": "train.py", "workers": 2, **changes})


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def spec():
    return a_spec()
