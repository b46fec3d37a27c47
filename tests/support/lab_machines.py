"""Atoll in the head of a lab whose hosts are machines: none of them runs at first, and the autoscaler starts them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import atoll
from atoll.cli_autoscale import RestCluster
from atoll.clock import SystemClock
from atoll.control_plane.autoscaling.core import Autoscaler
from atoll.control_plane.autoscaling.lab_provider_runtime import LabProvider
from atoll.control_plane.autoscaling.loop_runtime import Loop
from atoll.control_plane.autoscaling.spec_toml import parse
from atoll.errors import LabError
from atoll.lab import ray_nodes
from atoll.lab.lab_runtime import attach, raised
from atoll.lab.spec import HostSpec, LabSpec, Network, NicSpec, with_head
from benchmarks.recovery_ground import RELAY, SHARED_FOLDER, atoll_up

TRIES = 3
SCRIPTS = Path(__file__).resolve().parents[1] / "integration" / "scripts"


def spec(names, cpus=1):
    """Hosts of these names on one network; a `LabSpec` is taken as it is."""
    if isinstance(names, LabSpec):
        return replace(names, name="machines")
    nic = (NicSpec(name="net", network="lan"),)
    hosts = tuple(HostSpec(name=name, nics=nic, num_cpus=cpus) for name in names)
    return LabSpec(name="machines", networks=(Network(name="lan", rate=400e6),), hosts=hosts)


class Machines:
    """The lab, a client of the cluster in its head, and the autoscaler at work: on a thread here, or as a command there."""

    def __init__(self, lab, home, client, text, *, command):
        self.lab, self.home, self.client, self.said = lab, home, client, []
        self.loop, self._child = None, None
        begin = self._begin_command if command else self._begin_thread
        begin(text)

    def _begin_command(self, text):
        (self.home / "autoscaler.toml").write_text(text)
        words = ["autoscale", "--file", str(self.home / "autoscaler.toml"), "--lab", self.lab.name]
        self._child = subprocess.Popen(
            self._words("head", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.home
        )
        read = threading.Thread(target=lambda: self.said.extend(self._child.stdout), daemon=True, name="atoll-said")
        self._thread, self._stop = read, None
        read.start()

    def _begin_thread(self, text):
        lab, client = self.lab, self.client
        self.scaling = parse(text, "autoscaler.toml")
        core = Autoscaler(self.scaling, tag="t")
        door = RestCluster(client, self.scaling)
        self._stop = threading.Event()
        self.loop = Loop(core, LabProvider(lab, self.scaling), door, SystemClock(), self.said.append)
        self._thread = threading.Thread(target=self.loop.run, args=(self._stop,), daemon=True, name="atoll-autoscale")
        self._thread.start()

    def end(self):
        if self._child is not None:
            self._child.terminate()
            assert self._child.wait(30) == 0, "".join(self.said)
        else:
            self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._child is not None:
            self._child.stdout.close()

    def _words(self, host, *words):
        atoll_words = ["env", f"ATOLL_HOME={self.home}", "PYTHONUNBUFFERED=1", sys.executable]
        argv = [*atoll_words, "-c", "from atoll.cli import main; main()", *words]
        return attach(self.lab.name, home=self.home).words(host, argv)

    def told(self, words):
        return [line for line in self.said if words in line]

    def machines(self):
        """Host -> instance of those that the cluster calls alive."""
        nodes = [n for n in self.client.nodes() if n.alive and "atoll-instance" in n.labels]
        return {n.labels["atoll-host"]: n for n in nodes}

    def submit(self, name, **options):
        """`atoll submit` in the head; returns the run."""
        words = [
            "submit",
            str(SCRIPTS / "tiny.py"),
            "--name",
            name,
            "--spares",
            "0",
            "--set",
            "steps=1000000",
            "--set",
            "pause_s=0.2",
        ]
        words += [w for key, value in options.items() for w in (f"--{key.replace('_', '-')}", str(value))]
        return self.inside("head", *words).split()[-1]

    def inside(self, host, *words):
        done = subprocess.run(
            self._words(host, *words), capture_output=True, text=True, timeout=120, check=False, cwd=self.home
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def until(self, what, seconds=90.0):
        end = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < end, "\n".join([f"not within {seconds} s", *self.said])
            time.sleep(0.2)
        return value


@contextlib.contextmanager
def machines(names, text, *, command=False):
    """All of it, and nothing left afterwards."""
    home = Path(tempfile.mkdtemp(prefix="atoll-m-", dir=SHARED_FOLDER))
    try:
        with with_ray(names, home) as lab, over(lab, home) as client:
            here = Machines(lab, home, client, text, command=command)
            try:
                yield here
            finally:
                here.end()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def with_ray(names, home):
    """A lab with Ray's head alone. Ray gives up after 30 s of an overloaded machine: tried again then."""
    with contextlib.ExitStack() as stack:
        for left in reversed(range(TRIES)):
            lab = stack.enter_context(raised(with_head(replace(spec(names), shared=(str(home),))), home=home))
            try:
                ray_nodes.start_head(lab)
                break
            except LabError as error:
                if not left or "timed out during startup" not in str(error):
                    raise
                lab.down()
        yield lab


@contextlib.contextmanager
def over(lab, home):
    """`atoll up` in the head, and a client that reaches it through a relay."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = lab.words("head", [sys.executable, "-S", str(RELAY), str(listener.fileno())])
        relay = subprocess.Popen(words, pass_fds=[listener.fileno()])
    try:
        atoll_up(lab, home, port)
        with atoll.Client(f"http://127.0.0.1:{port}", (home / "token").read_text().strip()) as client:
            yield client
    finally:
        relay.kill()
        relay.wait()
