"""Policies by name, and one simulation of each on the same jobs: what the command and the benchmark both run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atoll.simulate.arbitrated import Arbitrated, Told
from atoll.simulate.cluster import Cluster
from atoll.simulate.engine import Costs, Engine, Outcome
from atoll.simulate.fifo import Backfill, Fifo
from atoll.simulate.jobs import Job
from atoll.simulate.policy import Policy

_COSTS = Costs()
POLICIES: dict[str, Callable[[Cluster], Policy]] = {
    "atoll": lambda cluster: Arbitrated(cluster, _COSTS),
    "atoll-plain": lambda cluster: Arbitrated(cluster, _COSTS, plain_trainers=True),
    "atoll-as-asked": lambda cluster: Arbitrated(cluster, _COSTS, told=Told.AS_ASKED),
    "atoll-as-asked-no-speeds": lambda cluster: Arbitrated(cluster, _COSTS, told=Told.NO_SPEEDS),
    "fifo": lambda _: Fifo(),
    "fifo-backfill": lambda _: Backfill(_COSTS.start_s),
}


def simulate(policy: str, cluster: Cluster, jobs: Sequence[Job], told: Callable[[int], None] | None = None) -> Outcome:
    """One policy on these jobs. `told` hears how many have ended."""
    return Engine(cluster, jobs, POLICIES[policy](cluster), costs=_COSTS, told=told).run()
