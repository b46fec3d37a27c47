"""How fast a gang advances on the devices it holds: workers compute, then add up what they computed.

**Plain trainers**, as data-parallel training has them, split the batch evenly and sum in a flat ring over all n workers at
the pace of the slowest level that they span (a host, an island, several islands):

    step = batch / (n * slowest) + 2 (n - 1) / n * sync_bytes / bandwidth

**Atoll's trainers** split by speed, and sum level by level: workers of a host, hosts of an island, islands, where all hosts of
an island send side by side, in slices, so that levels overlap (docs/collectives.md):

    step = batch / sum of speeds + OVER_BOUND * max over levels of 2 (m - 1) / m * sync_bytes / bandwidth of m parts

The batch stays what it is at any size (strong scaling): a run that grows computes less between two sums that do not become
shorter. Compute and sums do not overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.simulate.cluster import Cluster, Node
from atoll.simulate.jobs import Job, Model

# Of the bound, as measured: 0.413 s where it is 0.351 s, the worst of the rows without a codec in
# benchmarks/results/collectives.md (two islands of four hosts).
OVER_BOUND = 1.18


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Samples a second, and what share of each device's time is not spent on mates and links, by device type.

    `devices` counts the devices held by type. A device's useful share is what it contributes of what it would do alone.
    """

    rate: float
    useful: dict[str, float]
    devices: dict[str, int]


def step_s(model: Model, batch: float, workers: int, together: float, bandwidth: float) -> float:
    """Seconds of one step with a flat ring; `together`: samples a second of all workers without their sum."""
    return batch / together + _ring(model, workers, bandwidth)


def _ring(model: Model, parts: int, bandwidth: float) -> float:
    return 2 * (parts - 1) / parts * model.sync_bytes / bandwidth


def pace(job: Job, nodes: Sequence[NodeId], cluster: Cluster, *, plain: bool = True) -> Pace:
    """Of `job` with one worker on a device of each of `nodes` (a node stands there as often as it has workers)."""
    held = [cluster.by_name[name] for name in nodes]
    devices: dict[str, int] = {}
    for node in held:
        devices[node.device] = devices.get(node.device, 0) + 1
    speeds, n = job.model.speeds, len(held)
    alone = sum(speeds[d] * count for d, count in devices.items())
    if plain:
        together = n * min(speeds[d] for d in devices)
        sums = _ring(job.model, n, _bandwidth(held, cluster))
    else:
        together, sums = alone, _levels(job.model, held, cluster)
    rate = job.batch / (job.batch / together + sums)
    # By speed all are busy for the same part of a step; evenly, the faster one for the smaller part.
    useful = {d: rate / n / speeds[d] if plain else rate / alone for d in devices}
    return Pace(rate=rate, useful=useful, devices=devices)


def _levels(model: Model, held: Sequence[Node], cluster: Cluster) -> float:
    """Seconds of a sum: of its slowest level, which is as slow as its slowest part."""
    workers = Counter(node.name for node in held)
    hosts = Counter(cluster.by_name[name].island for name in workers)
    across = _ring(model, len(hosts), cluster.across * min(hosts.values()))
    inside = _ring(model, max(hosts.values()), cluster.inside)
    return OVER_BOUND * max(_ring(model, max(workers.values()), cluster.local), inside, across)


def _bandwidth(held: Sequence[Node], cluster: Cluster) -> float:
    if len({node.name for node in held}) == 1:
        return cluster.local
    return cluster.inside if len({node.island for node in held}) == 1 else cluster.across


def alone_s(job: Job, device: str, cluster: Cluster) -> float:
    """How long it takes on the workers that were asked for, all of this type and on one host."""
    step = step_s(job.model, job.batch, job.workers, job.workers * job.model.speeds[device], cluster.local)
    return job.samples / (job.batch / step)
