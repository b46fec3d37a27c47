"""How a lab is now: each NIC with its declared and last measured rate, what has befallen each host, who runs in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from atoll.lab.lab_runtime import Lab
from atoll.lab.layout import PlacedNic
from atoll.lab.proc_members import members
from atoll.lab.spec import payload_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class NicStatus:
    """One NIC. Rates are bytes of payload a second: `declared` None is unshaped, `measured` None is not measured yet."""

    nic: str
    network: str
    address: str
    declared: float | None
    measured: float | None
    cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One host. `state`: up, frozen, killed, or gone (its namespaces ended, though nobody killed it)."""

    host: str
    state: str
    processes: int
    cpus: float | None
    labels: dict[str, str]
    nics: tuple[NicStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabStatus:
    """One lab. `phase` is `raising` for one whose `up` did not end; `slows` are (host, host, bits a second)."""

    name: str
    id: str
    phase: str
    user_namespace: bool
    ray_address: str
    hosts: tuple[HostStatus, ...]
    slows: tuple[tuple[str, str, float], ...]
    notices: tuple[str, ...]


def status(lab: Lab) -> LabStatus:
    """What `atoll lab ls` shows of one lab."""
    record, running = lab.record, Counter(members(lab.record.id).values())
    return LabStatus(
        name=record.name,
        id=record.id,
        phase=record.phase,
        user_namespace=record.user,
        ray_address=record.ray_address,
        hosts=tuple(_host(lab, host.name, running[host.name]) for host in record.spec.everyone()),
        slows=tuple((s.first, s.second, s.rate) for s in record.slows),
        notices=record.notices,
    )


def _host(lab: Lab, name: str, running: int) -> HostStatus:
    record = lab.record
    spec = next(h for h in record.spec.everyone() if h.name == name)
    state = "killed" if name in record.dead else "gone" if not running else "frozen" if name in record.frozen else "up"
    return HostStatus(
        host=name,
        state=state,
        # One of them only holds the namespaces.
        processes=max(0, running - 1),
        cpus=spec.cpus,
        labels=dict(spec.labels),
        nics=tuple(_nic(lab, name, nic) for nic in lab.layout.nics[name]),
    )


def _nic(lab: Lab, host: str, nic: PlacedNic) -> NicStatus:
    measured = [m.bandwidth for m in lab.record.measured if m.source == host and m.nic == nic.name]
    return NicStatus(
        nic=nic.name,
        network=nic.network,
        address=nic.address,
        declared=payload_rate(nic.rate),
        # Of several links the fastest shows what the NIC itself can do.
        measured=max(measured, default=None),
        cut=any(c.host == host and c.nic == nic.name for c in lab.record.cuts),
    )
