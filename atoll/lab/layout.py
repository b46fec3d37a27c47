"""From a lab's spec to addresses, interfaces and the lines that `ip` and `tc` are given. Pure.

One namespace holds all switches: a bridge `s0`, `s1`.. for each network, a port `h2n0` for NIC 0 of host 2, a trunk's
two ends `t0a` and `t0b`. Each host has a namespace with its NICs under their own names. Nothing is made in the machine's
own namespace, so names and addresses need not differ between labs, and ending the namespaces undoes every step here:
an interface lives no longer than the namespace of either of its ends.

Each group of networks that trunks join is one range 10.(64+group).0.0/24; a host has the same last number in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.lab import shaping
from atoll.lab.spec import LabSpec, NicSpec, payload_rate, segments
from atoll.schema.topology import Nic

PREFIX = 24
_FIRST_RANGE = 64
# Bridge ports: forward, or take nothing in and let nothing out (as a cable cut somewhere on its way: no end is told).
FORWARDING, BLOCKED = 3, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedNic:
    """A NIC with its address, the bridge it is plugged into and the port there. `rate`: bits a second."""

    name: str
    network: str
    segment: int
    address: str
    bridge: str
    port: str
    rate: float | None

    @property
    def hardware(self) -> str:
        """The Ethernet address: a locally administered one, made out of the IP address."""
        return ":".join(("02", "00", *(f"{int(part):02x}" for part in self.address.split("."))))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTrunk:
    """A trunk's two ends, each on the bridge of its network."""

    ends: tuple[str, str]
    bridges: tuple[str, str]
    networks: tuple[str, str]
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything is. `nics`: by host, in the order of the file."""

    bridges: dict[str, str]
    nics: dict[str, tuple[PlacedNic, ...]]
    trunks: tuple[PlacedTrunk, ...]

    def nic(self, host: str, name: str) -> PlacedNic | None:
        """One NIC, or None where the host has none of this name."""
        return next((n for n in self.nics[host] if n.name == name), None)

    def fastest_first(self, host: str) -> list[PlacedNic]:
        """Its NICs, the fastest first; unshaped ones are faster than any."""
        return sorted(self.nics[host], key=lambda n: -(n.rate or float("inf")))

    def between(self, first: str, second: str) -> list[tuple[PlacedNic, PlacedNic]]:
        """Pairs of NICs over which two hosts reach each other, the fastest of `first` before."""
        return [
            (mine, other)
            for mine in self.fastest_first(first)
            for other in self.nics[second]
            if mine.segment == other.segment
        ]

    def path(self, source: PlacedNic, target: PlacedNic) -> list[PlacedTrunk]:
        """The trunks between two NICs of one segment."""
        return _path(self.trunks, source.network, target.network, frozenset()) or []

    def crosses(self, network: str, other: str, trunk: PlacedTrunk) -> bool:
        """Whether the way from one network to another leads over this trunk."""
        return trunk in (_path(self.trunks, network, other, frozenset()) or [])

    def link_rate(self, source: PlacedNic, target: PlacedNic, slowed: float | None = None) -> float | None:
        """Bits a second that one link can carry: the least of its NICs, trunks and what it was slowed to."""
        rates = [source.rate, target.rate, slowed, *(t.rate for t in self.path(source, target))]
        return min((r for r in rates if r is not None), default=None)


def _path(trunks: tuple[PlacedTrunk, ...], at: str, to: str, seen: frozenset[str]) -> list[PlacedTrunk] | None:
    if at == to:
        return []
    for trunk in trunks:
        if at not in trunk.networks:
            continue
        other = trunk.networks[1 - trunk.networks.index(at)]
        if other not in seen and (rest := _path(trunks, other, to, seen | {at})) is not None:
            return [trunk, *rest]
    return None


def lay_out(spec: LabSpec) -> Layout:
    """Names and addresses for a spec that `check` passed."""
    bridges = {network.name: f"s{index}" for index, network in enumerate(spec.networks)}
    of = {name: index for index, segment in enumerate(segments(spec)) for name in segment}

    def placed(nic: NicSpec, host: int, number: int) -> PlacedNic:
        segment = of[nic.network]
        return PlacedNic(
            name=nic.name,
            network=nic.network,
            segment=segment,
            address=f"10.{_FIRST_RANGE + segment}.0.{host + 1}",
            bridge=bridges[nic.network],
            port=f"h{host}n{number}",
            rate=spec.rate_of(nic),
        )

    return Layout(
        bridges=bridges,
        nics={
            host.name: tuple(placed(nic, index, number) for number, nic in enumerate(host.nics))
            for index, host in enumerate(spec.everyone())
        },
        trunks=tuple(
            PlacedTrunk(
                ends=(f"t{index}a", f"t{index}b"),
                bridges=(bridges[trunk.first], bridges[trunk.second]),
                networks=(trunk.first, trunk.second),
                rate=trunk.rate,
            )
            for index, trunk in enumerate(spec.trunks)
        ),
    )


# -- lines for `ip -batch` and `tc -batch` ---------------------------------------------------------------------------


def switch_links(layout: Layout) -> list[str]:
    """Bridges and trunks, in the switches' namespace."""
    lines = ["link set dev lo up"]
    for bridge in layout.bridges.values():
        lines += [f"link add {bridge} type bridge mcast_snooping 0", f"link set dev {bridge} up"]
    for trunk in layout.trunks:
        lines.append(f"link add {trunk.ends[0]} type veth peer name {trunk.ends[1]}")
        for end, bridge in zip(trunk.ends, trunk.bridges, strict=True):
            lines += [*shaping.in_pieces(end, trunk.rate, shaping.SPARE), f"link set dev {end} master {bridge} up"]
    return lines


