"""Whether the kernel killed for memory just now: the evidence that tells a SIGKILL of its from one of a person.

Two counters rise with each such kill: `oom_kill` in the `memory.events` of this agent's own cgroup (a limit of a
container or service), and in `/proc/vmstat` (the whole machine). A trainer that died of SIGKILL within `RECENT_S` of a
rise is held for the victim; Atoll's own kills are known as fences and never ask.
"""

from __future__ import annotations

from pathlib import Path

# The agent hears of an exit within milliseconds; counters are looked at each second.
RECENT_S = 3.0
_CGROUPS = Path("/sys/fs/cgroup")


class MemoryKills:
    """Watches the counters. `look` each second, ask `recent` on an exit."""

    def __init__(self, vmstat: Path = Path("/proc/vmstat"), cgroup: Path | None = None) -> None:
        self._files = [vmstat, (_own_cgroup() if cgroup is None else cgroup) / "memory.events"]
        self._seen = self._count()
        self._rose_at: float | None = None

    def look(self, now: float) -> None:
        """Read the counters. `now`: monotonic seconds."""
        count = self._count()
        if count > self._seen:
            self._rose_at = now
        self._seen = count

    def recent(self, now: float) -> bool:
        """Whether one rose a moment ago."""
        self.look(now)
        return self._rose_at is not None and now - self._rose_at <= RECENT_S

    def _count(self) -> int:
        return sum(_counter(file) for file in self._files)


def _own_cgroup() -> Path:
    """The cgroup of this process, in a unified hierarchy; a path that does not exist elsewhere."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _CGROUPS
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return _CGROUPS / own


def _counter(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = [line.split() for line in text.splitlines() if line.startswith("oom_kill ")]
    return int(found[0][1]) if found and found[0][1:] and found[0][1].isdigit() else 0
