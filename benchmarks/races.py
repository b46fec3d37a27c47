"""A network with ranks on it, ready to race: raise the lab, fork ranks into its hosts, introduce them, take it all down."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from atoll.lab.lab_runtime import Lab, raised
from atoll.lab.spec import LabSpec, segments
from atoll.schema.codec import to_plain
from atoll.schema.topology import Topology
from benchmarks import contestants, networks, timing
from benchmarks.ranks import Crew, RankFailed

# One thread of torch a rank, as each rank stands for a host; set before the forks, so that no pool of threads is inherited.
torch.set_num_threads(1)

OURS: contestants.Contestant = {"by": "atoll"}
GLOO: contestants.Contestant = {"by": "gloo"}
# As Gloo's: what was put in is lost where the operation fails.
IN_PLACE: contestants.Contestant = OURS | {"in_place": True}


def coded(spec: LabSpec, codec: str) -> contestants.Contestant:
    """Ours with `codec` between the islands of `spec`, which the first letters of its hosts' names tell apart."""
    names = [h.name[0] for h in spec.hosts]
    groups = [[n for n, letter in enumerate(names) if letter == island] for island in dict.fromkeys(names)]
    return OURS | {"codec": codec, "groups": groups}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one race, by contestant: seconds of each batch, CPU-seconds over all ranks, the largest error, plans, what was learned.

    The error of coded sums is a share of what the codec states.
    """

    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]
    error: dict[str, float]
    plans: dict[str, list[str]]
    changes: list[str]
    sent: dict[str, dict[str, float]]  # median bytes of a batch by network, over all hosts


class Field:
    """Ranks that have met, on a lab."""

    def __init__(self, spec: LabSpec, lab: Lab, crew: Crew, order: Sequence[str]) -> None:
        self.spec, self.lab, self.crew, self.order = spec, lab, crew, tuple(order)

    def meet(self, *, epoch: int = 1, gloo: bool = True, known: Topology | None = None) -> None:
        """Make the communicator, over all NICs, and the Gloo group, over the NIC that reaches all.

        `known`: the topology that the communicator is told; that of the lab's specification if None.
        """
        told = self._listen()
        members = [
            {"trainer": contestants.trainer(n), "rank": n, "node": host, **told[n]} for n, host in enumerate(self.order)
        ]
        topology = to_plain(known or networks.topology(self.spec, self.lab.address))
        membership = {"run": contestants.RUN, "epoch": epoch, "members": members, "topology": topology}
        self.crew.call(contestants.join, membership=membership)
        if gloo:
            self.crew.call(contestants.join_gloo, store=told[0]["host"])

    def race(
        self,
        size: int,
        entrants: dict[str, contestants.Contestant],
        order: Sequence[str],
        *,
        batch: int = 1,
        limit_s: float = 300.0,
    ) -> Outcome:
        """`batch` all-reduces of `size` bytes for each name in `order`; raises `RankFailed` for a wrong sum."""
        answers = self.crew.call(
            contestants.race,
            order=list(order),
            contestants=entrants,
            count=size // 4,
            batch=batch,
            limit_s=limit_s,
        )
        _check(order, answers, entrants)
        seconds = timing.durations([a["starts"] for a in answers], [a["ends"] for a in answers])
        cpu = [sum(a["cpu"][n] for a in answers) for n in range(len(order))]
        errors = timing.paired(order, [max(a["errors"][n] for a in answers) for n in range(len(order))])
        return Outcome(
            seconds=timing.paired(order, seconds),
            cpu=timing.paired(order, cpu),
            error={name: max(values) for name, values in errors.items()},
            plans=timing.paired(order, answers[0]["plans"]),
            changes=answers[0]["changes"],
            sent=sent_by(order, [a["sent"] for a in answers]),
        )

    def plans(self, size: int, codec: str | None = None) -> list[dict[str, Any]]:
        """The plans for a message of `size` bytes, fastest first."""
        plans: list[dict[str, Any]] = self.crew.call(contestants.plans, count=size // 4, codec=codec)[0]
        return plans

    def _listen(self) -> list[dict[str, Any]]:
        hosts = {h.name: h for h in self.spec.hosts}
        primary = self._primary()
        for rank, name in enumerate(self.order):
            addresses = [(n.name, self.lab.address(name, n.name)) for n in hosts[name].nics]
            reached = dict(addresses)[primary[name]]
            self.crew.begin(contestants.listen, [rank], nics=addresses, primary=reached)
        found = self.crew.gather(range(len(self.order)), limit_s=30)
        return [found[n] for n in range(len(self.order))]

    def _primary(self) -> dict[str, str]:
        """Each host's NIC that reaches all others."""
        group = next(
            s for s in segments(self.spec) if all(any(n.network in s for n in h.nics) for h in self.spec.hosts)
        )
        return {h.name: next(n.name for n in h.nics if n.network in group) for h in self.spec.hosts}


@contextmanager
def field(
    spec: LabSpec, order: Sequence[str] | None = None, *, meet: bool = True, gloo: bool = True
) -> Iterator[Field]:
    """Ranks on the hosts of `spec`, in `order` (or the spec's), taken down at the end."""
    names = list(order or (h.name for h in spec.hosts))
    with raised(spec) as lab:
        crew = Crew(names, lab.enter)
        try:
            ready = Field(spec, lab, crew, names)
            if meet:
                ready.meet(gloo=gloo)
            yield ready
        finally:
            crew.close()


def sent_by(order: Sequence[str], counts: Sequence[Sequence[dict[str, int]]]) -> dict[str, dict[str, float]]:
    """Median bytes of a batch by contestant and network, over all hosts, from `counts[rank][place]` by NIC.

    A NIC is called as its network, so what hosts sent into one network adds up.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for place, name in enumerate(order):
        networks_of = dict.fromkeys(nic for rank in counts for nic in rank[place])
        for nic in networks_of:
            total = sum(rank[place].get(nic, 0) for rank in counts)
            found.setdefault(name, {}).setdefault(nic, []).append(total)
    return {name: {nic: statistics.median(values) for nic, values in by_nic.items()} for name, by_nic in found.items()}


def _check(
    order: Sequence[str], answers: Sequence[dict[str, Any]], entrants: dict[str, contestants.Contestant]
) -> None:
    """Plain sums are exact, coded ones as near as their codec says, and all ranks hold the same bits."""
    for place, name in enumerate(order):
        digests = {tuple(a["digests"][place]) for a in answers}
        if len(digests) > 1:
            raise RankFailed(f"operation {place} by {name}: ranks hold {len(digests)} different results")
        worst = max(a["errors"][place] for a in answers)
        if "codec" not in entrants[name] and worst > 0:
            raise RankFailed(f"operation {place} by {name}: a sum of whole numbers is wrong by {worst:g}")
        if worst > 1:
            raise RankFailed(f"operation {place} by {name}: an error is {worst:.3g} times what the codec states")
