"""The ground that faults fall on: a lab with Ray nodes, an Atoll cluster over it, and runs that the benchmark watches.

Two islands of two hosts and a head, one worker a host. All settings are the defaults; a worker asks for a whole CPU of a
host that offers one, so that each host holds one. The head's dashboard is reached through a relay. ATOLL_HOME lies on
this machine's disk, which the hosts share as they would a network file system.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

import atoll
from atoll.errors import LabError
from atoll.lab.lab_runtime import Lab, raised
from atoll.lab.spec import LabSpec
from atoll.schema.ids import RunId
from atoll.schema.spec import JobSpec
from atoll.schema.views import EventView, RunView
from atoll.workers.proc_runtime import send_signal, start_ticks
from benchmarks import networks
from benchmarks.recovery_account import Books, Ledger

WORKERS = 4
JOB = Path(__file__).with_name("recovery_job.py")
RELAY = Path(__file__).with_name("recovery_relay.py")
# A Ray node takes 6-8 s of a core to start, an agent 3 s: on two busy cores half a minute for a host that comes back.
BACK_S = 120.0
UP_S = 240.0
_LOOK_S = 0.02
_RAISES = 3
_DISK_BYTES = 96 << 20
# Hosts keep /tmp to themselves.
SHARED_FOLDER = "/var/tmp"


class NotSteady(Exception):
    """The run did not come (back) to all its members in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A member of a run: where it is, and its process beyond doubt."""

    trainer: str
    rank: int
    host: str
    pid: int
    ticks: int

    def send(self, number: signal.Signals) -> None:
        """Signal exactly this process."""
        send_signal(self.pid, self.ticks, number)


@dataclass(slots=True)
class Run:
    """A run that is watched. `folder` holds its stamps and orders."""

    id: RunId
    folder: Path
    ledger: Ledger

    def books(self) -> Books:
        """What its trainers stamped until now."""
        return self.ledger.look()

    def stamped(self, step: int) -> dict[int, float]:
        """Each process's own processor time when it had committed this step."""
        return self.books().cpu.get(step, {})

    def order(self, pid: int | str, word: str) -> None:
        """Put an order where the trainer of this pid, or the next one, looks for it."""
        file = self.folder / "orders" / str(pid)
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(word)
        fresh.replace(file)


class Ground:
    """A cluster over a lab. Made by `ground`."""

    def __init__(self, lab: Lab, home: Path, client: atoll.Client) -> None:
        self.lab, self.home, self.client = lab, home, client
        self._hosts = {nic.address: host for host in (*lab.hosts, "head") for nic in lab.layout.nics[host]}
        self._token = client.token

    # -- runs --------------------------------------------------------------------------------------------------------

    def submit(self, function: str, *, workers: int = WORKERS, **changes: Any) -> Run:
        """Start a run and wait until all its members train."""
        name = f"{function}-{secrets.token_hex(3)}"
        folder = self.home / "bench" / name
        config = {"stamps": str(folder / "stamps"), "orders": str(folder / "orders")} | changes.pop("config", {})
        spec = JobSpec(
            name=function,
            run_id=RunId(name),
            working_dir=str(JOB.parent),
            file=str(JOB),
            function=function,
            workers=workers,
            cpus_per_worker=1.0,
            config=config,
            detach=True,
            seed=11,
            **changes,
        )
        ledger = Ledger(folder / "stamps", self.home / "runs" / name / "account")
        return Run(self.client.submit(spec), folder, ledger)

    def steady(self, run: Run, limit_s: float = BACK_S, *, steps: int = 4, members: int = WORKERS) -> list[Worker]:
        """The members, once so many have committed `steps` steps together from now on. Raises `NotSteady`."""
        begun = time.monotonic()
        while time.monotonic() < begun + limit_s:
            view = self.client.run(run.id)
            if view.state.ended:
                raise NotSteady(f"{run.id} ended as {view.state}: {view.reason}")
            found = self.members(view)
            if len(found) == members and run.books().steps_since(begun, view.epoch) >= steps:
                return found
            time.sleep(0.1)
        raise NotSteady(f"{run.id} has not {members} members training after {limit_s:g} s: {self.client.run(run.id)}")

    def members(self, view: RunView) -> list[Worker]:
        """Those of the newest epoch, in the order of ranks."""
        workers = [t for t in view.trainers if t.role == "worker" and t.rank is not None and t.pid]
        return [
            Worker(trainer=t.trainer, rank=t.rank, host=self.host_of(t.node), pid=t.pid, ticks=start_ticks(t.pid))
            for t in sorted(workers, key=lambda t: t.rank or 0)
        ]

    def host_of(self, node: str) -> str:
        """The lab's host of a node."""
        return self._hosts[node.removeprefix("node-").replace("-", ".")]

    def events(self, run: Run, after: int = 0) -> list[EventView]:
        """The run's story."""
        return self.client.events(run.id, after)

    def stop(self, run: Run) -> None:
        """End a run, and wait until its seats are free."""
        with contextlib.suppress(atoll.errors.AtollError):
            self.client.stop(run.id, "the benchmark is done with it")
        self.until(lambda: self.client.run(run.id).state.ended, 90.0, f"{run.id} to stop")

    def clear(self) -> None:
        """End every run, also one whose submission got no answer because the control plane was lost just then."""

        def clear() -> bool:
            left = [view.run for view in self.client.runs() if not view.state.ended]
            for run in left:
                with contextlib.suppress(atoll.errors.AtollError):
                    self.client.stop(run, "the benchmark is done with it")
            return not left

        self.until(clear, 90.0, "all runs to stop")

    def until(self, what: Callable[[], Any], limit_s: float, name: str) -> Any:
        """Wait for `what` to be true. Raises `NotSteady`."""
        until = time.monotonic() + limit_s
        while not (found := what()):
            if time.monotonic() > until:
                raise NotSteady(f"waited {limit_s:g} s for {name}")
            time.sleep(_LOOK_S)
        return found

    # -- the cluster -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the control plane says of itself, when it is back if it was just lost. Raises `NotSteady`."""
        headers = {"Authorization": f"Bearer {self._token}"}

        def said() -> Any:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.get(f"{self.client.url}/api/status", headers=headers, timeout=5.0, trust_env=False)
                if not answer.is_server_error:
                    return answer.raise_for_status().json()
            return None

        found: dict[str, Any] = self.until(said, BACK_S, "the control plane to answer")
        return found

    def control(self) -> tuple[int, int]:
        """Pid and start of the control plane's process."""
        pid = int(self.status()["pid"])
        return pid, start_ticks(pid)

    @staticmethod
    def ticks(pid: int) -> int:
        """The start of a process, which with its pid names it beyond doubt."""
        return start_ticks(pid)

    def processes(self, host: str, name: str) -> list[tuple[int, int]]:
        """Pid and start of the processes of a host whose command has this word in it."""
        from atoll.lab.proc_members import members  # noqa: PLC0415 - of the lab's own process table

        found = []
        for pid in members(self.lab.record.id, host):
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[0]:
                    found.append((pid, start_ticks(pid)))
        return found


