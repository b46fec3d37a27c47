"""Ranks in processes of their own: a killed one, a stopped one, the next epoch, and nothing left behind.

Each rank runs this file as a script and obeys one JSON command a line on stdin.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

SECRET, RUN = b"s" * 32, "run-1"
ELEMENTS = 2_000_000
ANSWER_S = 30.0


class Ranks:
    """Processes, one for each trainer."""

    def __init__(self, count):
        command = [sys.executable, __file__]
        self.processes = [
            subprocess.Popen([*command, f"t{i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for i in range(count)
        ]
        self.ports = [self.answer(i)["port"] for i in range(count)]

    def ask(self, which, **command):
        for i in which:
            self.processes[i].stdin.write(json.dumps(command) + "\n")
            self.processes[i].stdin.flush()

    def answer(self, i):
        timer = threading.Timer(ANSWER_S, self.processes[i].kill)
        timer.start()
        line = self.processes[i].stdout.readline()
        timer.cancel()
        assert line, f"rank {i} ended with {self.processes[i].poll()}"
        return json.loads(line)

    def answers(self, which):
        return [self.answer(i) for i in which]

    def connect(self, which, epoch):
        self.ask(which, do="connect", epoch=epoch, members=[(f"t{i}", self.ports[i]) for i in which])
        return self.answers(which)

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate(timeout=10)


@pytest.fixture
def ranks():
    made = Ranks(4)
    yield made
    made.close()


def test_a_killed_rank_is_named_by_all_and_the_rest_go_on_without_it(ranks):
    ranks.connect(range(4), epoch=1)
    ranks.ask(range(4), do="reduce", value=1.0)
    sums = ranks.answers(range(4))
    assert [s["done"] for s in sums] == [True] * 4
    assert len({s["digest"] for s in sums}) == 1

    survivors = [0, 2, 3]
    ranks.ask(survivors, do="reduce", value=2.0)
    time.sleep(0.3)
    killed_at = time.monotonic()
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    poisoned = ranks.answers(survivors)
    assert time.monotonic() - killed_at < 1.0
    assert [p["culprit"] for p in poisoned] == ["t1"] * 3
    assert all(p["intact"] for p in poisoned)

    ranks.connect(survivors, epoch=2)
    ranks.ask(survivors, do="reduce", value=2.0)
    sums = ranks.answers(survivors)
    assert [s["done"] for s in sums] == [True] * 3
    assert [s["first"] for s in sums] == [6.0] * 3
    ranks.ask(survivors, do="leave")
    assert all(a["threads"] == ["MainThread"] and a["sockets"] == 0 for a in ranks.answers(survivors))


def test_an_abort_reaches_all_at_once_beside_a_stopped_rank(ranks):
    ranks.connect(range(4), epoch=1)
    os.kill(ranks.processes[2].pid, signal.SIGSTOP)
    others = [0, 1, 3]
    ranks.ask(others, do="reduce", value=1.0)
    time.sleep(0.3)
    aborted_at = time.monotonic()
    ranks.ask([0], do="abort", culprit="t2")
    answers = ranks.answers(others)
    assert time.monotonic() - aborted_at < 0.5
    assert [a["culprit"] for a in answers] == ["t2"] * 3
    assert all(a["intact"] for a in answers)
    os.kill(ranks.processes[2].pid, signal.SIGCONT)
    ranks.ask([2], do="reduce", value=1.0)
    assert ranks.answer(2)["done"] is False


# -- one rank --------------------------------------------------------------------------------------------------------


class Rank:
    """What a process of these tests does."""

    def __init__(self, name):
        from atoll.collectives.tcp_transport import Listener

        self.name, self.comm = name, None
        self.listener = Listener("127.0.0.1", SECRET, RUN)
        say(port=self.listener.port)

    def obey(self, command):
        match command["do"]:
            case "connect":
                self.connect(command)
            case "reduce":
                threading.Thread(target=self.reduce, args=(command["value"],), daemon=True, name="reducer").start()
            case "abort":
                self.comm.abort("a rank hangs", command["culprit"])
            case "leave":
                self.leave()

    def connect(self, command):
        from atoll.collectives.tcp_communicator import connect
        from atoll.schema.messages import Member, Membership

        if self.comm:
            self.comm.close()
        members = tuple(
            Member(trainer=name, rank=rank, node="n", host="127.0.0.1", port=port)
            for rank, (name, port) in enumerate(command["members"])
        )
        whole = Membership(run=RUN, epoch=command["epoch"], members=members)
        self.comm = connect(whole, self.name, self.listener, deadline_s=10.0, cancelled=lambda: False)
        say(rank=self.comm.rank)

    def reduce(self, value):
        import torch

        buffer = torch.full((ELEMENTS,), value)
        work = self.comm.all_reduce(buffer)
        done = work.wait(20.0)
        digest = buffer.view(torch.int32).sum().item()
        intact = bool((buffer == value).all())
        culprit = work.poison.culprit if work.poison else None
        say(done=done, digest=digest, first=buffer[0].item(), intact=intact, culprit=culprit)

    def leave(self):
        import psutil

        self.comm.close()
        self.listener.close()
        threads = [t.name for t in threading.enumerate() if t.name != "reducer"]
        say(threads=threads, sockets=len(psutil.Process().net_connections()))


def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main():
    rank = Rank(sys.argv[1])
    for line in sys.stdin:
        rank.obey(json.loads(line))


if __name__ == "__main__":
    main()
