"""A control plane that is a gRPC server in this process, and the one node that it leads: for tests of the agent."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil

from atoll.schema.agent_pb2 import Frame
from atoll.schema.agent_pb2_grpc import ControlPlaneServicer, add_ControlPlaneServicer_to_server
from atoll.schema.codec import Registry, decode_as, encode
from atoll.schema.handshake import Challenge, Proof, check, proof
from atoll.schema.messages import (
    AGENT_FACTS,
    PROTOCOL,
    Adopt,
    AgentBeat,
    AgentHello,
    LeaveNode,
    PeersWatched,
    StartTrainer,
    StepCommitted,
    TrainerExited,
    TrainerSaid,
    TrainerStarted,
    TrainerWatched,
    Versions,
)
from atoll.schema.spec import JobSpec
from atoll.workers.agent_launch_runtime import launch
from atoll.workers.proc_runtime import lives, my_start_ticks, start_ticks

SCRIPT = '''
import multiprocessing
import os
import subprocess
import sys
import time

from atoll.schema.messages import StepCommitted

print("loaded", __name__)


def quick(ctx):
    print("hello from", os.environ["GREETING"], os.getcwd() == sys.path[0], __name__ in sys.modules)


def wait(ctx):
    """Until told to stop; a child of its own stands for a loader process."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    host, step = ctx._host, 0
    while host.mailbox.stop is None:
        step += 1
        host.tell(StepCommitted(trainer=host.identity.trainer, epoch=1, step=step, at=0.0, step_s=0.05, samples=1))
        time.sleep(0.05)
    child.kill()
    child.wait()


def spawned(ctx):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    worker = context.Process(target=double, args=(answers, 21))
    worker.start()
    print("answer", answers.get())
    worker.join()


def double(answers, value):
    answers.put(value * 2)


def bad(ctx):
    raise ValueError("no such luck")