def cables(layout: Layout, host: str) -> list[str]:
    """A host's cables, made in the switches' namespace; the far ends are born in that which the process @PID@ holds.

    A host that comes back has the hardware addresses it had, or others would send to the old ones for a while.
    """
    lines = []
    for nic in layout.nics[host]:
        lines.append(f"link add {nic.port} type veth peer name {nic.name} address {nic.hardware} netns @PID@")
        lines += [
            *shaping.in_pieces(nic.port, nic.rate, shaping.SPARE),
            f"link set dev {nic.port} master {nic.bridge} up",
        ]
    return lines


def host_links(layout: Layout, host: str) -> list[str]:
    """Addresses, inside a host."""
    lines = ["link set dev lo up"]
    for nic in layout.nics[host]:
        lines += [
            f"addr add {nic.address}/{PREFIX} dev {nic.name}",
            *shaping.in_pieces(nic.name, nic.rate),
            f"link set dev {nic.name} up",
        ]
    return lines


def switch_shapes(layout: Layout) -> list[str]:
    """Both ends of each trunk."""
    return [line for trunk in layout.trunks for end in trunk.ends for line in shaping.wire(end, trunk.rate)]


def port_shapes(layout: Layout, host: str) -> list[str]:
    """What the switches send to a host."""
    return [line for nic in layout.nics[host] for line in shaping.wire(nic.port, nic.rate)]


def host_shapes(layout: Layout, host: str) -> list[str]:
    """What a host sends."""
    return [line for nic in layout.nics[host] for line in shaping.wire(nic.name, nic.rate)]


def port_state(nic: PlacedNic, *, cut: bool) -> str:
    """The line for `bridge` that cuts or heals one cable at its switch."""
    return f"link set dev {nic.port} state {BLOCKED if cut else FORWARDING}"


def hosts_file(layout: Layout, host: str) -> str:
    """`/etc/hosts` as `host` sees it: each name at the fastest NIC that both share, and `name.nic` for each one."""
    lines = ["127.0.0.1 localhost"]
    for other, nics in layout.nics.items():
        shared = layout.between(host, other)
        best = shared[0][1].address if shared else None
        lines += [f"{n.address} {other}.{n.name}" + (f" {other}" if n.address == best else "") for n in nics]
    return "\n".join(lines) + "\n"


def known_nics(layout: Layout, host: str) -> tuple[Nic, ...]:
    """A host's NICs as the rest of Atoll knows them, the fastest first; `bandwidth` is what TCP's payload can reach."""
    return tuple(
        Nic(name=n.name, host=n.address, prefix=PREFIX, bandwidth=payload_rate(n.rate))
        for n in layout.fastest_first(host)
    )


def slow_changes(
    layout: Layout, before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]
) -> dict[str, list[str]]:
    """Host -> lines for `tc` that turn one set of slowed pairs into another. Pairs are of hosts, each both ways."""
    old, new = _directed(layout, before), _directed(layout, after)
    lines: dict[str, list[str]] = {host: [] for host in layout.nics}
    for host, nics in layout.nics.items():
        for nic in nics:
            here_old = {k: v for k, v in old.items() if k[:2] == (host, nic.name)}
            here_new = {k: v for k, v in new.items() if k[:2] == (host, nic.name)}
            lines[host] += _nic_changes(nic, here_old, here_new)
    return {host: found for host, found in lines.items() if found}


# (host, its NIC, the other's address) -> rate
_Slowed = dict[tuple[str, str, str], float]


def _directed(layout: Layout, pairs: Mapping[tuple[str, str], float]) -> _Slowed:
    return {
        (source, mine.name, other.address): rate
        for (first, second), rate in pairs.items()
        for source, target in ((first, second), (second, first))
        for mine, other in layout.between(source, target)
    }


def _nic_changes(nic: PlacedNic, old: _Slowed, new: _Slowed) -> list[str]:
    if nic.rate is None and old and not new:
        return shaping.no_tree(nic.name)
    lines = shaping.unshaped_tree(nic.name) if nic.rate is None and new and not old else []
    for key in old:
        if new.get(key) != old[key]:
            lines += shaping.unslowed(nic.name, _number(key[2]))
    for key, rate in new.items():
        if old.get(key) != rate:
            lines += shaping.slowed(nic.name, nic.rate, _number(key[2]), key[2], rate)
    return lines


def _number(address: str) -> int:
    return int(address.rpartition(".")[2])
