"""How fast a gang advances on the devices it holds: workers compute, then add up what they computed.

    step = batch / (n * slowest) + 2 (n - 1) / n * sync_bytes / bandwidth

The batch is split evenly, as plain data-parallel training does, and each step is as fast as its slowest worker; a trainer that
splits `by_speed`, as Atoll's does, has the sum of speeds in place of n times the slowest. The batch stays what it is at
any size (strong scaling): a run that grows computes less between two sums of the same length. The sum is a flat ring over n
workers at the pace of its slowest level: a host, an island, several islands. Nothing overlaps: both terms add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.simulate.cluster import Cluster, Node
from atoll.simulate.jobs import Job, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Samples a second, and what share of each device's time is not spent on mates and links, by device type.

    `devices` counts the devices held by type. A device's useful share is what it contributes of what it would do alone.
    """

    rate: float
    useful: dict[str, float]
    devices: dict[str, int]


def step_s(model: Model, batch: float, workers: int, together: float, bandwidth: float) -> float:
    """Seconds of one step; `together`: samples a second of all workers without their sum."""
    compute = batch / together
    if workers == 1:
        return compute
    return compute + 2 * (workers - 1) / workers * model.sync_bytes / bandwidth


def pace(job: Job, nodes: Sequence[NodeId], cluster: Cluster, *, by_speed: bool = False) -> Pace:
    """Of `job` with one worker on a device of each of `nodes` (a node stands there as often as it has workers)."""
    held = [cluster.by_name[name] for name in nodes]
    devices: dict[str, int] = {}
    for node in held:
        devices[node.device] = devices.get(node.device, 0) + 1
    speeds = job.model.speeds
    alone = sum(speeds[d] * count for d, count in devices.items())
    together = alone if by_speed else len(held) * min(speeds[d] for d in devices)
    rate = job.batch / step_s(job.model, job.batch, len(held), together, _bandwidth(held, cluster))
    # By speed all are busy for the same part of a step; evenly, the faster one for the smaller part.
    useful = {d: rate / alone if by_speed else rate / len(held) / speeds[d] for d in devices}
    return Pace(rate=rate, useful=useful, devices=devices)


def _bandwidth(held: Sequence[Node], cluster: Cluster) -> float:
    if len({node.name for node in held}) == 1:
        return cluster.local
    return cluster.inside if len({node.island for node in held}) == 1 else cluster.across


def alone_s(job: Job, device: str, cluster: Cluster) -> float:
    """How long it takes on the workers that were asked for, all of this type and on one host."""
    step = step_s(job.model, job.batch, job.workers, job.workers * job.model.speeds[device], cluster.local)
    return job.samples / (job.batch / step)
