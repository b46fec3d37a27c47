"""The networks that are measured on, what is known of them, and what no algorithm can beat there.

Rates in the specs are bits a second of Ethernet frames, as the lab shapes them; bounds and topologies count payload. A
NIC is called as the network that it is on. Bounds: N bytes, P ranks, b bytes/s of a NIC.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, product

from atoll.lab.spec import HostSpec, LabSpec, Network, NicSpec, TrunkSpec, payload_rate, segments
from atoll.schema.ids import NodeId
from atoll.schema.topology import Host, Link, Nic, Topology, Trunk

MBIT = 1e6
MIB = 1 << 20
FAST, SLOW = 500 * MBIT, 50 * MBIT
WIDE = "wide"
# One way through two namespaces and a switch on one machine, with the wake-ups of both ends.
LATENCY_S = 150e-6
# What an unshaped pair carries on two cores; only for plans, nothing is measured against it.
_UNSHAPED = 8000 * MBIT

Address = Callable[[str, str], str]


def two_islands(hosts: int, fast: float = FAST, slow: float = SLOW) -> LabSpec:
    """Two islands of `hosts`; besides its island's NIC each host has a slow one that reaches all."""
    return islands([hosts, hosts], [fast, fast], slow)


def islands(sizes: Sequence[int], fast: Sequence[float], slow: float, only_slow: int = 0) -> LabSpec:
    """Islands of these sizes and rates, a slow NIC on every host; `only_slow` more hosts have no other."""
    names = [f"island{n}" for n in range(len(sizes))]
    hosts = [
        host(f"{chr(97 + n)}{i}", {name: fast[n], WIDE: slow})
        for n, (name, size) in enumerate(zip(names, sizes, strict=True))
        for i in range(size)
    ]
    hosts += [host(f"z{i}", {WIDE: slow}) for i in range(only_slow)]
    return lab(hosts, [*names, WIDE])


def trunked(hosts: int, fast: float = FAST, trunk: float = SLOW) -> LabSpec:
    """Two switches with `hosts` each, one full-duplex cable between."""
    names = ("east", "west")
    made = [host(f"{name[0]}{i}", {name: fast}) for name in names for i in range(hosts)]
    return lab(made, names, [TrunkSpec(first="east", second="west", rate=trunk)])


def flat(hosts: int, rate: float | None = None) -> LabSpec:
    """All on one switch."""
    return lab([host(f"a{i}", {"flat": rate}) for i in range(hosts)], ["flat"])


def anyhow(chance: random.Random) -> LabSpec:
    """2 to 8 hosts in 1 to 3 islands, rates from 20 to 500 Mbit/s; islands meet over NICs of their own or over trunks."""
    count = chance.randint(2, 8)
    number = chance.randint(1, min(3, count))
    sizes = _sizes(chance, count, number)
    fast = [_rate(chance, 100, 500) for _ in sizes]
    if number == 1:
        mixed = chance.random() < 0.5
        return lab(
            [host(f"a{i}", {"flat": _rate(chance, 50, 500) if mixed else fast[0]}) for i in range(count)], ["flat"]
        )
    if chance.random() < 0.4:
        names = [f"island{n}" for n in range(number)]
        hosts = [host(f"{chr(97 + n)}{i}", {names[n]: fast[n]}) for n, size in enumerate(sizes) for i in range(size)]
        trunks = [TrunkSpec(first=names[0], second=name, rate=_rate(chance, 20, 100)) for name in names[1:]]
        return lab(hosts, names, trunks)
    spec = islands(sizes, fast, _rate(chance, 20, 100))
    if chance.random() < 0.5:
        return spec
    rates = [_rate(chance, 20, 100) for _ in spec.hosts]
    hosts = [
        host(h.name, {n.network: n.rate for n in h.nics} | {WIDE: rate})
        for h, rate in zip(spec.hosts, rates, strict=True)
    ]
    return lab(hosts, [n.name for n in spec.networks])


def _sizes(chance: random.Random, count: int, number: int) -> list[int]:
    cuts = [0, *sorted(chance.sample(range(1, count), number - 1)), count]
    return [b - a for a, b in pairwise(cuts)]


def _rate(chance: random.Random, low: float, high: float) -> float:
    """Evenly over the logarithm, so that slow rates are no rarer than fast ones."""
    return round(math.exp(chance.uniform(math.log(low), math.log(high)))) * MBIT


def host(name: str, rates: dict[str, float | None]) -> HostSpec:
    """A host with a NIC on each of these networks."""
    return HostSpec(name=name, nics=tuple(NicSpec(name=n, network=n, rate=rate) for n, rate in rates.items()))


def lab(hosts: Iterable[HostSpec], networks: Iterable[str], trunks: Iterable[TrunkSpec] = ()) -> LabSpec:
    """These as a lab without a head."""
    return LabSpec(
        name="bench", networks=tuple(Network(name=n) for n in networks), hosts=tuple(hosts), trunks=tuple(trunks)
    )


