"""What queues and their users had of the cluster lately: the history upon which fair shares rest.

The dominant share (the larger of the parts of all CPUs and of all GPUs) is averaged with weights that halve every
half-life: between two looks a present share s moves the average a as a(t) = s + (a0 - s) 2^(-t / half-life). It is looked at
before each decision, and now and then between. A new control plane begins with nothing: a day's history is worth less than
a record each second.
"""

from __future__ import annotations

from collections import Counter

from atoll.control_plane.arbiter.model import Settings, Usage
from atoll.control_plane.desk import Desk
from atoll.control_plane.placement import UNIT, units
from atoll.control_plane.snapshots import node_class

# Without any decision to make, shares are looked at so often.
LOOK_S = 10.0

Whose = tuple[str, str | None]


def account(desk: Desk) -> None:
    """Take the time since the last look into the averages."""
    present = shares(desk)
    half_life_s = desk.cluster.sharing.settings.half_life_s or Settings().half_life_s
    for whose in present.keys() | desk.usage.keys():
        queue, user = whose
        old, share = desk.usage.get(whose), present.get(whose, 0.0)
        lately = 0.0
        if old is not None:
            lately = share + (old.share - share) * 2.0 ** (-max(desk.now - old.at, 0.0) / half_life_s)
        desk.usage[whose] = Usage(queue=queue, user=user, share=lately, at=desk.now)


def shares(desk: Desk) -> dict[Whose, float]:
    """The dominant share that each queue, and each user in it, holds now."""
    cpus: Counter[Whose] = Counter()
    gpus: Counter[Whose] = Counter()
    for run in desk.cluster.open_runs():
        for whose in ((run.spec.queue, None), (run.spec.queue, run.spec.owner)):
            cpus[whose] += units(run.spec.cpus_per_worker) * len(run.seats)
            gpus[whose] += units(run.spec.gpus_per_worker) * len(run.seats)
    rooms = desk.rooms()
    of_cpus, of_gpus = sum(room.cpus for room in rooms), sum(room.gpus for room in rooms)
    return {
        whose: max(cpus[whose] / of_cpus if of_cpus else 0.0, gpus[whose] / of_gpus if of_gpus else 0.0)
        for whose in cpus
    }


def look(desk: Desk) -> None:
    """Keep the goodput ledger."""
    if not desk.ledger.due(desk.clock, desk.now):
        return
    devices = {node.node: node_class(node).device for node in desk.nodes.values()}
    free = {room.node: (room.gpus_free if room.gpus else room.cpus_free) / UNIT for room in desk.rooms()}
    desk.ledger.look(desk.cluster.open_runs(), devices, free, desk.clock)
