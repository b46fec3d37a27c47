"""An imagined cluster whose hosts have two NICs each: members meet by the fast network where it answers, else by the slow."""

from __future__ import annotations

from imagined_failures import Cluster

from atoll.collectives.fabric import best_links
from atoll.schema import messages as m
from atoll.schema.topology import Detour, Door, Link, Nic

RATES = {"ib0": 60e6, "eth0": 6e6}
PROBE_S, DEAD_S = 0.1, 1.0


class TwoNics(Cluster):
    """`fast_cuts`: pairs between which the fast network is dead. `via`: by which NIC each pair met, in which epoch."""

    def __init__(self, **options):
        self.fast_cuts, self.via = set(), {}
        super().__init__(**options)

    def cutfast(self, one, other):
        self.fast_cuts.add(frozenset((one, other)))

    def healfast(self):
        self.fast_cuts.clear()

    def nics_of(self, node):
        at = [*self.hosts].index(node) + 1
        return tuple(Nic(name=n, host=f"10.{k}.0.{at}", prefix=24) for k, n in enumerate(RATES))

    def doors_of(self, node):
        return tuple(Door(nic=n.name, host=n.host, port=1) for n in self.nics_of(node))

    def obey(self, host, command):
        if isinstance(command, m.ProbePeer):
            host.queue.append(self.probed(host.name, command))
        else:
            super().obey(host, command)

    def probed(self, node, order):
        """Its answer is there at once; what it took is said in it."""
        dead = frozenset((node, order.peer)) in self.fast_cuts and order.nic == "ib0"
        ends = ((node, order.peer), (order.peer, node))
        rate = RATES[order.nic]
        links = tuple(
            Link(source=a, source_nic=order.nic, target=b, target_nic=order.nic, latency_s=1e-4, bandwidth=rate)
            for a, b in ends
        )
        return m.PeerProbed(
            request=order.request,
            peer=order.peer,
            at=0.0,
            seconds=DEAD_S if dead else PROBE_S,
            beside=order.beside,
            links=() if dead else links,
            problem="no answer in time" if dead else "",
        )

    def connected(self, one, other):
        dead = self.via.get(frozenset((one, other))) == "ib0" and frozenset((one, other)) in self.fast_cuts
        return self.both_ways(one, other) and not dead

    def together(self, membership, members):
        if any(p.joined != membership.epoch for p in members):
            self.meet(membership)
        super().together(membership, members)

    def invite(self, proc, membership):
        """What it had of the epoch before is gone: it meets the others anew."""
        if proc is not None:
            self.via = {pair: nic for pair, nic in self.via.items() if proc.node not in pair}
        super().invite(proc, membership)

    def meet(self, membership):
        best = best_links(membership.topology) if membership.topology is not None else {}
        for one in membership.members:
            for other in membership.members:
                pair, known = frozenset((one.node, other.node)), best.get((one.node, other.node))
                wanted = known.source_nic if known is not None else "eth0"
                self.via[pair] = "eth0" if pair in self.fast_cuts else wanted

    def detours(self, node, membership):
        best = best_links(membership.topology) if membership.topology is not None else {}
        found = []
        for (source, target), link in best.items():
            met = self.via.get(frozenset((source, target)), "")
            if source == node and met not in {"", link.source_nic}:
                found.append(Detour(source=source, source_nic=met, target=target, target_nic=met))
        return tuple(found)
