"""Hosts that probe one another as agents do, driven as the control plane does; without gRPC, Ray or torch.

As a script it is one host's agent: `probing_host.py NODE ADDRESS` says its `AgentHello`, then carries out a `ProbePeer` for
each line on standard input and says a `PeerProbed`; it ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import threading
import time

from atoll.clock import SystemClock
from atoll.control_plane.probes import Probes
from atoll.schema.codec import Registry, encode
from atoll.schema.messages import AgentHello, PeerProbed, ProbePeer, Versions
from atoll.workers.nic_runtime import nics
from atoll.workers.probe_runtime import ProbeService

SECRET = b"probing" * 4
QUIET_S = 0.7


class Hosts:
    """The agents of some hosts, started by `popen(host, argv, **options)`, and what is known of their links."""

    def __init__(self, popen, addresses):
        self.probes = Probes()
        self.told, self.problems = [], []
        self._said = queue.SimpleQueue()
        self._agents = {}
        for host, address in addresses.items():
            argv = [sys.executable, __file__, host, address]
            self._agents[host] = popen(host, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            reader = threading.Thread(target=self._read, args=[host], name="atoll-test-host", daemon=True)
            reader.start()
        for _ in addresses:
            _, hello = self._said.get(timeout=30)
            self.probes.attached(hello, {}, clock=time.monotonic(), now=SystemClock().now())

    def _read(self, host):
        registry = Registry((AgentHello, PeerProbed))
        for line in self._agents[host].stdout:
            self._said.put((host, registry.decode(line)))

    def survey(self, limit_s):
        """Let the hosts probe one another until there is nothing left to ask."""
        end, quiet = time.monotonic() + limit_s, None
        while time.monotonic() < end:
            changes, orders = self.probes.tick(clock=time.monotonic(), now=SystemClock().now(), busy=())
            self.told += changes
            for host, order in orders:
                self._agents[host].stdin.write(encode(order) + b"\n")
                self._agents[host].stdin.flush()
            with contextlib.suppress(queue.Empty):
                while True:
                    _, fact = self._said.get(timeout=0.05)
                    self.problems += [fact.problem] * bool(fact.problem)
                    self.told += self.probes.probed(fact, clock=time.monotonic(), busy=())
            if orders or not self.probes.settled:
                quiet = None
            elif quiet is None:
                quiet = time.monotonic() + QUIET_S
            elif time.monotonic() > quiet:
                return
        raise AssertionError(f"not settled in {limit_s} s: {self.probes.known.topology}, {self.problems}")

    def close(self):
        for agent in self._agents.values():
            agent.stdin.close()
        for agent in self._agents.values():
            agent.wait(10)
            agent.stdout.close()


async def main(node, address):
    found = nics(address)
    service = ProbeService(node, found, SECRET, SystemClock().now)
    hello = AgentHello(
        node=node,
        pid=0,
        address=address,
        state_dir="",
        versions=Versions(atoll="", protocol=1, python=""),
        last_incarnation=0,
        nics=found,
        doors=service.doors,
    )
    say(hello)
    serving = asyncio.create_task(service.serve())
    orders = Registry((ProbePeer,))
    under_way = set()
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        task = asyncio.create_task(service.measure(orders.decode(line)))
        under_way.add(task)
        task.add_done_callback(lambda done: say(done.result()))
    service.close()
    serving.cancel()
    await asyncio.gather(serving, *under_way, return_exceptions=True)


def say(message):
    sys.stdout.buffer.write(encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
