"""A network of the imagination as people see it: two islands and a host with only a slow NIC, measured, told by the core."""

from __future__ import annotations

import itertools

from atoll.control_plane.desk import Desk
from atoll.control_plane.projection import topology_view
from atoll.schema.messages import AgentHello, PeerProbed, Versions
from atoll.schema.topology import Door, Link, Nic
from atoll.schema.views import TopologyView

MBIT = 1e6 / 8
FAST = {"node-a": "10.1.0.4", "node-b": "10.1.0.5", "node-c": "10.2.0.6", "node-d": "10.2.0.7"}
SLOW = {"node-a": "10.0.0.4", "node-b": "10.0.0.5", "node-c": "10.0.0.6", "node-d": "10.0.0.7", "node-z": "10.0.0.9"}


def imagined_network(now: float, *, measured: bool = True) -> TopologyView:
    """What the control plane shows of it at `now`; links were measured a minute before."""
    desk = Desk(now=now)
    for node, address in SLOW.items():
        nics = [Nic(name=n, host=of[node], prefix=24) for n, of in (("ib0", FAST), ("eth0", SLOW)) if node in of]
        hello = AgentHello(
            node=node,
            pid=1,
            address=address,
            state_dir="/",
            versions=Versions(atoll="0", protocol=1, python="3"),
            last_incarnation=0,
            nics=tuple(nics),
            doors=tuple(Door(nic=n.name, host=n.host, port=1) for n in nics),
            probes=_results(node, now - 60) if measured else (),
        )
        desk.probes.attached(hello, {"island": "east"} if node in {"node-a", "node-b"} else {}, clock=1.0, now=now)
    if measured:
        desk.probes.problems["node-b", "node-z"] = "10.0.0.9:4000: no answer in time"
    return topology_view(desk)


def _results(node: str, at: float) -> tuple[PeerProbed, ...]:
    found = []
    for nic, of, rate in (("ib0", FAST, 9200 * MBIT), ("eth0", SLOW, 940 * MBIT)):
        for a, b in itertools.combinations(sorted(of), 2):
            same = of[a].rpartition(".")[0] == of[b].rpartition(".")[0]
            if a == node and same and (a, b) != ("node-b", "node-z"):
                links = tuple(_link(x, y, nic, rate) for x, y in ((a, b), (b, a)))
                found.append(PeerProbed(request="", peer=b, at=at, seconds=0.1, links=links))
    return tuple(found)


def _link(source: str, target: str, nic: str, rate: float) -> Link:
    ends = {"source": source, "source_nic": nic, "target": target, "target_nic": nic}
    return Link(**ends, latency_s=2e-5 if nic == "ib0" else 4e-4, bandwidth=rate)  # type: ignore[arg-type]
