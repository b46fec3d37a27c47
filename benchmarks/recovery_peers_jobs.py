"""A peer's job in the lab's hosts: its commands, its workers as they stamp themselves, its end. A fresh job each fault.

Each is started as its own documents say, one worker a host. Lighthouse (torchft) and driver (Ray Train) run in the head,
which no fault strikes; torchrun's rendezvous is with the first host's agent, so no fault strikes that one either.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atoll.lab.lab_runtime import Lab
from atoll.ui.wording import plain_log
from atoll.workers.proc_runtime import send_signal
from benchmarks import networks
from benchmarks.recovery_peers_account import Cost, Member, cost, member_of, members_since, read

INSTALL = (
    "python -m pip install --group peers -c constraints.txt, here or in an environment of its own, whose interpreter "
    "--peers-python then names"
)
HEAD = "head"
# Four interpreters that import torch take half a minute of two busy cores; Ray's actors another quarter.
_START_S = 180.0
_STEADY_STEPS, _STEADY_S = 8, 5.0
_LOOK_S = 0.1
_END_S = 10.0
_IMPORT_S = 120.0
# Four that train, but in ever new memberships, get so long to come to one that stays.
_SETTLE_S = 20.0
_WORDS = 240
_HERE = Path(__file__).parent
_LIGHTHOUSE_PORT, _RENDEZVOUS_PORT = 29510, 29400


class NoJob(Exception):
    """A peer's job did not come to train with all its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`module`: what has to be installed for it; `setting`: how its lighthouse starts, or `elastic`."""

    name: str
    module: str
    setting: tuple[str, ...] = ()
    timeout_s: float | None = None

    def missing(self, python: str) -> str:
        """Why it cannot be measured with this interpreter, and what to do; empty where it can."""
        if problem := _importing(python, self.module):
            return f"{self.module} cannot be imported by {python} ({problem}): {INSTALL}"
        return ""


@functools.cache
def _importing(python: str, module: str) -> str:
    try:
        done = subprocess.run(
            [python, "-c", f"import {module}"], capture_output=True, text=True, timeout=_IMPORT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.strip().splitlines() or ["no word why"])[-1] if done.returncode else ""


# What torchft calls its defaults differs by the way that a lighthouse is started: how long it waits for stragglers is
# 10 s in the command of its README, 60 s in that command without options and 0.1 s in its Python API. The last is less
# than a step: whoever is left out of one waits longer than that for the next, which then leaves out another, and so on.
# A replica that falls silent is given up after 5 s by all three, and a collective after 60 s.
TORCHFT_README = Peer(
    name="torchft, its README's lighthouse",
    module="torchft",
    setting=("--join_timeout_ms=10000", "--quorum_tick_ms=100"),
)
TORCHFT_COMMAND = Peer(name="torchft, its lighthouse command without options", module="torchft")
TORCHFT_API = Peer(name="torchft, its lighthouse by the Python API", module="torchft", setting=("--api",))
# As eager as Atoll's defaults: stragglers get two steps, without which no membership lasts; a silent worker half a second.
TORCHFT_TUNED = Peer(
    name="torchft, tuned",
    module="torchft",
    setting=("--join_timeout_ms=300", "--heartbeat_timeout_ms=500", "--quorum_tick_ms=20"),
    timeout_s=1.0,
)
RAY_TRAIN = Peer(name="Ray Train, elastic", module="ray.train", setting=("elastic",))
RAY_TRAIN_FIXED = Peer(name="Ray Train, of fixed size", module="ray.train")
TORCHRUN = Peer(name="torchrun", module="torch.distributed.run")


@dataclass(frozen=True, slots=True)
class Steady:
    """Who trains, in the order of hosts. Not `settled`: all of them, but never for long in one membership."""

    members: tuple[Member, ...]
    settled: bool


