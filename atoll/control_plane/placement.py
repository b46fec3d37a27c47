"""Which nodes hold a run's seats: first the nodes with most room, filled one after another.

A run's trainers talk to one another at each step, so as few nodes as possible is best while links are unmeasured. The
arithmetic is in ten-thousandths of a device, as Ray's is: five seats of 0.4 CPU fill two cores exactly. A request is
refused at once only when the workers alone could not fit an empty cluster; spares are taken as far as there is room.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.spec import JobSpec

UNIT = 10_000


def units(amount: float) -> int:
    """`amount` of a device in Ray's smallest unit."""
    return round(amount * UNIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a node has and what of it is free, in units."""

    node: NodeId
    cpus: int
    gpus: int
    cpus_free: int
    gpus_free: int


def seats_in(spec: JobSpec, cpus: int, gpus: int) -> int:
    """How many seats of `spec` these units hold."""
    limits = [
        have // need
        for have, need in ((cpus, units(spec.cpus_per_worker)), (gpus, units(spec.gpus_per_worker)))
        if need > 0
    ]
    return max(min(limits), 0) if limits else spec.seats()


def capacity(spec: JobSpec, rooms: list[Room]) -> int:
    """How many seats of `spec` an otherwise empty cluster holds."""
    return sum(seats_in(spec, room.cpus, room.gpus) for room in rooms)


def refusal(spec: JobSpec, rooms: list[Room]) -> str | None:
    """Why the cluster can never hold the run's workers, or None if it can."""
    if capacity(spec, rooms) >= spec.workers:
        return None
    return f"{wanted(spec)} can never fit: the cluster has {available(rooms)}; ask for fewer or smaller workers"


def wanted(spec: JobSpec) -> str:
    """What the workers ask for, for people."""
    each = _amounts(units(spec.cpus_per_worker), units(spec.gpus_per_worker))
    return f"{spec.workers} worker{'s' * (spec.workers > 1)} of {each}"


def available(rooms: list[Room]) -> str:
    """What the cluster has in all, for people."""
    if not rooms:
        return "no node"
    total = _amounts(sum(r.cpus for r in rooms), sum(r.gpus for r in rooms))
    return f"{total} on {len(rooms)} node{'s' * (len(rooms) > 1)}"


def _amounts(cpus: int, gpus: int) -> str:
    return f"{cpus / UNIT:g} CPU" + (f" and {gpus / UNIT:g} GPU" if gpus else "")


def place(spec: JobSpec, rooms: list[Room], *, least: int, most: int) -> list[NodeId] | None:
    """A node for each seat: `most` seats if they fit now, never fewer than `least`; None where even those do not."""
    by_room = sorted(rooms, key=lambda r: (-seats_in(spec, r.cpus_free, r.gpus_free), r.node))
    chosen: list[NodeId] = []
    for room in by_room:
        fits = seats_in(spec, room.cpus_free, room.gpus_free)
        chosen += [room.node] * min(fits, most - len(chosen))
    return chosen if len(chosen) >= least else None
