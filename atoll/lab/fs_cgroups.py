"""CPU quotas and freezing by cgroups, of either version, as far as this machine lets the caller.

Version 1 has a tree for each controller, version 2 one tree for all; some systems mount both. A host's groups are
`atoll-ID-HOST` below the caller's own group (or the nearest one above that can give the controller on), so a lab inside
a container stays within the container's limits. A host without a group of its own still freezes, by SIGSTOP.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atoll.errors import LabError

_PERIOD_US = 100_000
_POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A group below which hosts get theirs. `version`: 1 or 2."""

    base: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where CPU quotas and freezing are to be had, if anywhere. `notice`: what to tell when quotas are not."""

    cpu: Place | None = None
    freezer: Place | None = None
    notice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The groups of one host."""

    cpu: str | None = None
    freezer: str | None = None
    freezer_version: int = 2

    def paths(self) -> list[str]:
        """Those that a process of the host joins."""
        return [p for p in dict.fromkeys((self.cpu, self.freezer)) if p is not None]


def find() -> Places:
    """What the caller may use on this machine."""
    own = _own_groups()
    two = _candidates(own.get("", None))
    cpu_one, freezer_one = _writable(own.get("cpu")), _writable(own.get("freezer"))
    cpu_two = next((c for c in two if _gives_cpu(c)), None)
    cpu = Place(base=cpu_one, version=1) if cpu_one else Place(base=cpu_two, version=2) if cpu_two else None
    if cpu is not None and cpu.version == 2:  # noqa: PLR2004 - version 2
        return Places(cpu=cpu, freezer=cpu)
    freezer = Place(base=two[0], version=2) if two else Place(base=freezer_one, version=1) if freezer_one else None
    notice = (
        ""
        if cpu
        else (
            "no CPU quota: no cgroup with the cpu controller is writable here; run as root, or (systemd) inside"
            " `systemd-run --user --scope -p Delegate=yes`"
        )
    )
    return Places(cpu=cpu, freezer=freezer, notice=notice)


def _own_groups() -> dict[str, str]:
    """Controller ("" is version 2) -> directory of the caller's own group."""
    mine = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mine.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, point = left.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in names:
            if name in mine and (name == "" or name in ("cpu", "freezer")):
                found.setdefault(name, _below(point, root, mine[name]))
    return found


def _below(point: str, root: str, path: str) -> str:
    inside = path.removeprefix(root) if root != "/" and path.startswith(root) else path if root == "/" else "/"
    return str(Path(point) / inside.strip("/"))


def _writable(path: str | None) -> str | None:
    return path if path and os.access(path, os.W_OK) and os.access(f"{path}/cgroup.procs", os.W_OK) else None


def _candidates(own: str | None) -> list[str]:
    """Groups of version 2, the caller's own first, then those above it, in which the caller may make groups."""
    found = []
    at = Path(own) if own else None
    while at is not None and (at / "cgroup.procs").exists():
        if _writable(str(at)):
            found.append(str(at))
        at = at.parent if at.parent != at else None
    return found


def _gives_cpu(base: str) -> bool:
    """True where groups below `base` have a quota, switching that on if the kernel lets us."""
    control = Path(base, "cgroup.subtree_control")
    with contextlib.suppress(OSError):
        if "cpu" in control.read_text().split():
            return True
        if "cpu" in Path(base, "cgroup.controllers").read_text().split():
            control.write_text("+cpu")
            return True
    return False


def groups_of(places: Places, name: str, cpus: float | None) -> Groups:
    """The groups of a host whose mark is `name`; nothing is made yet."""
    wanted = places.cpu if cpus is not None else None
    return Groups(
        cpu=f"{wanted.base}/{name}" if wanted else None,
        freezer=f"{places.freezer.base}/{name}" if places.freezer else None,
        freezer_version=places.freezer.version if places.freezer else 2,
    )


def make(groups: Groups, cpus: float | None) -> None:
    """Make a host's groups and set its quota. Raises `LabError`."""
    try:
        for path in groups.paths():
            Path(path).mkdir(exist_ok=True)
        if groups.cpu and cpus is not None:
            quota = max(1000, int(cpus * _PERIOD_US))
            if Path(groups.cpu, "cpu.max").exists():
                Path(groups.cpu, "cpu.max").write_text(f"{quota} {_PERIOD_US}")
            else:
                Path(groups.cpu, "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                Path(groups.cpu, "cpu.cfs_quota_us").write_text(str(quota))
    except OSError as error:
        raise LabError(
            f"cannot make the cgroup {error.filename}: {error.strerror}; leave `cpus` out, or run as root"
        ) from None


def set_frozen(groups: Groups, *, frozen: bool, deadline_s: float = 5.0) -> bool:
    """Freeze or thaw a host by its group and wait until it is so. False where it has none."""
    if groups.freezer is None or not Path(groups.freezer).exists():
        return False
    two = groups.freezer_version == 2  # noqa: PLR2004 - version 2
    path = Path(groups.freezer, "cgroup.freeze" if two else "freezer.state")
    path.write_text(("1" if frozen else "0") if two else ("FROZEN" if frozen else "THAWED"))
    until = time.monotonic() + deadline_s
    while frozen and not _is_frozen(groups.freezer, two=two):
        if time.monotonic() > until:
            raise LabError(
                f"{groups.freezer} did not freeze within {deadline_s:g} s; thaw it and look at its processes"
            )
        time.sleep(_POLL_S)
    return True


def _is_frozen(group: str, *, two: bool) -> bool:
    if two:
        return "frozen 1" in Path(group, "cgroup.events").read_text()
    return Path(group, "freezer.state").read_text().strip() == "FROZEN"


def remove(bases: Iterable[str], prefix: str, *, deadline_s: float = 5.0) -> None:
    """Remove the groups below `bases` whose names begin with `prefix`; their processes have ended. Raises `LabError`."""
    until = time.monotonic() + deadline_s
    for base in bases:
        for path in Path(base).glob(f"{prefix}*"):
            while path.exists():
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > until:
                        raise LabError(f"cannot remove {path}: {error.strerror}; end what runs in it") from None
                    time.sleep(_POLL_S)
