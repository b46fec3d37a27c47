"""The NICs of this node: names, addresses, networks and nominal speeds, the NIC by which the node is known first.

A cluster that was put on loopback stays there: nothing of it listens on other addresses. Else loopback is no NIC, nor are
bridges and tunnels that containers make on each host with the same addresses: they lead nowhere else. Of the others each
that is up counts with its first address, IPv4 if it has one.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from atoll.schema.topology import Nic

# By the names that their makers give: Docker, libvirt, LXC, Kubernetes' network plug-ins.
_INSIDE_THE_HOST = ("docker", "br-", "virbr", "lxcbr", "lxdbr", "cni", "flannel", "cali", "podman", "kube-")


def nics(address: str) -> tuple[Nic, ...]:
    """All NICs of this node, first the one that bears `address`, then the nominally faster ones."""
    found = [
        (_speed(name), nic) for name, nic in _up() if not _loopback(nic.host) and not name.startswith(_INSIDE_THE_HOST)
    ]
    chosen = next((nic for _, nic in _up() if nic.host == address), None)
    if chosen is None:
        chosen = Nic(name="", host=address)  # a name, or an address that another host translates to ours
    if _loopback(address):
        return (chosen,)
    others = [(speed, nic) for speed, nic in found if nic.name != chosen.name]
    return (chosen, *(nic for _, nic in sorted(others, key=lambda f: (-f[0], f[1].name))))


def _up() -> list[tuple[str, Nic]]:
    stats = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        usable = [a for family in (socket.AF_INET, socket.AF_INET6) for a in addresses if a.family == family]
        hosts = [(a.address.partition("%")[0], a.netmask) for a in usable]
        good = [(host, mask) for host, mask in hosts if not ipaddress.ip_address(host).is_link_local]
        if good and name in stats and stats[name].isup:
            host, mask = good[0]
            found.append((name, Nic(name=name, host=host, prefix=_prefix(host, mask))))
    return found


def _prefix(host: str, mask: str | None) -> int:
    whole = ipaddress.ip_address(host).max_prefixlen
    return int(ipaddress.ip_address(mask)).bit_count() if mask else whole


def _speed(name: str) -> int:
    return int(psutil.net_if_stats()[name].speed)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
