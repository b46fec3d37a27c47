"""Where a run may take a seat that the arbiter did not decide: what its placement, its queue and the promises leave.

A seat that was lost with its node, or a spare, is found without the arbiter, and is bound by the same laws: it stands on nodes
that the option selects by which the run was placed, within the quota of its queue, and takes nothing of what others were
told to give up for a run that waits. What a run is leaving (seats that it gives up, or on drained nodes) does not count
against the quota: its replacement stands beside it for a moment only.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from atoll.control_plane.arbiter.accounts import Accounts, Pair, plus
from atoll.control_plane.arbiter.catalog import Catalog, Selector, labels_of, selects
from atoll.control_plane.arbiter.model import Amount
from atoll.control_plane.desk import Desk
from atoll.control_plane.leaving import shunned
from atoll.control_plane.placement import Room, needs, place
from atoll.control_plane.snapshots import flavors, node_class, queue_spec
from atoll.control_plane.state import Run
from atoll.schema.ids import NodeId
from atoll.schema.views import RunState

# Any number: the shares of queues are none of this module's business, only what their quotas leave.
_HALF_LIFE_S = 1.0


class Quotas:
    """What the queues' quotas leave, worked out for the desk as it is now."""

    def __init__(self, desk: Desk) -> None:
        self._catalog = Catalog()
        self._catalog.set_flavors(flavors(desk.cluster.sharing))
        self._flavors = {node.node: self._flavor(desk, node.node) for node in desk.nodes.values() if node.usable}
        self.accounts = Accounts(_HALF_LIFE_S)
        for wish in desk.cluster.sharing.queue:
            self.accounts.put_queue(queue_spec(wish))
        for run in desk.cluster.open_runs():
            if run.state is not RunState.QUEUED:
                self._charge(desk, run)

    def _flavor(self, desk: Desk, node: NodeId) -> str:
        return self._catalog.flavor_of[self._catalog.number(node_class(desk.nodes[node]))]

    def _charge(self, desk: Desk, run: Run) -> None:
        charges: dict[str, Pair] = {}
        for seat in run.seats.values():
            flavor = self._flavors.get(seat.node)
            if flavor is not None and not seat.leaving and seat.node not in desk.cluster.drains:
                charges[flavor] = plus(charges.get(flavor, (0, 0)), needs(run.spec))
        self.accounts.charge(run.spec.queue, run.spec.owner, charges, sign=1, now=desk.now)

    def bounded(self, run: Run) -> bool:
        """Whether the run's queue has quotas."""
        return self.accounts.bounded(run.spec.queue)

    def flavor(self, node: NodeId) -> str | None:
        """The node's flavor; None where it is not there."""
        return self._flavors.get(node)

    def left(self, run: Run, flavor: str) -> int:
        """How many seats more the run may take in this flavor."""
        cpus, gpus = needs(run.spec)
        return self.accounts.room(run.spec.queue, flavor, Amount(cpus=cpus, gpus=gpus))

    def exceeded(self, run: Run, flavor: str) -> bool:
        """Whether the run's queue holds more of the flavor than it may."""
        used, allowed = self.accounts.used(run.spec.queue, flavor), self.accounts.allowance(run.spec.queue, flavor)
        return self.bounded(run) and (used[0] > allowed[0] or used[1] > allowed[1])


def selected(desk: Desk, run: Run, node: NodeId) -> bool:
    """Whether the alternative by which the run was placed selects the node."""
    known, options = desk.nodes.get(node), run.spec.alternatives
    if known is None or run.option >= len(options) or not options[run.option].labels:
        return True
    wanted: Selector = {key: (value,) for key, value in options[run.option].labels.items()}
    return selects(wanted, labels_of(node_class(known)))


def seats_for(desk: Desk, run: Run, wanted: int) -> list[NodeId]:
    """Nodes for up to `wanted` seats more, which the run is short of."""
    shuns, promised = shunned(desk, run), _promised(desk)
    rooms = [
        _less(room, promised.get(room.node, (0, 0)))
        for room in desk.rooms()
        if room.node not in shuns and selected(desk, run, room.node)
    ]
    anywhere = place(run.spec, rooms, least=1, most=wanted) or []
    bounded = any(queue.quota for queue in desk.cluster.sharing.queue if queue.name == run.spec.queue)
    if not anywhere or not bounded:
        return anywhere
    quotas = Quotas(desk)
    found: list[NodeId] = []
    for flavor in dict.fromkeys(quotas.flavor(room.node) for room in rooms):
        there = [room for room in rooms if quotas.flavor(room.node) == flavor]
        most = min(quotas.left(run, flavor or ""), wanted - len(found))
        found += place(run.spec, there, least=0, most=most) or []
    return found


def _promised(desk: Desk) -> dict[NodeId, tuple[int, int]]:
    """What of each node others gave up, or are giving up, for runs that wait."""
    promised: dict[NodeId, tuple[int, int]] = {}
    for claim in desk.decided.kept if desk.decided is not None else ():
        waits = desk.cluster.runs.get(claim.run)
        if claim.given and waits is not None and not waits.seats:
            for node, count in Counter(claim.nodes).items():
                promised[node] = plus(promised.get(node, (0, 0)), needs(waits.spec), count)
    return promised


def _less(room: Room, promised: tuple[int, int]) -> Room:
    return dataclasses.replace(room, cpus_free=room.cpus_free - promised[0], gpus_free=room.gpus_free - promised[1])
