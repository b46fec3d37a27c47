"""From submission to the first step of all workers: Atoll against Ray Train on one Ray cluster, in turns.

The same model, two workers of the same share of a CPU, Gloo there and Atoll's own sums here. Neither has a trainer that
was started before: Atoll's agent keeps a process with torch imported, from which it forks trainers, and Ray keeps idle
workers of its own; both belong to the cluster, not to the job. Ray Train's driver stays connected, and its time begins
right before `fit`; Atoll's begins right before `Client.submit`. Atoll without spares is what is compared; with one, which
has to be started as well, stands apart.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import atoll
from atoll.control_plane.fs_cluster import free_port
from atoll.schema.ids import RunId
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState
from benchmarks.recovery_peers_jobs import INSTALL
from benchmarks.reporting import Figure, Report
from benchmarks.timing import ratio, rounds, spread

WORKERS, CPUS = 2, 0.4
_PAIRS, _QUICK_PAIRS = 8, 2
_UP_S, _RUN_S = 240.0, 180.0
_HERE = Path(__file__).parent
_PEER, _OURS, _SPARE = "ray train", "atoll", "atoll with a spare"


def first_step(*, quick: bool) -> Report:
    """The ratio of medians."""
    try:
        import ray.train.torch  # noqa: F401, PLC0415 - whether it is there
    except ImportError as error:
        figure = Figure(
            name="submit_to_first_step_vs_ray_train", value=None, bar=1.0, floor=False, note=f"{error}: {INSTALL}"
        )
        return Report(figures=(figure,))
    found: dict[str, list[float]] = {_PEER: [], _OURS: [], _SPARE: []}
    with _cluster() as place:
        for name in (_PEER, _OURS, _SPARE):
            print(f"  {name}, not counted: {place.run(name):.2f} s", flush=True)
        for name in rounds(list(found), _QUICK_PAIRS if quick else _PAIRS, seed=3):
            found[name].append(place.run(name))
            print(f"  {name}: {found[name][-1]:.2f} s", flush=True)
    note = (
        f"medians of {len(found[_OURS])} in turns: {statistics.median(found[_OURS]):.2f} s against "
        f"{statistics.median(found[_PEER]):.2f} s; {WORKERS} workers on one host"
    )
    return Report(
        figures=(
            Figure(
                name="submit_to_first_step_vs_ray_train",
                value=ratio(found[_OURS], found[_PEER]),
                bar=1.0,
                floor=False,
                note=note,
            ),
            Figure(
                name="submit_to_first_step_with_spare_vs_ray_train",
                value=ratio(found[_SPARE], found[_PEER]),
                note="one spare more to be started; shown apart",
            ),
        ),
        details={"seconds": {name: spread(values).plain() for name, values in found.items()}},
    )


@dataclass(slots=True)
class _Place:
    """A Ray cluster with Atoll on it, and Ray Train's driver."""

    home: Path
    client: atoll.Client
    driver: subprocess.Popen[str]

    def run(self, name: str) -> float:
        """Seconds from submission until the last worker made its first step."""
        stamps = self.home / "stamps" / secrets.token_hex(4)
        stamps.mkdir(parents=True)
        begun = self._peer(stamps) if name == _PEER else self._ours(stamps, spares=int(name == _SPARE))
        moments = [float(file.read_text()) for file in stamps.glob("*.stamp")]
        if len(moments) != WORKERS:
            raise RuntimeError(f"{name}: {len(moments)} of {WORKERS} workers made a step")
        return max(moments) - begun

    def _ours(self, stamps: Path, spares: int) -> float:
        spec = JobSpec(
            name="first",
            run_id=RunId(f"first-{stamps.name}"),
            working_dir=str(_HERE),
            file="scheduling_job.py",
            workers=WORKERS,
            spares=spares,
            cpus_per_worker=CPUS,
            config={"stamps": str(stamps)},
            detach=True,
        )
        begun = time.monotonic()
        run = self.client.submit(spec)
        while not self.client.run(run).state.ended:
            if time.monotonic() > begun + _RUN_S:
                raise TimeoutError(f"{run} did not end within {_RUN_S:g} s")
            time.sleep(0.2)
        view = self.client.run(run)
        if view.state is not RunState.SUCCEEDED:
            raise RuntimeError(f"{run} ended as {view.state}: {view.reason}")
        return begun

    def _peer(self, stamps: Path) -> float:
        pipe = self.driver.stdin
        if pipe is None:
            raise RuntimeError("the driver has no input")
        pipe.write(f"{stamps}\n")
        pipe.flush()
        return float(_line(self.driver))


