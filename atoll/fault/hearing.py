"""Who is heard: by us over an agent's stream, by agents over one another's beats, and whose word on that counts."""

from __future__ import annotations

from atoll.fault.facts import FRESH_S, Ears, Facts, NodeFacts
from atoll.fault.limits import silence
from atoll.schema.ids import NodeId

# A listener that was later than this to look may have been deaf itself.
LATE_S = 0.25


def quiet(node: NodeFacts, now: float) -> float:
    """How long its agent's stream has brought nothing."""
    return now - node.heard_at


def audible(node: NodeFacts | None, facts: Facts) -> bool:
    """Whether we hear the node ourselves."""
    return node is not None and node.attached and not node.lost and quiet(node, facts.now) < silence(facts.strain_s)


def ears(name: NodeId, facts: Facts) -> Ears | None:
    """What the node says that it hears, if its word counts now."""
    node = facts.nodes.get(name)
    if node is None or not audible(node, facts) or node.ears is None:
        return None
    fresh = facts.now - node.ears.at <= FRESH_S and node.ears.at >= node.attached_at
    return node.ears if fresh and node.ears.late_s <= max(LATE_S, 2 * facts.strain_s) else None


def unheard_for(listener: Ears, name: NodeId, now: float) -> float | None:
    """For how long the listener has not heard the node: 0 where it hears it, None where it has no word on it yet."""
    if name in listener.heard:
        return 0.0
    told = listener.silent.get(name)
    return None if told is None else told + now - listener.at
