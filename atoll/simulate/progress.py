"""How fast a gang advances on the devices it holds: each step as fast as its slowest worker, then a sum over all.

    step = batch / (n * slowest) + 2 (n - 1) / n * sync_bytes / bandwidth

The batch is split evenly, as plain data-parallel training does, and stays what it is at any size (strong scaling): a run
that grows computes less between two sums of the same length. The sum is a ring over n workers; its bandwidth is that
inside an island, or that between islands as soon as the gang spans two. Nothing overlaps: both terms add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.simulate.cluster import Cluster
from atoll.simulate.jobs import Job, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Samples a second, and what share of each device's time is not spent on mates and links, by device type.

    `devices` counts the devices held by type. A device's useful share is what it contributes of what it would do alone.
    """

    rate: float
    useful: dict[str, float]
    devices: dict[str, int]


def step_s(model: Model, batch: float, workers: int, slowest: float, bandwidth: float) -> float:
    """Seconds of one step."""
    compute = batch / (workers * slowest)
    if workers == 1:
        return compute
    return compute + 2 * (workers - 1) / workers * model.sync_bytes / bandwidth


def pace(job: Job, nodes: Sequence[NodeId], cluster: Cluster) -> Pace:
    """Of `job` with one worker on a device of each of `nodes` (a node stands there as often as it has workers)."""
    held = [cluster.by_name[name] for name in nodes]
    devices: dict[str, int] = {}
    for node in held:
        devices[node.device] = devices.get(node.device, 0) + 1
    one_island = len({node.island for node in held}) == 1
    slowest = min(job.model.speeds[device] for device in devices)
    bandwidth = cluster.inside if one_island else cluster.across
    rate = job.batch / step_s(job.model, job.batch, len(held), slowest, bandwidth)
    each = rate / len(held)
    return Pace(rate=rate, useful={d: each / job.model.speeds[d] for d in devices}, devices=devices)


def alone_s(job: Job, device: str, cluster: Cluster) -> float:
    """How long it takes on the workers that were asked for, all on this type of device and on one island."""
    step = step_s(job.model, job.batch, job.workers, job.model.speeds[device], cluster.inside)
    return job.samples / (job.batch / step)
