"""Machines by way of Ray's own autoscaler v2, which knows clouds and Kubernetes: asked for by label, one bundle a machine.

The type is chosen here, Ray only carries it out: each bundle is as large as a machine and wants the label of its type.
Ray has one slot for such requests in a cluster; this is its only owner, and each order says anew all that is to stand.
Ray gives machines no names of ours: a new node with a type's label is the oldest machine of that type that is on its way,
and a node that was there before is named after its id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from atoll.control_plane import ray_api
from atoll.control_plane.autoscaling.facts import Machine
from atoll.control_plane.autoscaling.provider import Order, ProviderFailed, SoldOut
from atoll.control_plane.autoscaling.spec import Scaling
from atoll.errors import ConnectError
from atoll.schema.offers import TYPE

NODE_ID = "ray.io/node-id"
_ID_LETTERS = 8
_SLOT = ("CPU", "GPU")


@dataclass(slots=True)
class _Wanted:
    kind: str
    asked_at: float
    ray_node: str = ""


class RayProvider:
    """`now` is Unix time, as Ray stamps its failures."""

    def __init__(self, address: str, scaling: Scaling, now: Callable[[], float]) -> None:
        self._address = address
        self._scaling = scaling
        self._now = now
        self._wanted: dict[str, _Wanted] = {}
        # `launch` and `terminate` come from threads of their own.
        self._lock = threading.Lock()

    def machines(self) -> tuple[Machine, ...]:
        """Those that were asked for, and those of our types that Ray has."""
        with self._lock:
            try:
                alive = {node: labels for node, labels in ray_api.ray_nodes(self._address) if labels.get(TYPE)}
            except Exception as error:  # noqa: BLE001 - Ray's client raises its own RPC errors
                raise ProviderFailed(f"Ray at {self._address} does not answer: {error}") from None
            self._match({node: labels[TYPE] for node, labels in alive.items()})
            return tuple(
                Machine(instance=name, kind=w.kind, label=(NODE_ID, w.ray_node) if w.ray_node else None)
                for name, w in self._wanted.items()
            )

    def _match(self, alive: dict[str, str]) -> None:
        for name, wanted in list(self._wanted.items()):
            if wanted.ray_node and wanted.ray_node not in alive:
                del self._wanted[name]
        taken = {w.ray_node for w in self._wanted.values()}
        for node, kind in sorted(alive.items()):
            if node in taken or self._scaling.type_of(kind) is None:
                continue
            coming = [n for n, w in self._wanted.items() if w.kind == kind and not w.ray_node]
            if coming:
                self._wanted[min(coming, key=lambda n: self._wanted[n].asked_at)].ray_node = node
            else:
                self._wanted[f"{kind}-{node[:_ID_LETTERS]}"] = _Wanted(kind, self._now(), node)

    def launch(self, order: Order) -> None:
        """Ask for one more. A type that Ray's provider has just refused is sold out."""
        with self._lock:
            before = self._wanted.get(order.instance)
            self._wanted[order.instance] = before or _Wanted(order.kind, self._now())
            self._ask()
        failures = [f for f in self._failures() if f[0] == order.kind and f[1] >= self._now() - 1.0]
        if failures:
            with self._lock:
                self._wanted.pop(order.instance, None)
                self._ask()
            raise SoldOut(f"{order.kind}: {failures[-1][2] or 'Ray could not start it'}")

    def terminate(self, instance: str) -> None:
        """Ask for one less, and have Ray end this very node."""
        with self._lock:
            gone = self._wanted.pop(instance, None)
            self._ask()
        if gone is not None and gone.ray_node:
            try:
                ray_api.end_idle(self._address, gone.ray_node, f"the autoscaler of Atoll gave up {instance}")
            except ConnectError as error:
                raise ProviderFailed(str(error)) from None

    def _failures(self) -> list[tuple[str, float, str]]:
        try:
            return ray_api.failed_launches(self._address)
        except Exception as error:  # noqa: BLE001 - as above
            raise ProviderFailed(f"Ray at {self._address} does not answer: {error}") from None

    def _ask(self) -> None:
        bundles, selectors = [], []
        for wanted in self._wanted.values():
            kind = self._scaling.type_of(wanted.kind)
            if kind is not None:
                amounts = {"CPU": kind.cpus, "GPU": kind.gpus}
                bundles.append({name: float(amounts[name]) for name in _SLOT if amounts[name]})
                selectors.append({TYPE: kind.name})
        try:
            ray_api.request_machines(self._address, bundles, selectors)
        except ConnectError as error:
            raise ProviderFailed(str(error)) from None
