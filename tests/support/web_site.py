"""The whole web process over a cluster in memory, the dashboard included, until standard input closes.

Prints one JSON line: its URL, and the tokens of a viewer and a user by name.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading

import uvicorn

from atoll.control_plane.rest_memory import MemoryControl, MemoryReader, running
from atoll.control_plane.rest_people import People
from atoll.control_plane.web_server import bind, create_app
from atoll.schema.people import Role, UserWish
from atoll.schema.spec import JobSpec


async def _tokens(people):
    roles = {"eve": Role.VIEWER, "ann": Role.USER}
    return {name: (await people.add(UserWish(name=name, role=role))).token for name, role in roles.items()}


def main():
    reader = MemoryReader()
    reader.views["tiny-1"] = running("tiny-1", JobSpec(name="tiny", working_dir="/code", file="train.py", owner="ann"))
    people = People("own")
    tokens = asyncio.run(_tokens(people))
    app = create_app(reader, MemoryControl(reader), "own", people=people)
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        threading.Thread(target=_end_with_input, args=(server,), name="atoll-test-input", daemon=True).start()
        sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}", **tokens}) + "\n")
        sys.stdout.flush()
        server.run(sockets=[listener])


def _end_with_input(server):
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