@contextlib.contextmanager
def ground(spec: LabSpec | None = None) -> Iterator[Ground]:
    """Raise the lab (two islands of two unless `spec`), Ray and Atoll; take it all down at the end, whatever happens."""
    home = Path(tempfile.mkdtemp(prefix="atoll-r-", dir=SHARED_FOLDER))
    spec = replace(spec or networks.two_islands(2), name="recovery")
    try:
        with lab_with_ray(spec, home) as lab, atoll_over(lab, home) as here:
            yield here
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def atoll_over(lab: Lab, home: Path) -> Iterator[Ground]:
    """Atoll in a lab that stands with its Ray, and a client of it."""
    with _client(lab, home) as client:
        yield Ground(lab, home, client)


@contextlib.contextmanager
def lab_with_ray(spec: LabSpec, home: Path) -> Iterator[Lab]:
    """The lab with its Ray, whose nodes give up after 30 s of an overloaded machine: tried again then."""
    with contextlib.ExitStack() as stack:
        for left in reversed(range(_RAISES)):
            try:
                lab = stack.enter_context(raised(spec, ray=True, home=home))
                break
            except LabError as error:
                if not left or "timed out during startup" not in str(error):
                    raise
                print("  Ray's nodes did not start in their time; once more", flush=True)
        yield lab


@contextlib.contextmanager
def _client(lab: Lab, home: Path) -> Iterator[atoll.Client]:
    """`atoll up` in the head, and a client that reaches it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = lab.words("head", [sys.executable, "-S", str(RELAY), str(listener.fileno())])
        relay = subprocess.Popen(words, pass_fds=[listener.fileno()])
    try:
        _own_disk(lab, home)
        atoll_up(lab, home, port)
        with atoll.Client(f"http://127.0.0.1:{port}", (home / "token").read_text().strip()) as client:
            hosts = len(lab.hosts) + 1
            until = time.monotonic() + UP_S
            while sum(node.agent for node in client.nodes()) < hosts:
                if time.monotonic() > until:
                    raise NotSteady(f"{sum(n.agent for n in client.nodes())} of {hosts} agents after {UP_S:g} s")
                time.sleep(0.2)
            yield client
    finally:
        relay.kill()
        relay.wait()


def _own_disk(lab: Lab, home: Path) -> None:
    """Journal and history get a disk of their own in the head, small enough to be filled."""
    folder = home / "clusters"
    folder.mkdir(mode=0o700)
    words = ["mount", "-t", "tmpfs", "-o", f"mode=0700,size={_DISK_BYTES}", "atoll-recovery", str(folder)]
    subprocess.run(lab.words("head", words), check=True, timeout=20)


def atoll_up(lab: Lab, home: Path, port: int) -> None:
    """As a person would, in the head."""
    words = [
        "env",
        f"ATOLL_HOME={home}",
        sys.executable,
        "-c",
        "from atoll.cli import main; main()",
        "up",
        "--port",
        str(port),
    ]
    done = subprocess.run(lab.words("head", words), capture_output=True, text=True, timeout=UP_S, check=False, cwd=home)
    if done.returncode:
        raise NotSteady(f"`atoll up` in the lab's head ended with {done.returncode}: {done.stdout}{done.stderr}")
