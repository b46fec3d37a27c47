"""Epochs whose ranks are all in this process, and a check that nothing of them stays behind."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
from atoll.schema.messages import Member, Membership

SECRET = b"s" * 32
RUN = RunId("run-1")


def membership_of(listeners, epoch=1):
    members = tuple(
        Member(trainer=TrainerId(f"t{i}"), rank=Rank(i), node=NodeId("n"), host=listener.host, port=listener.port)
        for i, listener in enumerate(listeners)
    )
    return Membership(run=RUN, epoch=Epoch(epoch), members=members)


class Place:
    """Listeners and communicators that are closed at the end of a test."""

    def __init__(self):
        self.listeners, self.comms = [], []

    def listen(self, count=1, secret=SECRET, run=RUN):
        from atoll.collectives.tcp_transport import Listener

        made = [Listener("127.0.0.1", secret, run) for _ in range(count)]
        self.listeners += made
        return made

    def connect(self, membership, listeners, deadline_s=5.0, cancelled=lambda: False, on_wait=None):
        return self.meet(dict.fromkeys(range(len(listeners)), membership), listeners, on_wait, deadline_s, cancelled)

    def meet(self, memberships, listeners, on_wait=None, deadline_s=5.0, cancelled=lambda: False):
        """Each rank by its own view of the membership."""
        from atoll.collectives.tcp_communicator import connect

        with ThreadPoolExecutor(len(listeners)) as pool:
            futures = [
                pool.submit(
                    connect,
                    memberships[i],
                    TrainerId(f"t{i}"),
                    listener,
                    deadline_s=deadline_s,
                    cancelled=cancelled,
                    on_wait=None if on_wait is None else functools.partial(on_wait, i),
                )
                for i, listener in enumerate(listeners)
                if listener is not None
            ]
        made = [f.result() for f in futures]
        self.comms += made
        return made

    membership = staticmethod(membership_of)

    def epoch(self, size, number=1, on_wait=None):
        listeners = self.listen(size)
        return self.connect(membership_of(listeners, number), listeners, on_wait=on_wait)

    def on(self, topology, nodes=None, number=1):
        """An epoch with a rank on each node, told the topology; its listeners have a door at each NIC."""
        from atoll.collectives.tcp_transport import Listener

        nics = {host.node: [(nic.name, nic.host) for nic in host.nics] for host in topology.hosts}
        nodes = list(nics) if nodes is None else nodes
        listeners = [Listener("127.0.0.1", SECRET, RUN, nics[node]) for node in nodes]
        self.listeners += listeners
        members = tuple(
            Member(trainer=TrainerId(f"t{i}"), rank=Rank(i), node=node, host=x.host, port=x.port, doors=x.doors)
            for i, (node, x) in enumerate(zip(nodes, listeners, strict=True))
        )
        membership = Membership(run=RUN, epoch=Epoch(number), members=members, topology=topology)
        return self.connect(membership, listeners)

    def close(self):
        for thing in (*self.comms, *self.listeners):
            thing.close()


@pytest.fixture
def place():
    """Where a test opens listeners and epochs; at its end no thread and no descriptor of them may be left."""
    before = open_files()
    here = Place()
    yield here
    here.close()
    assert left_over(before) == ([], set())


def open_files():
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found.add((fd.name, str(fd.readlink())))
    return found


def left_over(before):
    """Threads and sockets of ours, once those that are just ending had a moment."""
    until = time.monotonic() + 1.0
    while True:
        threads = [t.name for t in threading.enumerate() if t.name.startswith("atoll-")]
        files = {f for f in open_files() - before if f[1].startswith(("socket:", "anon_inode:[event"))}
        if not (threads or files) or time.monotonic() > until:
            return threads, files
        time.sleep(0.01)
