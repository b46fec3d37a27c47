"""A Ray node in each host of a lab, and the head's control store and dashboard in the head.

Each is the ordinary `ray start`, run inside the host, so that the host's own addresses, /tmp, /dev/shm and home keep
nodes apart that would otherwise find each other on one machine. They end with their host, by its mark; `ray stop`, which
ends every Ray on the machine, is never called. Nodes carry the host's labels and two of Atoll's, its name and its lab.
Ray's token is off: nothing outside the lab's own namespaces can reach these ports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from atoll.errors import LabError
from atoll.lab.lab_runtime import Lab
from atoll.lab.layout import PlacedNic
from atoll.lab.raising_runtime import DASHBOARD_PORT
from atoll.lab.spec import HEAD, HostSpec

GCS_PORT = 6379
_AGENT_PORT = 52365
_TEMP = "/tmp/ray"  # noqa: S108 - the host's own
# A node takes 6-8 s of a core; eight on two cores, 40 s.
_START_S = 180.0
# `ray start` gives up after 30 s, whatever the machine has to do: no more at a time than there are cores for.
_AT_ONCE = max(2, os.cpu_count() or 1)
# Ray's least is 75 MB, and a share of the whole machine's memory for each host would be all of it.
_OBJECT_STORE_BYTES = 100 << 20
# `ray start` as a module: it needs no `ray` on the path. Ray would switch its token on by itself, and file it at home.
_RAY = ("env", "RAY_AUTH_MODE=disabled", "RAY_USAGE_STATS_ENABLED=0", sys.executable, "-m", "ray.scripts.scripts")
_LOG_LINES = 15
Say = Callable[[str], None]


def start(lab: Lab, say: Say = lambda _: None) -> None:
    """Start the head, then all other nodes. Raises `LabError` with the end of the log of one that did not."""
    start_head(lab, say)
    say(f"starting {len(lab.hosts)} Ray nodes")
    join(lab, lab.hosts)


def start_head(lab: Lab, say: Say = lambda _: None) -> None:
    """Start the head alone, as where hosts are machines that an autoscaler starts. Raises `LabError`."""
    head = _management_nic(lab, HEAD)
    say(f"starting Ray's head in {HEAD}")
    _run(lab, {HEAD: head_words(head.address)})
    address = f"{head.address}:{GCS_PORT}"
    lab.update(lambda record: replace(record, ray_address=address))


def join(lab: Lab, hosts: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
    """Start the nodes of these hosts, which may have been killed and healed before. The head must stand.

    `labels`: beside those of each host.
    """
    specs = {h.name: h for h in lab.spec.hosts}
    commands = {
        host: node_words(lab, specs[host], _management_nic(lab, host).address, lab.record.ray_address, labels or {})
        for host in hosts
    }
    for first in range(0, len(hosts), _AT_ONCE):
        _run(lab, {host: commands[host] for host in hosts[first : first + _AT_ONCE]})


def head_words(address: str) -> list[str]:
    """The command for the head: no CPUs, so that nothing is placed there unasked."""
    return [
        *_RAY,
        "start",
        "--head",
        f"--port={GCS_PORT}",
        "--num-cpus=0",
        "--include-dashboard=true",
        "--dashboard-host=0.0.0.0",
        f"--dashboard-port={DASHBOARD_PORT}",
        *_common(address, {"atoll-host": HEAD}),
    ]


def node_words(lab: Lab, host: HostSpec, address: str, head: str, labels: Mapping[str, str]) -> list[str]:
    """The command for one host's node."""
    all_labels = {**host.labels, **labels, "atoll-host": host.name, "atoll-lab": lab.name}
    return [*_RAY, "start", f"--address={head}", f"--num-cpus={host.num_cpus}", *_common(address, all_labels)]


def _common(address: str, labels: dict[str, str]) -> list[str]:
    return [
        f"--node-ip-address={address}",
        f"--temp-dir={_TEMP}",
        f"--dashboard-agent-listen-port={_AGENT_PORT}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
        "--labels=" + ",".join(f"{name}={value}" for name, value in labels.items()),
    ]


def _management_nic(lab: Lab, host: str) -> PlacedNic:
    """The NIC on the head's segment: all nodes reach each other there."""
    if lab.head is None:
        raise LabError(f"lab {lab.name!r} has no head for Ray; set head = true in its file, or raise it with --no-ray")
    (segment,) = {n.segment for n in lab.layout.nics[HEAD]}
    found = next((n for n in lab.layout.nics[host] if n.segment == segment), None)
    if found is None:
        network = lab.spec.head
        raise LabError(f"host {host!r} has no NIC on the head's network {network!r}, so its Ray node could not join")
    return found


def _run(lab: Lab, commands: dict[str, list[str]]) -> None:
    """Run one `ray start` in each host, all at once, until each has returned."""
    until = time.monotonic() + _START_S
    with tempfile.TemporaryDirectory(prefix="atoll-lab-") as folder:
        started = {}
        for host, words in commands.items():
            # A file, not a pipe: what Ray leaves running holds it open.
            with Path(folder, host).open("wb") as log:
                started[host] = lab.popen(host, words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        for host, child in started.items():
            try:
                code: int | str = child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = f"no answer within {_START_S:g} s"
            if code != 0:
                tail = "\n".join(Path(folder, host).read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
                raise LabError(f"`ray start` in host {host!r} of lab {lab.name!r} ended with {code}:\n{tail}")
