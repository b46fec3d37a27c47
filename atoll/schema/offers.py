"""Machines that an autoscaler would start: what it tells the cluster, so that nobody is refused who could be served."""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.errors import SpecError
from atoll.schema.sharing import MOST_DEVICES

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


def check_offers(offers: Offers) -> Offers:
    """`offers` itself, or a `SpecError` that names the first type at fault, its value and what would be right."""
    for offer in offers.offers:
        for name in ("most", "cpus", "gpus"):
            value = getattr(offer, name)
            if not 0 <= value <= MOST_DEVICES:
                raise SpecError(
                    f"offers: {offer.kind!r}: {name}={value}: a number, 0 or more, at most {MOST_DEVICES:.0f}"
                )
    return offers
