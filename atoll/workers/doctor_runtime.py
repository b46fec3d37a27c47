"""`atoll doctor` on one node: what could keep training from working here, each with its remedy.

Only looks, quickly: versions from package metadata and from what the zygote imported, devices from the driver's `/proc`
directory (asking CUDA would create a context in this process), everything else from the system.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from atoll import __version__
from atoll.schema.ids import NodeId
from atoll.schema.messages import Finding
from atoll.workers.fork_messages import ZygoteWarm

DRIVER = Path("/proc/driver/nvidia/gpus")
CLOCK_S = 1.0
FREE_BYTES = 2 << 30
# A node that has just come is still importing torch, a few seconds long: that is no finding. The control plane waits for 8 s.
WARM_LIMIT_S = 6.0
# Each trainer holds a socket per peer and lane, and a file per loader; 1,024 is what ends runs of some hundred ranks.
OPEN_FILES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What the doctor examines."""

    node: NodeId
    address: str
    home: str
    zygote: ZygoteWarm | None
    zygote_ends: int
    web: tuple[str, int] | None


def examine(node: Node, *, now: float, asked_at: float) -> tuple[Finding, ...]:
    """All findings. `now` and `asked_at` are Unix seconds here and at the control plane."""
    checks = [
        *_versions(),
        _zygote(node.zygote, node.zygote_ends),
        _clock(now - asked_at),
        _disk(Path(node.home)),
        _ports(node.address),
        _open_files(),
        _cores(),
        _devices(node.zygote),
        *([_web(*node.web)] if node.web else []),
    ]
    return tuple(Finding(node=node.node, check=c, ok=ok, detail=d, remedy="" if ok else r) for c, ok, d, r in checks)


_Check = tuple[str, bool, str, str]


def _versions() -> list[_Check]:
    found = [("atoll", __version__), ("python", platform.python_version())]
    found += [(name, _installed(name)) for name in ("torch", "ray")]
    return [(name, bool(version), version or "not installed", f"pip install {name}") for name, version in found]


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _zygote(zygote: ZygoteWarm | None, ends: int) -> _Check:
    if zygote is None:
        ended = f"; it ended {ends} time{'s' * (ends > 1)} before" if ends else ""
        return "zygote", False, f"not done with importing torch{ended}", "see agent.log in the node's state directory"
    detail = f"warm after {zygote.seconds:.1f} s with torch {zygote.torch}, {zygote.threads} thread(s)"
    return "zygote", zygote.threads == 1, detail, "an import started threads; forking from it may hang"


def _clock(offset_s: float) -> _Check:
    detail = f"{offset_s:+.3f} s against the control plane"
    return "clock", abs(offset_s) < CLOCK_S, detail, "run chrony or ntpd; times in the story would not line up"


def _disk(home: Path) -> _Check:
    free = shutil.disk_usage(home).free
    return "disk", free > FREE_BYTES, f"{free / 1e9:.1f} GB free at {home}", "free space, or set ATOLL_HOME elsewhere"


def _ports(address: str) -> _Check:
    try:
        with socket.create_server((address, 0)) as server:
            return "ports", True, f"can listen at {address}:{server.getsockname()[1]}", ""
    except OSError as error:
        return "ports", False, f"cannot listen at {address}: {error}", "the node's address is not this machine's"


def _web(host: str, port: int) -> _Check:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return "web", True, f"answers at {host}:{port}", ""
    except OSError as error:
        return "web", False, f"{host}:{port}: {error}", "see web.log in the cluster's directory"


def _open_files() -> _Check:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    detail = "unlimited" if unlimited else f"{soft} a process"
    return "open files", unlimited or soft >= OPEN_FILES, detail, f"ulimit -n {OPEN_FILES} before `ray start`"


def _cores() -> _Check:
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    busy = load > 4 * cores
    return "cores", not busy, f"{cores} cores, load {load:.1f}", "other programs want these cores; steps will be slow"


def _devices(zygote: ZygoteWarm | None) -> _Check:
    count = len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0
    if count == 0:
        return "devices", True, "no NVIDIA devices; training on CPU", ""
    build = zygote.cuda if zygote else ""
    detail = f"{count} NVIDIA device(s), torch built for CUDA {build or 'none'}"
    return "devices", bool(build) or zygote is None, detail, "install a CUDA build of torch (TORCH_INDEX=...)"
