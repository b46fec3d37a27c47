"""Hosts of a lab as machines: started with a real Ray node each, and ended as a machine is, with all that was on it.

[types.small.settings.lab]
hosts = ["a0", "a1"]           # those that are machines of this type; when all are in use, it is sold out
never_join = ["a1"]            # these start and say nothing: no Ray ever runs there

What was started stands in the lab's own record, so that another process finds it. A host that was killed by other means is
a machine that its provider lists no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from atoll.control_plane.autoscaling.facts import Machine
from atoll.control_plane.autoscaling.provider import Order, ProviderFailed, SoldOut
from atoll.control_plane.autoscaling.spec import NodeType, Scaling
from atoll.errors import AtollError, SpecError
from atoll.lab import ray_nodes
from atoll.lab.fs_state import Record, Started
from atoll.lab.lab_runtime import Lab

_KEYS = ("hosts", "never_join")


class LabProvider:
    """Raises `SpecError` where the file names hosts that the lab has not."""

    def __init__(self, lab: Lab, scaling: Scaling) -> None:
        self._lab = lab
        self._hosts = {kind.name: _named(lab, kind, "hosts") for kind in scaling.types}
        self._mute = {host for kind in scaling.types for host in _named(lab, kind, "never_join")}
        for kind in scaling.types:
            if not self._hosts[kind.name]:
                raise SpecError(f"[types.{kind.name}.settings.lab] hosts is missing; name hosts of lab {lab.name!r}")

    def machines(self) -> tuple[Machine, ...]:
        """Those that were started and live."""
        try:
            record = self._lab.update(_without_dead)
        except AtollError as error:
            raise ProviderFailed(str(error)) from None
        return tuple(Machine(instance=m.instance, kind=m.kind) for m in record.machines)

    def launch(self, order: Order) -> None:
        """Start a free host of the type; returns when its Ray node has joined."""
        host = self._reserve(order)
        try:
            if host in self._lab.record.dead:
                self._lab.heal(host, ray=False)
            if host not in self._mute:
                ray_nodes.join(self._lab, [host], dict(order.labels))
        except AtollError as error:
            self._release(order.instance)
            raise ProviderFailed(f"{host}: {error}") from None

    def _reserve(self, order: Order) -> str:
        chosen: list[str] = []

        def take(record: Record) -> Record:
            used = {m.host for m in record.machines}
            free = [host for host in self._hosts.get(order.kind, ()) if host not in used]
            if not free:
                return record
            chosen.append(free[0])
            started = Started(instance=order.instance, kind=order.kind, host=free[0])
            return replace(record, machines=(*record.machines, started))

        try:
            self._lab.update(take)
        except AtollError as error:
            raise ProviderFailed(str(error)) from None
        if not chosen:
            raise SoldOut(f"{order.kind} is sold out: all its hosts in lab {self._lab.name!r} are in use")
        return chosen[0]

    def _release(self, instance: str) -> None:
        self._lab.update(lambda r: replace(r, machines=tuple(m for m in r.machines if m.instance != instance)))

    def terminate(self, instance: str) -> None:
        """Lose the host with all that is on it."""
        try:
            host = next((m.host for m in self._lab.update(lambda r: r).machines if m.instance == instance), None)
            if host is not None and host not in self._lab.record.dead:
                self._lab.kill(host)
            self._release(instance)
        except AtollError as error:
            raise ProviderFailed(str(error)) from None


def _without_dead(record: Record) -> Record:
    """Only where there is something to forget: a record is not written for a look."""
    living = tuple(m for m in record.machines if m.host not in record.dead)
    return record if living == record.machines else replace(record, machines=living)


def _named(lab: Lab, kind: NodeType, key: str) -> tuple[str, ...]:
    own: Mapping[str, Any] = kind.settings.get("lab", {})
    unknown = set(own) - set(_KEYS)
    if unknown:
        raise SpecError(f"[types.{kind.name}.settings.lab] {min(unknown)}: unknown key; known are {', '.join(_KEYS)}")
    hosts = own.get(key, [])
    strange = [host for host in hosts if host not in lab.hosts]
    if strange:
        raise SpecError(
            f"[types.{kind.name}.settings.lab] {key}: lab {lab.name!r} has no host {strange[0]!r}; its hosts are"
            f" {', '.join(lab.hosts)}"
        )
    return tuple(hosts)
