"""A peer's job in the lab's hosts: its commands, its workers as they stamp themselves, its end. A fresh job each fault.

Each is started as its own documents say, one worker a host. Lighthouse (torchft) and driver (Ray Train) run in the head,
which no fault strikes; torchrun's rendezvous is with the first host's agent, so no fault strikes that one either.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atoll.lab.lab_runtime import Lab
from atoll.workers.proc_runtime import send_signal
from benchmarks import networks
from benchmarks.recovery_peers_account import Cost, Member, cost, member_of, members_since, read

INSTALL = "python -m pip install --group peers -c constraints.txt"
HEAD = "head"
# Four interpreters that import torch take half a minute of two busy cores; Ray's actors another quarter.
_START_S = 180.0
_STEADY_STEPS, _STEADY_S = 8, 5.0
_LOOK_S = 0.1
_END_S = 10.0
_HERE = Path(__file__).parent
_LIGHTHOUSE_PORT, _RENDEZVOUS_PORT = 29510, 29400
# The command of its README. Its own default is to wait 60 s for stragglers, which is what a kill then costs.
_README_LIGHTHOUSE = ("--join_timeout_ms=10000", "--quorum_tick_ms=100")
# A silent worker is given up after a second and the next quorum waits for nobody: as eager as Atoll's defaults.
_TUNED_LIGHTHOUSE = ("--join_timeout_ms=100", "--heartbeat_timeout_ms=500", "--quorum_tick_ms=20")
_TUNED_TIMEOUT_S = 1.0


class NoJob(Exception):
    """A peer's job did not come to train with all its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`module`: what has to be installed for it."""

    name: str
    module: str
    tuned: bool = False

    @property
    def missing(self) -> str:
        """Why it cannot be measured here, and what to do; empty where it can."""
        if importlib.util.find_spec(self.module):
            return ""
        return f"{self.module} is not installed: {INSTALL}"


TORCHFT = Peer(name="torchft", module="torchft")
TORCHFT_TUNED = Peer(name="torchft, tuned", module="torchft", tuned=True)
RAY_TRAIN = Peer(name="Ray Train", module="ray.train")
TORCHRUN = Peer(name="torchrun", module="torch")


@dataclass(slots=True, kw_only=True)
class Job:
    """A job that runs. `folder`: its stamps and logs, on a disk that all hosts share."""

    lab: Lab
    folder: Path
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def stamps(self) -> Path:
        return self.folder / "stamps"

    def start(self, host: str, words: list[str], *environment: str) -> None:
        """A command in a host, its output in a log of its own."""
        name = f"{len(self.children)}-{host}.log"
        inside = ["env", f"GLOO_SOCKET_IFNAME={networks.WIDE}", "OMP_NUM_THREADS=1", *environment, sys.executable]
        with (self.folder / name).open("wb") as log:
            self.children.append(
                self.lab.popen(
                    host, [*inside, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
                )
            )

    def steady(self) -> list[Member]:
        """The members, in the order of hosts, once each host has one and they train. Raises `NoJob`."""
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            found = members_since(read(self.stamps), time.monotonic() - _STEADY_S, _STEADY_STEPS)
            if sorted(m.host for m in found) == sorted(self.lab.hosts):
                return sorted(found, key=lambda m: m.host)
            time.sleep(_LOOK_S)
        raise NoJob(f"no four workers training after {_START_S:g} s; the end of its logs: {self._tails()}")

    def recovered(self, fault: float, victim: Member, limit_s: float) -> Cost | None:
        """What the fault cost; None if that is not known `limit_s` after it."""
        while time.monotonic() < fault + limit_s:
            if found := cost(read(self.stamps), fault, victim):
                return found
            time.sleep(_LOOK_S)
        return None

    def end(self) -> None:
        """Its commands first, lest they start its workers anew."""
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait(_END_S)
        until = time.monotonic() + _END_S
        # A worker that had just been started begins to stamp when its launcher is gone.
        while sum(self._kill(member_of(f)) for f in self.stamps.glob("*.jsonl")) and time.monotonic() < until:
            time.sleep(_LOOK_S)

    @staticmethod
    def _kill(member: Member) -> bool:
        return send_signal(member.pid, member.ticks, signal.SIGKILL)

    def _tails(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return " | ".join(f"{log.stem}: {log.read_text(errors='replace')[-300:]}" for log in logs)


@contextlib.contextmanager
def running(peer: Peer, lab: Lab, home: Path) -> Iterator[Job]:
    """A job of this peer, ended whatever happens."""
    job = Job(lab=lab, folder=Path(tempfile.mkdtemp(prefix="peer-", dir=home)))
    job.stamps.mkdir()
    try:
        _STARTS[peer.module](peer, job)
        yield job
    finally:
        job.end()


def _torchft(peer: Peer, job: Job) -> None:
    lighthouse = [f"{_HERE}/peer_torchft_lighthouse.py", "--min_replicas=1", f"--bind=0.0.0.0:{_LIGHTHOUSE_PORT}"]
    job.start(HEAD, [*lighthouse, *(_TUNED_LIGHTHOUSE if peer.tuned else _README_LIGHTHOUSE)])
    address = f"--lighthouse=http://{job.lab.nics(HEAD)[0].host}:{_LIGHTHOUSE_PORT}"
    for number, host in enumerate(job.lab.hosts):
        words = [f"{_HERE}/peer_torchft.py", f"--stamps={job.stamps}", address, f"--replica={number}"]
        job.start(host, [*words, *([f"--timeout={_TUNED_TIMEOUT_S}"] if peer.tuned else [])])


def _ray_train(_: Peer, job: Job) -> None:
    words = [f"--stamps={job.stamps}", f"--storage={job.folder}", f"--workers={len(job.lab.hosts)}"]
    job.start(HEAD, [f"{_HERE}/peer_ray_train.py", *words, f"--interface={networks.WIDE}"], "RAY_TRAIN_V2_ENABLED=1")


def _torchrun(_: Peer, job: Job) -> None:
    count = len(job.lab.hosts)
    for host in job.lab.hosts:
        words = ["-m", "torch.distributed.run", f"--nnodes={count - 1}:{count}", "--nproc-per-node=1"]
        words += ["--max-restarts=100", "--rdzv-backend=c10d", f"--rdzv-id={job.folder.name}"]
        # Else the first host tells the others its name on its own island's network.
        words += [f"--local-addr={job.lab.address(host, networks.WIDE)}"]
        words += [f"--rdzv-endpoint={job.lab.hosts[0]}:{_RENDEZVOUS_PORT}", f"{_HERE}/peer_torchrun.py"]
        job.start(host, [*words, f"--stamps={job.stamps}", f"--checkpoint={job.folder}/kept.pt"])


_STARTS = {TORCHFT.module: _torchft, RAY_TRAIN.module: _ray_train, TORCHRUN.module: _torchrun}
