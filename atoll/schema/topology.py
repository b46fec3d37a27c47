"""What is known of the network: NICs of nodes, measured links between NICs, trunks that several links share.

Bandwidths are bytes of payload a second in one direction, latencies seconds one way. Directed: a link and its way back
are two. Everything here is measured or declared; what follows from it (islands, plans) is decided elsewhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from atoll.schema.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One network interface of a node with its address. `bandwidth`: all its links together; None while unknown."""

    name: str
    host: str
    prefix: int = 32
    bandwidth: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A node's NICs, fastest first, and the labels its owner gave it (`island` is a hint for clustering)."""

    node: NodeId
    nics: tuple[Nic, ...]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """From a NIC of one node to a NIC of another. `flow_bandwidth`: what one connection reaches, where that is less."""

    source: NodeId
    source_nic: str
    target: NodeId
    target_nic: str
    latency_s: float
    bandwidth: float
    flow_bandwidth: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """All links from `sources` to `targets` together carry `bandwidth`, whatever each carries alone."""

    sources: tuple[NodeId, ...]
    targets: tuple[NodeId, ...]
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The network as known at `version`; a higher version replaces a lower one."""

    hosts: tuple[Host, ...]
    links: tuple[Link, ...] = ()
    trunks: tuple[Trunk, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where a trainer listens besides its first address: one more NIC of its node."""

    nic: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What real traffic showed of one link in a window of `window_s` seconds: `bytes` acknowledged while some were under way.

    `busy_s`: how long some were (`tcpi_busy_time` less `tcpi_rwnd_limited`, so that a slow reader is no slow link).
    `messages`: how many bursts they came in; each costs a round trip that is no fault of the link. Several connections
    of one link are added up before. `best`: bytes/s of its best stretch, since a slow link is slow in all of them, and a
    host that had no processor for its network only in some; 0: not known.
    """

    source: NodeId
    source_nic: str
    target: NodeId
    target_nic: str
    bytes: int
    busy_s: float
    rtt_s: float
    window_s: float = 0.0
    messages: int = 1
    best: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detour:
    """Two nodes whose members met by these NICs, though better ones are known: those did not answer."""

    source: NodeId
    source_nic: str
    target: NodeId
    target_nic: str


class What(enum.StrEnum):
    """What a change is about."""

    FOUND = "found"
    LINK = "link"
    SENDER = "sender"
    RECEIVER = "receiver"
    TRUNK = "trunk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is now known to be otherwise, bandwidths in bytes/s, and from what it follows."""

    what: What
    sources: tuple[NodeId, ...]
    targets: tuple[NodeId, ...]
    nic: str = ""
    before: float | None
    after: float | None
    evidence: str

    def __str__(self) -> str:
        where = {
            What.SENDER: f"NIC {self.nic} of {' '.join(self.sources)} out",
            What.RECEIVER: f"NIC {self.nic} of {' '.join(self.targets)} in",
            What.TRUNK: f"trunk {' '.join(self.sources)} -> {' '.join(self.targets)}",
        }.get(self.what, f"link {' '.join(self.sources)} -> {' '.join(self.targets)}")
        return f"{where}: {rate_text(self.before)} -> {rate_text(self.after)}: {self.evidence}"


def rate_text(bytes_s: float | None) -> str:
    """A bandwidth in the unit that NICs are sold in."""
    if bytes_s is None:
        return "unknown"
    bits = bytes_s * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits / 1e3:.3g} kbit/s"