'''


class FakeControl(ControlPlaneServicer):
    """Keeps every trainer it is told of, says what it is asked to, and remembers what it hears."""

    def __init__(self, secret, *, incarnation=1, port=0, beat=True):
        self.secret = secret
        self.incarnation = incarnation
        self.beat = beat
        self.process = (os.getpid(), my_start_ticks())
        self.facts = []
        self.hellos = []
        self.agent_log = Path(os.devnull)
        self._changed = threading.Condition()
        self._commands = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="fake-control")
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        add_ControlPlaneServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        self._closing = threading.Event()

    def close(self):
        self._closing.set()
        self._server.stop(0).wait(5)
        self._pool.shutdown()

    def command(self, command):
        self._commands.put(command)

    def Attach(self, request_iterator, context):  # noqa: N802 - gRPC's name
        node = dict(context.invocation_metadata())["atoll-node"].encode()
        nonce = secrets.token_bytes(32)
        versions = Versions(atoll="0", protocol=PROTOCOL, python="3.11")
        challenge = Challenge(
            nonce=nonce.hex(),
            pid=self.process[0],
            start_ticks=self.process[1],
            incarnation=self.incarnation,
            versions=versions,
        )
        yield self._frame(challenge)
        answer = decode_as(Proof, next(request_iterator).body)
        if not check(self.secret, "agent", nonce, node, bytes.fromhex(answer.mac)):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")
        mac = proof(self.secret, "control", bytes.fromhex(answer.nonce), node)
        yield self._frame(Proof(nonce="", mac=mac.hex()))
        hello = Registry(AGENT_FACTS).decode(next(request_iterator).body)
        yield self._frame(Adopt(incarnation=self.incarnation, keep=tuple(t.trainer for t in hello.trainers)))
        self._hear(hello)
        ended = threading.Event()
        reader = threading.Thread(target=self._read, args=[request_iterator, ended], daemon=True)
        reader.start()
        yield from self._talk(context, ended)

    def _frame(self, message):
        return Frame(incarnation=self.incarnation, body=encode(message))

    def _talk(self, context, ended):
        while context.is_active() and not self._closing.is_set() and not ended.is_set():
            try:
                yield self._frame(self._commands.get(timeout=0.1))
            except queue.Empty:
                if self.beat:
                    yield Frame(incarnation=self.incarnation)

    def _read(self, frames, ended):
        with contextlib.suppress(grpc.RpcError, ValueError):
            for frame in frames:
                for line in frame.body.split(b"\n"):
                    self._hear(Registry(AGENT_FACTS).decode(line))
        ended.set()

    def _hear(self, fact):
        with self._changed:
            (self.hellos if isinstance(fact, AgentHello) else self.facts).append(fact)
            self._changed.notify_all()

    def wait(self, find, timeout=30.0):
        """The first fact for which `find` is true."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = next((f for f in self.facts if find(f)), None)
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                assert left > 0, self._unheard(timeout)
                self._changed.wait(left)

    def _unheard(self, timeout):
        heard = [f for f in self.facts if not quiet(f)]
        return f"not heard within {timeout} s; heard {heard}; the agent's log: {self._log()}"

    def _log(self):
        try:
            return self.agent_log.read_text(errors="replace")[-4000:]
        except OSError as error:
            return str(error)

    def hello(self, timeout=15.0):
        with self._changed:
            assert self._changed.wait_for(lambda: self.hellos, timeout), f"no agent attached; its log: {self._log()}"
            return self.hellos[-1]

    def started(self, trainer):
        return self.wait(lambda f: isinstance(f, TrainerStarted) and f.trainer == trainer)

    def exited(self, trainer):
        return self.wait(lambda f: isinstance(f, TrainerExited) and f.trainer == trainer)

    def said(self, trainer, kind):
        return self.wait(
            lambda f: isinstance(f, TrainerSaid) and isinstance(f.fact, kind) and f.fact.trainer == trainer
        ).fact


def quiet(fact):
    return isinstance(fact, AgentBeat | TrainerWatched | PeersWatched) or (
        isinstance(fact, TrainerSaid) and isinstance(fact.fact, StepCommitted)
    )


class Cluster:
    """One node: its directories, its control plane, its agent."""

    def __init__(self, tmp_path, *, deep=False):
        self.home = tmp_path / "home"
        self.state_dir = self.home / "nodes" / ("n" * (120 if deep else 4)) / "key"
        self.work = tmp_path / "work"
        self.work.mkdir()
        (self.work / "job.py").write_text(SCRIPT)
        self.secret = secrets.token_bytes(32)
        self.control = FakeControl(self.secret)
        self.head = 0
        self.pid = 0
        self.ticks = 0

    def config(self):
        return {
            "node": "node-127-0-0-1",
            "address": "127.0.0.1",
            "state_dir": str(self.state_dir),
            "home": str(self.home),
            "control": f"127.0.0.1:{self.control.port}",
            "secret": self.secret.hex(),
            "head": bool(self.head),
            "web": {"host": "127.0.0.1", "port": self.head, "cluster_dir": str(self.home)} if self.head else None,
            "ray_address": "",
        }

    def launch(self):
        self.control.agent_log = self.state_dir / "agent.log"
        self.pid = launch(self.config())
        self.ticks = start_ticks(self.pid)
        return self.control.hello()

    def restart_control(self, **changes):
        port = self.control.port
        self.control.close()
        self.control = FakeControl(self.secret, port=port, **changes)
        self.control.agent_log = self.state_dir / "agent.log"
        return self.control

    def start(self, trainer, function="wait", **changes):
        fields = {"name": "job", "working_dir": str(self.work), "file": "job.py", "env": {"GREETING": "env"}}
        spec = JobSpec(**(fields | {"function": function} | changes))
        self.control.command(
            StartTrainer(run="run-1", trainer=trainer, seat="s", spec=spec, run_dir=self.run_dir, secret="ab" * 16)
        )

    @property
    def run_dir(self):
        return str(self.home / "runs" / "run-1")

    def log(self, trainer):
        return Path(self.run_dir, "logs", f"{trainer}.log").read_text()

    def child_of(self, trainer):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                for line in self.log(trainer).splitlines():
                    if line.startswith("child "):
                        return psutil.Process(int(line.split()[1]))
            time.sleep(0.05)
        raise AssertionError(f"{trainer} did not say its child: {self.log(trainer)}")

    def zygote(self):
        return next(p for p in psutil.Process(self.pid).children() if "zygote" in " ".join(p.cmdline()))

    def await_other_zygote(self, pid):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(StopIteration, psutil.NoSuchProcess):
                if self.zygote().pid != pid:
                    return
            time.sleep(0.02)
        raise AssertionError("the zygote was not started again")

    def close(self):
        self.control.command(LeaveNode(reason="test over"))
        try:
            wait_gone(self.pid, self.ticks)
        finally:
            self.control.close()


def wait_gone(pid, ticks, timeout=10.0):
    deadline = time.monotonic() + timeout
    while lives(pid, ticks):
        assert time.monotonic() < deadline, f"{pid} still lives"
        time.sleep(0.02)
