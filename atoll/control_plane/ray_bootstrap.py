"""Starting and ending a cluster from a command: a Ray (found or embedded), the control plane in it, agent and web.

`ensure` returns once the head's agent is attached and the web process answers, so that what follows is REST. A cluster
that answers already is returned at once. The embedded Ray is one process tree on the loopback interface; its pid, start
time and folder stand in `cluster.json`, so that `shutdown` ends exactly it, whoever started it. Ray's client never
enters this process: `ray_ensure` runs beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import psutil

from atoll.config import TLS_CA, TLS_DIR, cluster_key, trusted
from atoll.control_plane import fs_cluster as files
from atoll.control_plane import fs_tls
from atoll.control_plane.fs_leftovers import end_agents
from atoll.control_plane.grpc_client import invoke_once
from atoll.control_plane.ray_seats import node_id
from atoll.errors import AtollError, ClusterError, ConnectError, PortInUse, by_code
from atoll.workers.proc_runtime import lives, send_signal, spawn_module, start_ticks

LOOPBACK = "127.0.0.1"
HEAD_S = 40.0
ENSURE_S = 75.0
# The agent imports gRPC, the web process FastAPI and NiceGUI: some seconds of one core each.
DEADLINE_S = 120.0
LEAVE_S = 15.0
_LOOK_S = 0.1
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInfo:
    """A cluster that answers. `pids` are those of the embedded Ray's own process, if there is one."""

    rest_url: str
    token: str
    home: Path
    cluster_dir: Path
    ray_address: str
    embedded: bool
    pids: tuple[int, ...] = ()


def ensure(
    address: str | None,
    home: Path,
    *,
    progress: Say | None = None,
    port: int | None = None,
    cpus: int | None = None,
    deadline_s: float = DEADLINE_S,
) -> ClusterInfo:
    """The cluster on the Ray at `address` (`auto`: the one on this machine), or on an embedded Ray of its own.

    `port` is the dashboard's, `cpus` what the embedded Ray offers. Raises `ConnectError` with the end of the log that
    explains it, or `PortInUse`.
    """
    say = progress or (lambda _: None)
    until = time.monotonic() + deadline_s
    files.private_dir(home)
    with files.starting_lock(home, deadline_s):
        running = _running(address, home)
        if running is not None:
            return running
        if address is not None:
            return _bring_up(home, address, _known_dir(address, home), port, say, until)
        cluster_dir, fresh = _embedded(home, port, cpus, say)
        try:
            return _bring_up(home, _record(cluster_dir).ray_address, cluster_dir, port, say, until)
        except BaseException:
            if fresh:  # nobody could end it otherwise
                _take_down(home, cluster_dir)
            raise


def _bring_up(home: Path, address: str, known: Path | None, port: int | None, say: Say, until: float) -> ClusterInfo:
    say("starting the control plane")
    info = _info(home, _run_ensure(home, address, known, port))
    say("starting the agent and the dashboard")
    _await_answers(info, until)
    return info


def shutdown(info: ClusterInfo) -> None:
    """End the cluster: runs, agents, control plane, and the embedded Ray with every process and file of it."""
    with files.starting_lock(info.home, DEADLINE_S):
        _take_down(info.home, info.cluster_dir)


def _take_down(home: Path, cluster_dir: Path) -> None:
    record = files.load(cluster_dir)
    if record is None:
        file = cluster_dir / "cluster.json"
        if file.exists():
            raise ClusterError(
                f"{file} is damaged or of another version of Atoll, so nothing was ended; delete the file"
            )
        return
    secret = bytes.fromhex(files.secret_file(cluster_dir / "secret"))
    patience = 0.0
    with contextlib.suppress(AtollError):  # where it is away, its agents are ended by their records at once
        invoke_once(record.control, secret, "shutdown", {}, deadline_s=3.0)
        patience = LEAVE_S
    end_agents(home, cluster_dir.name, patience)
    if record.embedded and record.head is not None:
        _end_head(record.head)
    elif not record.embedded:
        with contextlib.suppress(AtollError):
            _run_ensure(home, record.ray_address, cluster_dir, None, end=True)
    files.retire(cluster_dir)