@contextlib.contextmanager
def _cluster() -> Iterator[_Place]:
    """All of it ends with the block, by pid."""
    home = Path(tempfile.mkdtemp(prefix="atoll-f-", dir="/tmp"))
    inherited = os.environ.items()  # noqa: TID251 - a stranger's shell, less what this one says of Ray and Atoll
    env = {k: v for k, v in inherited if not k.startswith(("RAY_", "ATOLL_"))} | {
        "HOME": str(home),
        "ATOLL_HOME": str(home / "atoll"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "PYTHONPATH": f"{_HERE.parent}{os.pathsep}{_HERE}",
    }
    try:
        address = _ray(home, env)
        port = free_port("127.0.0.1")
        words = [sys.executable, "-c", "from atoll.cli import main; main()"]
        _checked([*words, "up", "--address", address, "--port", str(port)], env)
        with (
            atoll.Client(f"http://127.0.0.1:{port}", (home / "atoll" / "token").read_text().strip()) as client,
            _driver(address, home, env) as driver,
        ):
            yield _Place(home, client, driver)
        subprocess.run([*words, "down"], env=env, capture_output=True, timeout=60, check=False)
    finally:
        _end(home)
        shutil.rmtree(home, ignore_errors=True)


def _ray(home: Path, env: dict[str, str]) -> str:
    ports = [str(free_port("127.0.0.1")) for _ in range(3)]
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", ports[0]]
    words += ["--dashboard-port", ports[1], "--dashboard-agent-listen-port", ports[2], "--num-cpus", "2"]
    said = _checked([*words, "--temp-dir", str(home / "r"), "--disable-usage-stats"], env)
    found = re.search(r"--address='([^']+)'", re.sub(r"\x1b\[[0-9;]*m", "", said))
    if found is None:
        raise RuntimeError(f"`ray start` names no address: {said[-500:]}")
    return found[1]


@contextlib.contextmanager
def _driver(address: str, home: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, str(_HERE / "peer_first_step.py"), "--address", address, "--storage", str(home / "s")]
    words += ["--workers", str(WORKERS), "--cpus", str(CPUS)]
    with (home / "driver.log").open("w") as log:
        child = subprocess.Popen(words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    try:
        if _line(child) != "ready":
            raise RuntimeError(f"Ray Train's driver did not come up: {(home / 'driver.log').read_text()[-800:]}")
        yield child
    finally:
        child.kill()
        child.wait()


def _line(child: subprocess.Popen[str]) -> str:
    """The driver's next word that is one: Ray prints there as well."""
    until = time.monotonic() + _RUN_S
    while child.stdout is not None and time.monotonic() < until:
        line = child.stdout.readline().strip()
        if line == "ready" or re.fullmatch(r"\d+\.\d+", line):
            return line
        if not line and child.poll() is not None:
            raise RuntimeError(f"Ray Train's driver ended with {child.returncode}")
    raise TimeoutError(f"Ray Train's driver said nothing within {_RUN_S:g} s")


def _checked(words: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=_UP_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[1:4]} ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    return done.stdout


def _end(home: Path) -> None:
    """Whatever names this home in its command."""
    left = [p for p in psutil.process_iter(["cmdline"]) if any(str(home) in w for w in p.info["cmdline"] or ())]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