@dataclass(slots=True, kw_only=True)
class Job:
    """A job that runs. `folder`: its stamps and logs, on a disk that all hosts share. `asked_to_end`: before it is killed."""

    lab: Lab
    folder: Path
    python: str = sys.executable
    asked_to_end: bool = False
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def stamps(self) -> Path:
        return self.folder / "stamps"

    def start(self, host: str, words: list[str], *environment: str) -> None:
        """A command in a host, its output in a log of its own."""
        name = f"{len(self.children)}-{host}.log"
        inside = ["env", f"GLOO_SOCKET_IFNAME={networks.WIDE}", "OMP_NUM_THREADS=1", *environment, self.python]
        with (self.folder / name).open("wb") as log:
            self.children.append(
                self.lab.popen(
                    host, [*inside, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
                )
            )

    def steady(self) -> Steady:
        """The members, once each host has one and they train; together, if they come to that. Raises `NoJob`."""
        begun, settles = time.monotonic(), None
        # No worker of torchft's is started again, no launcher of torchrun's, no driver of Ray Train's.
        while time.monotonic() < begun + _START_S and all(child.poll() is None for child in self._starters):
            stamps, since = read(self.stamps), time.monotonic() - _STEADY_S
            if len(found := members_since(stamps, since, _STEADY_STEPS)) == len(self.lab.hosts):
                return Steady(tuple(sorted(found, key=lambda m: m.host)), settled=True)
            if len(found := members_since(stamps, since, _STEADY_STEPS, together=False)) == len(self.lab.hosts):
                settles = settles or time.monotonic() + _SETTLE_S
                if time.monotonic() > settles:
                    return Steady(tuple(sorted(found, key=lambda m: m.host)), settled=False)
            time.sleep(_LOOK_S)
        took_s = time.monotonic() - begun
        raise NoJob(f"its four workers did not come to train in {took_s:.0f} s; its last words: {self.words()}")

    def recovered(self, fault: float, victim: Member, limit_s: float) -> Cost | None:
        """What the fault cost; None if that is not known `limit_s` after it, or never will be."""
        while time.monotonic() < fault + limit_s:
            over = self.over
            if found := cost(read(self.stamps), fault, victim):
                return found
            if over:
                return None
            time.sleep(_LOOK_S)
        return None

    def end(self) -> None:
        """Its commands first, lest they start its workers anew."""
        if self.asked_to_end:
            # Ray Train's driver gives back what it had reserved; else that is held for minutes, and the next job waits.
            for child in self.children:
                child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.children[-1].wait(_END_S)
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

    def words(self) -> str:
        """The last line of each log that tells of an error, or else its last."""
        found = []
        for log in sorted(self.folder.glob("*.log")):
            lines = [line for line in plain_log(log.read_text(errors="replace")) if line.strip()]
            said = [line for line in lines if "rror" in line] or lines or ["nothing"]
            found.append(f"{log.stem}: {said[-1][-_WORDS:]}")
        return " | ".join(found)

    @property
    def over(self) -> bool:
        """Nobody of it is left who could bring it back."""
        return all(child.poll() is not None for child in self._starters)

    @property
    def _starters(self) -> list[subprocess.Popen[bytes]]:
        """One for each host, or one for all. What comes before them is a lighthouse."""
        return self.children[-len(self.lab.hosts) :]


@contextlib.contextmanager
def running(peer: Peer, lab: Lab, home: Path, python: str) -> Iterator[Job]:
    """A job of this peer, ended whatever happens."""
    job = Job(lab=lab, folder=Path(tempfile.mkdtemp(prefix="peer-", dir=home)), python=python)
    job.stamps.mkdir()
    try:
        _STARTS[peer.module](peer, job)
        yield job
    finally:
        job.end()


def _torchft(peer: Peer, job: Job) -> None:
    bind = f"--bind=0.0.0.0:{_LIGHTHOUSE_PORT}"
    job.start(HEAD, [f"{_HERE}/peer_torchft_lighthouse.py", "--min_replicas=1", bind, *peer.setting])
    address = f"--lighthouse=http://{job.lab.nics(HEAD)[0].host}:{_LIGHTHOUSE_PORT}"
    given = [] if peer.timeout_s is None else [f"--timeout={peer.timeout_s}"]
    for number, host in enumerate(job.lab.hosts):
        words = [f"{_HERE}/peer_torchft.py", f"--stamps={job.stamps}", address, f"--replica={number}"]
        job.start(host, [*words, *given])


def _ray_train(peer: Peer, job: Job) -> None:
    words = [f"--stamps={job.stamps}", f"--storage={job.folder}", f"--workers={len(job.lab.hosts)}"]
    words += [f"--interface={networks.WIDE}", *(f"--{word}" for word in peer.setting)]
    job.start(HEAD, [f"{_HERE}/peer_ray_train.py", *words], "RAY_TRAIN_V2_ENABLED=1")
    job.asked_to_end = True


def _torchrun(_: Peer, job: Job) -> None:
    count = len(job.lab.hosts)
    for host in job.lab.hosts:
        words = ["-m", "torch.distributed.run", f"--nnodes={count - 1}:{count}", "--nproc-per-node=1"]
        words += ["--max-restarts=100", "--rdzv-backend=c10d", f"--rdzv-id={job.folder.name}"]
        # Else the first host tells the others its name on its own island's network.
        words += [f"--local-addr={job.lab.address(host, networks.WIDE)}"]
        words += [f"--rdzv-endpoint={job.lab.hosts[0]}:{_RENDEZVOUS_PORT}", f"{_HERE}/peer_torchrun.py"]
        job.start(host, [*words, f"--stamps={job.stamps}", f"--checkpoint={job.folder}/kept.pt"])


_STARTS = {TORCHFT_README.module: _torchft, RAY_TRAIN.module: _ray_train, TORCHRUN.module: _torchrun}