# -- finding ---------------------------------------------------------------------------------------------------------


def _running(address: str | None, home: Path) -> ClusterInfo | None:
    for cluster_dir, record in files.all_clusters(home):
        same = record.embedded if address is None else record.ray_address == address
        if same and _head_lives(record):
            info = _info(home, cluster_dir)
            if _problem(info) is None:
                return info
    return None


def _head_lives(record: files.ClusterRecord) -> bool:
    return not record.embedded or (record.head is not None and lives(record.head.pid, record.head.start_ticks))


def _known_dir(address: str, home: Path) -> Path | None:
    return next((d for d, record in files.all_clusters(home) if record.ray_address == address), None)


def _record(cluster_dir: Path) -> files.ClusterRecord:
    record = files.load(cluster_dir)
    if record is None:
        raise ConnectError(f"{cluster_dir}/cluster.json is missing or damaged; run `atoll up` again")
    return record


def _info(home: Path, cluster_dir: Path) -> ClusterInfo:
    record = _record(cluster_dir)
    return ClusterInfo(
        rest_url=record.rest_url,
        token=files.secret_file(home / "token"),
        home=home,
        cluster_dir=cluster_dir,
        ray_address=record.ray_address,
        embedded=record.embedded,
        pids=(record.head.pid,) if record.head else (),
    )


# -- an embedded Ray -------------------------------------------------------------------------------------------------


def _embedded(home: Path, port: int | None, cpus: int | None, say: Say) -> tuple[Path, bool]:
    """The folder of an embedded cluster whose Ray is up, and whether this call started it."""
    last = files.last_embedded(home)
    if last is not None and _head_lives(last[1]) and (last[0] / "cluster.json").exists():
        return last[0], False  # Ray is up, its control plane or web process is not
    cluster_dir, record = _same_place(last, port) or _new_place(home, port)
    if last is not None and last[1].head is not None:
        shutil.rmtree(last[1].head.temp_dir, ignore_errors=True)
    say("starting an embedded Ray")
    temp_dir = tempfile.mkdtemp(prefix="atoll-", dir="/tmp")
    settings = {
        "port": int(record.ray_address.rpartition(":")[2]),
        "temp_dir": f"{temp_dir}/r",  # Ray opens its folder to everyone; the one around it stays closed
        "token_file": record.token_file,
        "cpus": cpus,
    }
    log = cluster_dir / "ray.log"
    log.unlink(missing_ok=True)
    line = json.dumps(settings).encode() + b"\n"
    pid = spawn_module("atoll.control_plane.ray_head", config=line, log=log)
    head = files.Head(pid=pid, start_ticks=start_ticks(pid), temp_dir=temp_dir, cpus=cpus)
    files.save(cluster_dir, replace(record, head=head))
    try:
        _await_head(head, log)
    except BaseException:
        _end_head(head)
        raise
    return cluster_dir, True


def _same_place(
    last: tuple[Path, files.ClusterRecord] | None, port: int | None
) -> tuple[Path, files.ClusterRecord] | None:
    """The last embedded cluster's folder and ports, so that its runs are still listed; None where a port is taken."""
    if last is None or (port is not None and port != last[1].web_port):
        return None
    record = last[1]
    ports = [int(a.rpartition(":")[2]) for a in (record.ray_address, record.control)]
    return last if all(files.is_free(LOOPBACK, p) for p in (*ports, record.web_port)) else None


def _new_place(home: Path, port: int | None) -> tuple[Path, files.ClusterRecord]:
    opened = fs_tls.door(home)
    web = files.web_port(opened.host, port)
    address = f"{LOOPBACK}:{files.free_port(LOOPBACK)}"
    cluster_dir = files.private_dir(home / "clusters" / cluster_key(address))
    token_file = cluster_dir / "ray-token"
    files.secret_file(token_file)
    record = files.ClusterRecord(
        rest_url=opened.url(web),
        ray_address=address,
        control=f"{LOOPBACK}:{files.free_port(LOOPBACK)}",
        web_host=opened.host,
        web_port=web,
        node=node_id(LOOPBACK),
        embedded=True,
        token_file=str(token_file),
    )
    return cluster_dir, record


