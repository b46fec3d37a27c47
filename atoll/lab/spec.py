"""What a lab is: networks (switches), hosts with a NIC on some of them, trunks between networks.

Rates are those of a wire, in bits a second of Ethernet frames, as NICs are sold; what is left for TCP's payload is
`payload_rate`. A network's rate is that of every NIC plugged into it, unless the NIC names its own; None is unshaped.
Networks that trunks join are one segment: one range of addresses, every host of it reaches every other. `check` holds
the laws: `where` is the file, for messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from atoll.errors import SpecError

HEAD = "head"
# A /24 holds 254 hosts; far fewer fit a machine. Each costs about 0.4 GiB with a Ray node, 3 MB without.
MAX_HOSTS = 64
# 1448 bytes of payload (TCP with timestamps) in a frame of 1514, which is what the kernel's shapers count.
PAYLOAD_SHARE = 1448 / 1514
# Below, one full frame takes longer than 0.1 s and TCP's retransmission timer fires by itself.
MIN_RATE = 128e3

# Interface names have at most 15 characters in Linux; host names become file names and names in /etc/hosts.
_NIC_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,14}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(?:bit(?:/s|ps)?|bps)\s*", re.IGNORECASE)
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A switch. `rate`: bits a second of each NIC plugged into it, each way; None is unshaped."""

    name: str
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSpec:
    """One NIC of a host, on a network, at the network's rate unless it has its own."""

    name: str
    network: str
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """A host. `cpus`: its quota in cores, None is unlimited; `num_cpus`: what its Ray node offers."""

    name: str
    nics: tuple[NicSpec, ...]
    cpus: float | None = None
    num_cpus: int = 1
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkSpec:
    """A cable between two networks: full duplex, `rate` bits a second each way for all who cross."""

    first: str
    second: str
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSpec:
    """A lab. `head`: the network of an extra host without trainers; None is no such host.

    `shared`: folders of this machine that every host sees even where they lie under its private /tmp.
    """

    name: str
    networks: tuple[Network, ...]
    hosts: tuple[HostSpec, ...]
    trunks: tuple[TrunkSpec, ...] = ()
    head: str | None = None
    shared: tuple[str, ...] = ()

    def network(self, name: str) -> Network:
        """The network of this name."""
        return next(n for n in self.networks if n.name == name)

    def everyone(self) -> tuple[HostSpec, ...]:
        """The hosts, and the head after them where there is one."""
        if self.head is None:
            return self.hosts
        nic = NicSpec(name="mgmt", network=self.head)
        return (*self.hosts, HostSpec(name=HEAD, nics=(nic,), num_cpus=0, labels={"role": HEAD}))

    def rate_of(self, nic: NicSpec) -> float | None:
        """Bits a second of one NIC."""
        return nic.rate if nic.rate is not None else self.network(nic.network).rate


def payload_rate(rate: float | None) -> float | None:
    """Bytes of TCP payload a second that fit a wire of `rate` bits a second."""
    return None if rate is None else rate / 8 * PAYLOAD_SHARE


