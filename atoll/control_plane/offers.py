"""What an autoscaler may start counts when it is asked whether the cluster can ever hold a run.

Offers are measurements, not decisions: they are in no journal, and hold for a minute after they were last made. Where the
autoscaler is gone, runs that only its machines could hold are refused again, and those that wait go on waiting.
"""

from __future__ import annotations

from collections import Counter

from atoll.control_plane import effects as fx
from atoll.control_plane.arbiter.model import Amount, NodeClass, NodeState
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import MachinesOffered
from atoll.control_plane.placement import units
from atoll.control_plane.snapshots import price_of
from atoll.schema.devices import device_of, is_spot
from atoll.schema.ids import NodeId
from atoll.schema.offers import TYPE, MachineOffer

# The loop says them again each ten seconds; a minute bears its restart.
HOLDS_S = 60.0
# Whose story the decisions are: `atoll story autoscaler`.
SUBJECT = "autoscaler"
# An autoscaler that goes astray must not fill the history.
_MOST_LINES, _LONGEST = 100, 1000
# So begin the names of classes and nodes that do not stand.
OFFERED = "offered:"
# More than any gang needs of one type, and few enough to be placed at once.
_MOST = 1024


def offered(desk: Desk, event: MachinesOffered) -> None:
    """Remember the offers, and tell what was decided."""
    desk.offers, desk.offered_until = event.offers, desk.clock + HOLDS_S
    for text in event.decisions[:_MOST_LINES]:
        desk.note(None, SUBJECT, "machines", text[:_LONGEST])
    desk.do(fx.Reply(request=event.request, value={"offers": len(event.offers)}))


def offered_nodes(desk: Desk) -> tuple[NodeState, ...]:
    """All machines that might stand beside those that do, as empty nodes."""
    if desk.clock >= desk.offered_until:
        return ()
    standing = Counter(
        node.seen.labels.get(TYPE, "") for node in desk.nodes.values() if node.usable and node.seen is not None
    )
    return tuple(_node(offer, n) for offer in desk.offers for n in range(min(offer.most - standing[offer.kind], _MOST)))


def _node(offer: MachineOffer, number: int) -> NodeState:
    total = Amount(cpus=units(offer.cpus), gpus=units(offer.gpus))
    kind = NodeClass(
        name=f"{OFFERED}{offer.kind}",
        device=device_of(offer.labels, total.gpus),
        total=total,
        labels=dict(offer.labels),
        price_per_hour=price_of(offer.labels),
        spot=is_spot(offer.labels),
    )
    name = f"{OFFERED}{offer.kind}:{number}"
    return NodeState(node=NodeId(name), kind=kind, island=offer.labels.get("island") or f"{OFFERED}{offer.kind}")
