"""What happens to the arbiter between two ticks. Each is a fact, past tense; none makes it decide by itself.

The shell confirms what it carried out with `GrantChanged` (workers were added, moved or given up: what the run holds
now) and `GrantEnded` (the run ended, or was suspended and waits again). Until then nodes that a run was told to give up
stay its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.control_plane.arbiter.model import Ask, Flavor, Grant, IslandState, NodeState, Obtainable, QueueSpec
from atoll.schema.ids import NodeId, RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAdded:
    """A run wants workers."""

    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class AskWithdrawn:
    """A run that waits was stopped, or is none of the arbiter's any more."""

    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class AskChanged:
    """Priority, bounds or options of a run that waits or runs are others now."""

    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantChanged:
    """What a run holds now: said after each change that was carried out, and for runs that were there before."""

    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantEnded:
    """The run holds nothing any more. With `again` it waits again (suspended, or its start failed)."""

    run: RunId
    again: Ask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCameOrChanged:
    """A node is here, as it is now."""

    node: NodeState


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGone:
    """A node is out of reach."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandMeasured:
    """Links of an island are known, or known better."""

    island: IslandState


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueChanged:
    """A queue is there, as it is now."""

    queue: QueueSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueGone:
    """A queue is none any more: asks in it wait until it is back."""

    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlavorsChanged:
    """The flavors are these now."""

    flavors: tuple[Flavor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObtainableChanged:
    """These nodes could be started now."""

    obtainable: tuple[Obtainable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeed:
    """What one worker of this run was seen to do alone on a device, in samples a second."""

    run: RunId
    device: str
    samples_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMade:
    """A durable checkpoint of the run exists: from here a suspension loses less."""

    run: RunId
    at: float


Event = (
    AskAdded
    | AskWithdrawn
    | AskChanged
    | GrantChanged
    | GrantEnded
    | NodeCameOrChanged
    | NodeGone
    | IslandMeasured
    | QueueChanged
    | QueueGone
    | FlavorsChanged
    | ObtainableChanged
    | MeasuredSpeed
    | CheckpointMade
)
