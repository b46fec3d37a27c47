"""Which nodes hold the seats that a run is short of: first the nodes with most room, filled one after another.

Whole gangs are placed by the arbiter; this is for a run that lost a seat with its node, or gets its spares later. The
arithmetic is in ten-thousandths of a device, as Ray's is: five seats of 0.4 CPU fill two cores exactly. A seat that asks
for less than 1/64 of a device counts as that, so that nobody can have a host start processes without number.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.spec import JobSpec

UNIT = 10_000
LEAST = UNIT // 64
_MOST = 1e9


def units(amount: float) -> int:
    """`amount` of a device in Ray's smallest unit; more than any cluster has where it is more than that.

    What people may say is checked before it comes here; a journal may hold what an earlier version let pass.
    """
    return round(min(amount, _MOST) * UNIT)


def needs(spec: JobSpec) -> tuple[int, int]:
    """CPUs and GPUs that each seat of `spec` counts for, in units."""
    cpus, gpus = units(spec.cpus_per_worker), units(spec.gpus_per_worker)
    if spec.gpus_per_worker > 0:
        return cpus, max(gpus, LEAST)
    return max(cpus, LEAST), 0


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
    limits = [have // need for have, need in zip((cpus, gpus), needs(spec), strict=True) if need > 0]
    return max(min(limits), 0)


def place(spec: JobSpec, rooms: list[Room], *, least: int, most: int) -> list[NodeId] | None:
    """A node for each seat: `most` seats if they fit now, never fewer than `least`; None where even those do not."""
    by_room = sorted(rooms, key=lambda r: (-seats_in(spec, r.cpus_free, r.gpus_free), r.node))
    chosen: list[NodeId] = []
    for room in by_room:
        fits = seats_in(spec, room.cpus_free, room.gpus_free)
        chosen += [room.node] * min(fits, most - len(chosen))
    return chosen if len(chosen) >= least else None