def drawn(spec: LabSpec) -> str:
    """In a line: each network with its hosts' rates in Mbit/s, and the trunks."""
    words = []
    for network in spec.networks:
        rates = [spec.rate_of(n) for h in spec.hosts for n in h.nics if n.network == network.name]
        shown = [("-" if r is None else f"{r / MBIT:g}") for r in rates]
        words.append(
            f"{network.name} {shown[0]} x {len(shown)}" if len(set(shown)) == 1 else " ".join((network.name, *shown))
        )
    words += [f"{t.first}={t.second} {(t.rate or 0) / MBIT:g}" for t in spec.trunks]
    return ", ".join(words)


def topology(spec: LabSpec, address: Address, version: int = 1) -> Topology:
    """What agents would have measured of `spec`."""
    hosts = tuple(
        Host(
            node=NodeId(h.name),
            nics=tuple(
                Nic(name=n.name, host=address(h.name, n.name), bandwidth=_bytes(spec.rate_of(n))) for n in h.nics
            ),
        )
        for h in spec.hosts
    )
    return Topology(hosts=hosts, links=tuple(_links(spec)), trunks=tuple(_trunks(spec)), version=version)


def _links(spec: LabSpec) -> Iterable[Link]:
    groups = segments(spec)
    ends = [(h.name, n) for h in spec.hosts for n in h.nics]
    for (a, one), (b, other) in product(ends, ends):
        group = next(g for g in groups if one.network in g)
        if a == b or other.network not in group:
            continue
        rates = [_bytes(spec.rate_of(one)), _bytes(spec.rate_of(other))]
        rates += [_bytes(t.rate) for t in _between(spec, one.network, other.network)]
        yield Link(
            source=NodeId(a),
            source_nic=one.name,
            target=NodeId(b),
            target_nic=other.name,
            latency_s=LATENCY_S,
            bandwidth=min(rates),
        )


def _trunks(spec: LabSpec) -> Iterable[Trunk]:
    """Each cable's two directions: who is on this side sends to who is beyond."""
    for trunk in spec.trunks:
        near = _side(spec, trunk.first, trunk)
        group = next(g for g in segments(spec) if trunk.first in g)
        here = tuple(NodeId(h.name) for h in spec.hosts if any(n.network in near for n in h.nics))
        beyond = set(group) - near
        there = tuple(NodeId(h.name) for h in spec.hosts if any(n.network in beyond for n in h.nics))
        yield Trunk(sources=here, targets=there, bandwidth=_bytes(trunk.rate))
        yield Trunk(sources=there, targets=here, bandwidth=_bytes(trunk.rate))


def _side(spec: LabSpec, network: str, without: TrunkSpec) -> set[str]:
    """The networks that `network` reaches if `without` is pulled."""
    found, grew = {network}, True
    while grew:
        more = {e for t in spec.trunks if t != without and {t.first, t.second} & found for e in (t.first, t.second)}
        grew, found = not more <= found, found | more
    return found


def _between(spec: LabSpec, one: str, other: str) -> list[TrunkSpec]:
    return [t for t in spec.trunks if (one in (side := _side(spec, t.first, t))) != (other in side)]


def _bytes(rate: float | None) -> float:
    found = payload_rate(_UNSHAPED if rate is None else rate)
    assert found is not None
    return found


# -- what nothing can beat ---------------------------------------------------------------------------------------------


def ring_bound(size_bytes: int, ranks: int, rate: float, sharing: int = 1) -> float:
    """A flat ring's seconds where `sharing` of its edges share one link of `rate` bit/s: 2 (P-1)/P N/b each."""
    return sharing * 2 * (ranks - 1) / ranks * size_bytes / _bytes(rate)


def islands_bound(size_bytes: int, hosts: int, fast: float, slow: float, coded: float = 1.0) -> float:
    """Two islands of `hosts`: all NICs crossing at once, N/(h b), or the ring inside, whichever is longer.

    `coded`: bytes that cross for a byte of the message.
    """
    crossing = coded * size_bytes / (hosts * _bytes(slow))
    return max(crossing, 2 * (hosts - 1) / hosts * size_bytes / _bytes(fast))


def trunk_bound(size_bytes: int, rate: float) -> float:
    """Everything crosses one full-duplex cable once each way: N/B."""
    return size_bytes / _bytes(rate)


def crossings(order: Sequence[str]) -> int:
    """How many edges of the ring in this order leave one side for the other, sides being the names' first letters."""
    return sum(a[0] == order[0][0] != b[0] for a, b in zip(order, [*order[1:], order[0]], strict=True))


def interleaved(names: Sequence[str]) -> list[str]:
    """The first of each half, the second of each half, and so on."""
    half = len(names) // 2
    return [name for pair in zip(names[:half], names[half:], strict=True) for name in pair]
