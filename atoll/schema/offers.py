"""Machines that an autoscaler would start: what it tells the cluster, so that nobody is refused who could be served."""

from __future__ import annotations

from dataclasses import dataclass, field

# The label of a machine's node that names its type.
TYPE = "atoll-node-type"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOffer:
    """One type of machine, of which `most` may stand."""

    kind: str
    most: int
    cpus: float
    gpus: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """All types. They hold for a minute; whoever makes them says them again before.

    `decisions`: what was decided since, in words, for the story.
    """

    offers: tuple[MachineOffer, ...] = ()
    decisions: tuple[str, ...] = ()