def _await_head(head: files.Head, log: Path) -> None:
    until = time.monotonic() + HEAD_S
    while time.monotonic() < until and lives(head.pid, head.start_ticks):
        if "Ray is up" in log.read_text(errors="replace"):
            return
        time.sleep(_LOOK_S)
    raise ConnectError(f"the embedded Ray did not start; {log} ends: {files.tail(log)}")


def _end_head(head: files.Head) -> None:
    """SIGTERM, then SIGKILL, to exactly the processes of this Ray; then remove its folder."""
    family = _family(head)
    send_signal(head.pid, head.start_ticks, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=LEAVE_S)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=LEAVE_S)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(head.pid, os.WNOHANG)
    shutil.rmtree(head.temp_dir, ignore_errors=True)


def _family(head: files.Head) -> list[psutil.Process]:
    if not lives(head.pid, head.start_ticks):
        return []
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(head.pid)
        return [process, *process.children(recursive=True)]
    return []


# -- control plane, agent and web ------------------------------------------------------------------------------------


def _run_ensure(home: Path, address: str, cluster_dir: Path | None, port: int | None, *, end: bool = False) -> Path:
    config = {
        "home": str(home),
        "ray_address": address,
        "cluster_dir": str(cluster_dir or ""),
        "web_port": port,
        "end": end,
    }
    log = home / "ensure.log"
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "atoll.control_plane.ray_ensure"],
                input=json.dumps(config) + "\n",
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=ENSURE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConnectError(f"Ray at {address} did not answer in {ENSURE_S:.0f} s; see {log}") from None
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise ConnectError(f"the control plane was not started; {log} ends: {files.tail(log)}") from None
    if "code" in answer:
        raise by_code(answer["code"])(answer["problem"])
    return Path(answer["cluster_dir"])


def _await_answers(info: ClusterInfo, until: float) -> None:
    problem: str | None = "nothing answers"
    while time.monotonic() < until:
        problem = _problem(info)
        if problem is None:
            return
        log = info.cluster_dir / "web.log"
        if log.exists() and PortInUse.code in files.tail(log):
            raise PortInUse(files.tail(log))
        time.sleep(_LOOK_S)
    logs = [info.cluster_dir / "web.log", *info.home.glob(f"nodes/*/{info.cluster_dir.name}/agent.log")]
    tails = "; ".join(f"{log} ends: {files.tail(log, 400)}" for log in logs)
    raise ConnectError(f"the cluster did not come up: {problem}; {tails}")


def _problem(info: ClusterInfo) -> str | None:
    """Why the cluster is not ready to use; None where it is."""
    try:
        answer = httpx.get(
            f"{info.rest_url}/api/nodes",
            headers={"Authorization": f"Bearer {info.token}"},
            timeout=5.0,
            trust_env=False,
            verify=trusted(home_ca) if (home_ca := info.home / TLS_DIR / TLS_CA).exists() else True,
        )
        nodes = answer.json() if answer.status_code == httpx.codes.OK else []
    except (httpx.HTTPError, ValueError) as error:
        return f"the dashboard at {info.rest_url} does not answer ({type(error).__name__})"
    if answer.status_code != httpx.codes.OK:
        return f"the dashboard at {info.rest_url} answers {answer.status_code}"
    rows = nodes.get("nodes", []) if isinstance(nodes, dict) else nodes
    if not any(node.get("agent") for node in rows):
        return "no agent is attached"
    return _control_problem(info)


def _control_problem(info: ClusterInfo) -> str | None:
    # The node list is history: only the control plane itself can say that it lives.
    secret = bytes.fromhex(files.secret_file(info.cluster_dir / "secret"))
    try:
        status = invoke_once(_record(info.cluster_dir).control, secret, "status", {}, deadline_s=3.0)
    except AtollError as error:
        return str(error)
    return None if status.get("agents") else "no agent is attached"


def describe(info: ClusterInfo) -> dict[str, object]:
    """`info` without its token, for people and logs."""
    return {k: str(v) for k, v in asdict(info).items() if k != "token"}
