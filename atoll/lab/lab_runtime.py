"""A lab that stands: moving into its hosts, and what can befall them.

    with raised(spec) as lab:
        child = lab.popen("a0", [sys.executable, "train.py"])
        lab.cut("a0", "fast")

Every change is written down, so that a command of another process sees it and `heal` undoes it. A cut cable tells no
end (frames vanish at the switch, the carrier stays), as when it is cut somewhere on its way. A killed host falls silent
before its processes die, so that no kernel says goodbye for them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll import config
from atoll.errors import LabError, NotFoundError, SpecError
from atoll.lab import declared, fs_cgroups, proc_namespaces, raising_runtime
from atoll.lab import layout as layouts
from atoll.lab.fs_state import Cut, Labs, Record, Slow
from atoll.lab.layout import PlacedNic, lay_out
from atoll.lab.proc_members import SWITCHES, continue_all, end_all, host_of, mark, stop_all
from atoll.lab.spec import HEAD, LabSpec, parse_rate, with_head
from atoll.schema.topology import Nic, Topology

_REAP_S = 5.0
_POLL_S = 0.005


@contextlib.contextmanager
def raised(spec: LabSpec, ray: bool = False, *, home: Path | None = None) -> Iterator[Lab]:  # noqa: FBT001, FBT002
    """A lab of its own name, taken down at the end whatever happens. `ray`: with a head and Ray nodes."""
    unique = replace(with_head(spec) if ray else spec, name=f"{spec.name[:22]}-{secrets.token_hex(4)}")
    lab = up(unique, home=home)
    try:
        if ray:
            from atoll.lab import ray_nodes  # noqa: PLC0415 - not needed by a bare lab

            ray_nodes.start(lab)
        yield lab
    finally:
        lab.down()


def up(spec: LabSpec, *, home: Path | None = None) -> Lab:
    """Raise a lab that stands until `down`, under the name in `spec`. Raises `LabError` or `SpecError`."""
    labs = Labs(home or config.load().home)
    return Lab(labs, raising_runtime.put_up(labs, spec))


def attach(name: str, *, home: Path | None = None) -> Lab:
    """The lab of this name. Raises `NotFoundError`."""
    labs = Labs(home or config.load().home)
    return Lab(labs, labs.read(name))


class Lab:
    """A handle to a lab that stands. Any process of the user may have one."""

    def __init__(self, labs: Labs, record: Record) -> None:
        self._labs = labs
        self.record = record
        self.layout = lay_out(record.spec)
        self._children: list[tuple[str, subprocess.Popen[Any]]] = []

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.record.name

    @property
    def spec(self) -> LabSpec:
        """What was asked for."""
        return self.record.spec

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts, without the head."""
        return tuple(h.name for h in self.spec.hosts)

    @property
    def head(self) -> str | None:
        """The extra host without trainers, if there is one."""
        return HEAD if self.spec.head is not None else None

    @property
    def notices(self) -> tuple[str, ...]:
        """What this machine could not give, such as CPU quotas."""
        return self.record.notices

    def address(self, host: str, nic: str) -> str:
        """The address of one NIC."""
        return self._nic(host, nic).address

    def nics(self, host: str) -> tuple[Nic, ...]:
        """A host's NICs, the fastest first; `bandwidth` is the payload that its shape lets through."""
        return layouts.known_nics(self.layout, self._known(host))

    def topology(self) -> Topology:
        """The network as declared: what measuring it should find while nothing is cut or slowed."""
        return declared.topology(self.spec, self.layout)

    # -- inside a host -----------------------------------------------------------------------------------------------

    def enter(self, host: str) -> None:
        """Move the calling process into a host, for good. Call it in a forked child, which has one thread."""
        record, name = self.record, self._known(host)
        proc_namespaces.enter(
            raising_runtime.holder(record, name),
            user=record.user,
            home=proc_namespaces.HOME,
            cgroups=record.groups[name].paths(),
        )

    def words(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command that becomes `argv` inside a host, with the pid that it is started with."""
        settings = raising_runtime.ray_environment(self.record)
        inside = ["env", *settings, *argv] if settings else argv
        return [*raising_runtime.enter_words(self.record, self._known(host)), *inside]

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside a host. It ends with the lab at the latest."""
        child = subprocess.Popen(self.words(host, argv), **options)
        self._children.append((host, child))
        return child

    # -- what can befall it ------------------------------------------------------------------------------------------

    def cut(self, host: str, nic: str | None = None) -> None:
        """Cut one cable of a host, or all of them. No end is told: what is sent vanishes."""
        found = (self._nic(host, nic),) if nic else self.layout.nics[self._known(host)]

        def change(record: Record) -> Record:
            raising_runtime.holder(record, host)
            self._switch([layouts.port_state(n, cut=True) for n in found])
            cuts = (*record.cuts, *(Cut(host=host, nic=n.name) for n in found))
            return replace(record, cuts=tuple(dict.fromkeys(cuts)))

        self._change(change)

    def heal(self, host: str | None = None, *, ray: bool = True) -> None:
        """Undo what was cut and slowed, of one host or of all.

        A host that was killed comes back with an empty disk, and a new Ray node where the lab has Ray, unless told not to.
        """
        if host is not None:
            self._known(host)

        back: list[str] = []

        def change(record: Record) -> Record:
            for name in [d for d in record.dead if host in (None, d)]:
                back.append(name)
                spec = next(h for h in record.spec.everyone() if h.name == name)
                record = raising_runtime.bring_back(self._labs, record, spec)
                self.record = record
                # The others never stopped holding back what they send to it.
                self._tc(layouts.slow_changes(self.layout, {}, _pairs(record.slows)), only=name)
            healed = [c for c in record.cuts if host in (None, c.host)]
            self._switch([layouts.port_state(self._nic(c.host, c.nic), cut=False) for c in healed])
            slows = tuple(s for s in record.slows if host is not None and host not in (s.first, s.second))
            self._slow(record, slows)
            return replace(record, cuts=tuple(c for c in record.cuts if c not in healed), slows=slows)

        self._change(change)
        if ray and self.record.ray_address and (nodes := [name for name in back if name != HEAD]):
            from atoll.lab import ray_nodes  # noqa: PLC0415 - not needed by a bare lab

            ray_nodes.join(self, nodes)

    def slow(self, first: str, second: str, rate: float | str) -> None:
        """Hold the traffic between two hosts, each way and on each NIC, to `rate` (bits a second, or "10 Mbit/s")."""
        bits = parse_rate(rate if isinstance(rate, str) else f"{rate:.0f} bit/s", f"slow {first} {second}")
        if self._known(first) == self._known(second) or not self.layout.between(first, second):
            raise SpecError(f"no link joins {first!r} and {second!r}; `atoll lab ls` shows who shares a network")

        def change(record: Record) -> Record:
            others = tuple(s for s in record.slows if {s.first, s.second} != {first, second})
            slows = (*others, Slow(first=first, second=second, rate=bits))
            self._slow(record, slows)
            return replace(record, slows=slows)

        self._change(change)

    def freeze(self, host: str) -> None:
        """Stop every process of a host where it stands; its kernel still acknowledges what arrives."""

        def change(record: Record) -> Record:
            holder = raising_runtime.holder(record, self._known(host))
            if host in record.frozen:
                return record
            self._settle(host)
            if not fs_cgroups.set_frozen(record.groups[host], frozen=True):
                stop_all(record.id, host, holder)
            return replace(record, frozen=tuple(dict.fromkeys((*record.frozen, host))))

        self._change(change)

    def thaw(self, host: str) -> None:
        """Let a frozen host go on."""

        def change(record: Record) -> Record:
            self._thaw(record, self._known(host))
            return replace(record, frozen=tuple(f for f in record.frozen if f != host))

        self._change(change)

    def kill(self, host: str) -> None:
        """Lose a host: its cables fall silent, its processes are killed, its disk is gone."""

        def change(record: Record) -> Record:
            raising_runtime.holder(record, self._known(host))
            self._switch([layouts.port_state(n, cut=True) for n in self.layout.nics[host]])
            record = self._labs.write(replace(record, dead=tuple(dict.fromkeys((*record.dead, host)))))
            self._thaw(record, host)
            self._settle(host)
            end_all(record.id, host)
            groups = record.groups[host].paths()
            fs_cgroups.remove([str(Path(g).parent) for g in groups], mark(record.id, host))
            return replace(
                record,
                cuts=tuple(c for c in record.cuts if c.host != host),
                frozen=tuple(f for f in record.frozen if f != host),
            )

        self._change(change)

    def down(self) -> None:
        """Take the lab down; nothing of it is left. Twice is as once."""
        with contextlib.suppress(NotFoundError):
            raising_runtime.take_down(self._labs, self.name)
        for _, child in self._children:
            # What has not ended by now had not entered the lab yet, and cannot any more.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_REAP_S)
        self._reap_keeper()

    # -- parts -------------------------------------------------------------------------------------------------------

    def update(self, change: Callable[[Record], Record]) -> Record:
        """Write down a change of the lab, on top of what other commands wrote."""
        return self._change(change)

    def _reap_keeper(self) -> None:
        """The keeper is a child of the process that raised the lab, if it still lives."""
        until = time.monotonic() + _REAP_S
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.record.switches, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                time.sleep(_POLL_S)

    def _settle(self, host: str) -> None:
        """Wait for what was just started in a host to have arrived there, lest it is spared."""
        until = time.monotonic() + _REAP_S
        for its, child in self._children:
            while its == host and child.poll() is None and host_of(child.pid, self.record.id) != host:
                if time.monotonic() > until:
                    raise LabError(f"process {child.pid} has not entered host {host!r} for {_REAP_S:g} s; end it")
                time.sleep(_POLL_S)

    def _change(self, change: Callable[[Record], Record]) -> Record:
        with self._labs.locked():
            self.record = self._labs.read(self.name)
            self.record = self._labs.write(change(self.record))
        return self.record

    def _known(self, host: str) -> str:
        if host not in self.layout.nics:
            raise NotFoundError(f"lab {self.name!r} has no host {host!r}; its hosts are {', '.join(self.layout.nics)}")
        return host

    def _nic(self, host: str, nic: str) -> PlacedNic:
        found = self.layout.nic(self._known(host), nic)
        if found is None:
            names = ", ".join(n.name for n in self.layout.nics[host])
            raise NotFoundError(f"host {host!r} of lab {self.name!r} has no NIC {nic!r}; it has {names}")
        return found

    def _switch(self, lines: list[str]) -> None:
        if lines:
            raising_runtime.batch(self.record, SWITCHES, "bridge", lines)

    def _slow(self, record: Record, slows: tuple[Slow, ...]) -> None:
        self._tc(layouts.slow_changes(self.layout, _pairs(record.slows), _pairs(slows)))

    def _tc(self, changes: dict[str, list[str]], only: str | None = None) -> None:
        for host, lines in changes.items():
            if host not in self.record.dead and only in (None, host):
                raising_runtime.batch(self.record, host, "tc", lines)

    def _thaw(self, record: Record, host: str) -> None:
        if not fs_cgroups.set_frozen(record.groups[host], frozen=False):
            continue_all(record.id, host)


def _pairs(slows: tuple[Slow, ...]) -> dict[tuple[str, str], float]:
    return {(s.first, s.second): s.rate for s in slows}
