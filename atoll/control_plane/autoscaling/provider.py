"""The seams of the autoscaler: who starts and ends machines, and the cluster that they join.

Calls may take long; each runs on a thread of its own. A failure is one of the errors below, and becomes a fact: nothing
is decided here. A provider keeps what it started under the name that it was given, so that `machines` finds it after a
restart of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from atoll.control_plane.arbiter.model import Ask
from atoll.control_plane.autoscaling.facts import Machine, Standing
from atoll.schema.ids import NodeId


class ProviderFailed(Exception):
    """The provider did not do what it was asked, or did not answer. Never leaves the loop: it becomes a fact."""


class SoldOut(ProviderFailed):
    """The provider has no machine of this type now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One machine. `labels`: what its Ray node must carry, its own name among them; `resources`: what it offers."""

    instance: str
    kind: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)


class Provider(Protocol):
    """Starts and ends machines."""

    def machines(self) -> tuple[Machine, ...]:
        """All machines that it started and has not ended, joined or not. Raises `ProviderFailed`."""
        ...

    def launch(self, order: Order) -> None:
        """Start one; returns when it is on its way. Raises `SoldOut` or `ProviderFailed`."""
        ...

    def terminate(self, instance: str) -> None:
        """End one; ending what is gone is no error. Raises `ProviderFailed`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The cluster as it stands, and the gangs that wait in their order."""

    nodes: tuple[Standing, ...]
    asks: tuple[Ask, ...]


class ClusterDoor(Protocol):
    """The cluster that machines join."""

    def look(self) -> Sight:
        """How it stands. Raises `AtollError` where it does not answer."""
        ...

    def drain(self, node: NodeId, within_s: float, reason: str) -> None:
        """Have a node emptied. Raises `AtollError`."""
        ...

    def undrain(self, node: NodeId) -> None:
        """Let runs be placed there again. Raises `AtollError`."""
        ...
