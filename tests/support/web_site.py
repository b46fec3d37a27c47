"""The whole web process over a cluster in memory, the dashboard included, until standard input closes.

Prints one JSON line: its URL, and a token of each role by name; that of the cluster is `own`. Its runs end at once, so that
every stream ends, and wrong tokens are not slowed: a program may put thousands of questions to it, as schemathesis does.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading

import uvicorn

from atoll.control_plane.rest_memory import MemoryControl, MemoryReader, running
from atoll.control_plane.rest_people import People
from atoll.control_plane.tries import Tries
from atoll.control_plane.web_server import bind, create_app
from atoll.schema.people import Role, UserWish
from atoll.schema.spec import JobSpec
from atoll.schema.views import NodeView, RunState


class Brief(MemoryControl):
    """A control plane whose runs have ended when they are submitted."""

    async def invoke(self, method, body):
        answer = await super().invoke(method, body)
        if method == "submit":
            self.reader.become(answer["run"], state=RunState.SUCCEEDED, exit_code=0)
        return answer


async def _tokens(people):
    roles = {"eve": Role.VIEWER, "ann": Role.USER, "ops": Role.OPERATOR}
    return {name: (await people.add(UserWish(name=name, role=role))).token for name, role in roles.items()}


def main():
    reader = MemoryReader()
    reader.views["tiny-1"] = running("tiny-1", JobSpec(name="tiny", working_dir="/code", file="train.py", owner="ann"))
    reader.tell("tiny-1", "tiny-1", "epoch", "epoch 1")
    reader.commit("tiny-1", 1, loss=1.0)
    reader.become("tiny-1", state=RunState.SUCCEEDED, exit_code=0)
    reader.hosts = [NodeView(node="node-1", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=2.0, agent=True)]
    people = People("own", tries=Tries(burst=math.inf))
    tokens = asyncio.run(_tokens(people))
    app = create_app(reader, Brief(reader), "own", people=people)
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
