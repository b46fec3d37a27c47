"""What an `autoscaler.toml` says: the types of machines that may be started, how many, at what price.

A type is a promise: every machine of it joins Ray with the type's labels, CPUs and devices. `labels_of` adds those that
Atoll itself chooses machines by. Prices are of one machine and hour, in whatever currency the file is thought in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.schema.devices import DEVICE, MARKET, SPOT
from atoll.schema.offers import TYPE

# Labels of Atoll on a Ray node that was started by it.
INSTANCE = "atoll-instance"
ZONE, DOMAIN, ISLAND, PRICE, NIC = "zone", "domain", "island", "price", "nic-"
ON_DEMAND = "on-demand"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """One type of machine.

    `speed`: work a member does in a second, in any unit that is the same for all types; measured figures of a run take
    its place. `idle_s`: how long a machine that nobody needs stays. `launch_s`: how long one may take to join.
    `nics`: name of a NIC -> bits a second. `settings`: what only one provider understands, by its name.
    """

    name: str
    cpus: float
    gpus: float = 0.0
    memory_gib: float = 0.0
    device: str = "cpu"
    nics: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    least: int = 0
    most: int = 1
    price_per_hour: float = 0.0
    speed: float = 1.0
    idle_s: float = 300.0
    launch_s: float = 300.0
    spot: bool = False
    zone: str = ""
    domain: str = ""
    island: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The whole file. `budget_per_hour` None: no limit. `patience_s`: how long a gang must have waited to be served.

    `room_s`: how long room may stand for a gang that does not take it. `sold_out_s`: the first pause after a type was
    sold out or its machine never joined; each further one is twice as long, up to `sold_out_most_s`.
    """

    cluster: str
    types: tuple[NodeType, ...]
    provider: str = "ray"
    budget_per_hour: float | None = None
    patience_s: float = 2.0
    room_s: float = 300.0
    drain_s: float = 60.0
    sold_out_s: float = 60.0
    sold_out_most_s: float = 3600.0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def type_of(self, name: str) -> NodeType | None:
        """The type of this name."""
        return next((t for t in self.types if t.name == name), None)


def labels_of(kind: NodeType) -> dict[str, str]:
    """The labels that every machine of the type carries in Ray."""
    own = {
        TYPE: kind.name,
        DEVICE: kind.device,
        MARKET: SPOT if kind.spot else ON_DEMAND,
        ZONE: kind.zone,
        DOMAIN: kind.domain,
        ISLAND: kind.island,
        PRICE: f"{kind.price_per_hour:g}" if kind.price_per_hour else "",
        **{NIC + name: _rate(bits) for name, bits in kind.nics.items()},
    }
    return {**{name: value for name, value in own.items() if value}, **kind.labels}


def _rate(bits: float) -> str:
    """Bits a second as a label may have them: "400G", "2.5G", "50M"."""
    return f"{bits / 1e9:g}G" if bits >= 1e9 else f"{bits / 1e6:g}M"  # noqa: PLR2004 - what G means


def resources_of(kind: NodeType) -> dict[str, float]:
    """What one machine offers, as Ray counts it: CPU, GPU and bytes of memory."""
    found = {"CPU": kind.cpus, "GPU": kind.gpus, "memory": kind.memory_gib * 2**30}
    return {name: value for name, value in found.items() if value or name == "CPU"}