def parse_rate(text: str, where: str) -> float:
    """Bits a second out of "50 Mbit/s". `where` names the file and the place, for the message."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise SpecError(f"{where}: {text!r} is no rate; write it like '50 Mbit/s', '500 kbit/s' or '1 Gbit/s'")
    value = float(found[1]) * _SCALE[found[2].lower()]
    if value < MIN_RATE:
        raise SpecError(
            f"{where}: {text!r} is under the smallest rate that TCP can use here, {MIN_RATE / 1e3:g} kbit/s"
        )
    return value


def segments(spec: LabSpec) -> tuple[tuple[str, ...], ...]:
    """Networks in groups that trunks join, in the order of their first members."""
    group = {n.name: n.name for n in spec.networks}
    for trunk in spec.trunks:
        old, new = group[trunk.second], group[trunk.first]
        group = {name: new if g == old else g for name, g in group.items()}
    return tuple(tuple(n for n, g in group.items() if g == first) for first in dict.fromkeys(group.values()))


def reaching_all(spec: LabSpec) -> str | None:
    """The network on whose segment every host has a NIC, or None. The head and its Ray belong there."""
    for segment in segments(spec):
        if all(any(nic.network in segment for nic in host.nics) for host in spec.hosts):
            return segment[0]
    return None


def with_head(spec: LabSpec, where: str = "lab") -> LabSpec:
    """`spec` with a head on the network that all hosts reach, unless it has one."""
    if spec.head is not None:
        return spec
    network = reaching_all(spec)
    if network is None:
        raise SpecError(f"{where}: no network reaches every host, so a head could not; give each host a NIC on one")
    return replace(spec, head=network)


def check(spec: LabSpec, where: str = "lab") -> LabSpec:
    """`spec` itself. Raises `SpecError` naming the file, the host and the values that contradict each other."""
    _check_name(spec.name, f"{where}: the lab")
    if not spec.hosts:
        raise SpecError(f"{where}: no hosts; add [[hosts]] with names and nics")
    if len(spec.hosts) > MAX_HOSTS:
        raise SpecError(f"{where}: {len(spec.hosts)} hosts, and a lab holds at most {MAX_HOSTS}")
    _check_unique([n.name for n in spec.networks], f"{where}: network")
    _check_unique([h.name for h in spec.hosts], f"{where}: host")
    known = {n.name: n for n in spec.networks}
    for network in spec.networks:
        _check_name(network.name, f"{where}: network")
        _check_rate(network.rate, f"{where}: network {network.name!r}")
    for host in spec.hosts:
        _check_host(host, known, where)
    _check_trunks(spec, known, where)
    if spec.head is not None:
        _check_network(spec.head, known, f"{where}: the head")
    _check_segments(spec, where)
    return spec


def _check_host(host: HostSpec, known: dict[str, Network], where: str) -> None:
    here = f"{where}: host {host.name!r}"
    _check_name(host.name, f"{where}: host")
    if host.name == HEAD:
        raise SpecError(f"{here}: this name belongs to the head, which is made by itself; choose another")
    if not host.nics:
        raise SpecError(f"{here} has no NIC; give it nics = {{ NAME = NETWORK }}")
    if host.cpus is not None and not 0.01 <= host.cpus <= 1024:  # noqa: PLR2004 - the kernel's smallest quota is 1 ms of 100
        raise SpecError(f"{here}: cpus = {host.cpus:g} is no share of cores; use 0.01 to 1024, or leave it out")
    if host.num_cpus < 0:
        raise SpecError(f"{here}: num_cpus = {host.num_cpus} is negative; it is what the Ray node offers")
    _check_unique([n.name for n in host.nics], f"{here}: NIC")
    for nic in host.nics:
        if not _NIC_NAME.fullmatch(nic.name) or nic.name == "lo":
            raise SpecError(f"{here}: {nic.name!r} is no name of a NIC; use up to 15 of a-z 0-9 _ . -, not 'lo'")
        _check_network(nic.network, known, f"{here}: NIC {nic.name!r}")
        _check_rate(nic.rate, f"{here}: NIC {nic.name!r}")


def _check_trunks(spec: LabSpec, known: dict[str, Network], where: str) -> None:
    joined: list[set[str]] = [{n.name} for n in spec.networks]
    for trunk in spec.trunks:
        here = f"{where}: trunk {trunk.first!r} - {trunk.second!r}"
        for end in (trunk.first, trunk.second):
            _check_network(end, known, here)
        _check_rate(trunk.rate, here)
        sides = [group for group in joined if trunk.first in group or trunk.second in group]
        if len(sides) == 1:
            raise SpecError(
                f"{here} closes a ring of {sorted(sides[0])}, where frames would circle; leave one trunk out"
            )
        joined = [group for group in joined if group not in sides] + [sides[0] | sides[1]]


def _check_segments(spec: LabSpec, where: str) -> None:
    """Two NICs of one host on one segment would answer for each other: Linux takes addresses as the host's."""
    for segment in segments(spec):
        for host in spec.everyone():
            here = [n.name for n in host.nics if n.network in segment]
            if len(here) > 1:
                raise SpecError(
                    f"{where}: host {host.name!r} has NICs {here[0]!r} and {here[1]!r} on one segment {list(segment)};"
                    " a host has one NIC a segment"
                )


def _check_network(name: str, known: Iterable[str], here: str) -> None:
    if name not in known:
        raise SpecError(f"{here} names the network {name!r}, which is not among {sorted(known)}")


def _check_rate(rate: float | None, here: str) -> None:
    if rate is not None and rate < MIN_RATE:
        raise SpecError(f"{here}: a rate of {rate:g} bit/s is under {MIN_RATE:g}; rates are bits a second")


def _check_name(name: str, here: str) -> None:
    if not _NAME.fullmatch(name):
        raise SpecError(f"{here} {name!r} is no name; use a-z, 0-9 and -, a letter first, at most 31")


def _check_unique(names: Sequence[str], here: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            first, again = names.index(name) + 1, index + 1
            raise SpecError(f"{here} {name!r} is named twice, as number {first} and number {again}; rename one")
