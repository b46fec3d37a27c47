"""Which links `lab bench` measures, what each should carry, and which of them at the same time. Pure.

Links of a round share no NIC and no trunk, and together need no more than this machine moves without effort
(`ROUND_BUDGET`), so none is measured slow because of another: not even the way back, whose acknowledgements would wait behind the data.
Several links of one round differ in hosts, so eight hosts take about a quarter of the time that one link after another
would. Links over cut cables, and of hosts that are killed
or frozen, are left out: nothing would arrive.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from atoll.lab.layout import Layout, PlacedNic
from atoll.lab.spec import payload_rate

# Bits a second. Two cores carry 4-6 Gbit/s between shaped namespaces; at a third of that nothing waits for them.
ROUND_BUDGET = 2e9
# Long enough for slow start and a few turns of Reno; a slow link needs time for some dozen frames.
_LENGTH_S = 0.8
_LEAST_BYTES = 60 * 1448


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One direction of one link. `rate`: what it is declared to carry, in bits a second; None is unshaped."""

    source: str
    target: str
    mine: PlacedNic
    other: PlacedNic
    rate: float | None
    shares: frozenset[str]

    @property
    def declared(self) -> float | None:
        """Bytes of payload a second."""
        return payload_rate(self.rate)

    @property
    def length_s(self) -> float:
        """How long to send."""
        return max(_LENGTH_S, _LEAST_BYTES / self.declared) if self.declared else _LENGTH_S


def ways(
    layout: Layout,
    hosts: Sequence[str],
    slowed: Mapping[frozenset[str], float],
    cut: Collection[tuple[str, str]] = (),
) -> list[Way]:
    """Every direction of every link between `hosts`. `slowed`: pairs -> bits a second; `cut`: (host, NIC)."""
    return [
        Way(
            source=source,
            target=target,
            mine=mine,
            other=other,
            rate=layout.link_rate(mine, other, slowed.get(frozenset((source, target)))),
            shares=frozenset((mine.port, other.port, *(trunk.ends[0] for trunk in layout.path(mine, other)))),
        )
        for source in hosts
        for target in hosts
        if source != target
        for mine, other in layout.between(source, target)
        if (source, mine.name) not in cut and (target, other.name) not in cut
    ]


def rounds(found: Sequence[Way], budget: float = ROUND_BUDGET) -> list[list[Way]]:
    """The ways in rounds: each round as full as its budget allows, an unshaped way alone.

    Hosts whose numbers differ by the same bits are disjoint pairs: in this order the first round that fits is a good one.
    """
    made: list[list[Way]] = []
    number = {host: index for index, host in enumerate(dict.fromkeys(w.source for w in found))}
    pair = {id(w): (number[w.source] ^ number.get(w.target, 0), w.source > w.target) for w in found}
    for way in sorted(found, key=lambda w: (-(w.rate or budget), pair[id(w)])):
        fitting = next((r for r in made if _fits(way, r, budget)), None)
        if fitting is None:
            made.append([way])
        else:
            fitting.append(way)
    return made


def _fits(way: Way, others: list[Way], budget: float) -> bool:
    total = sum(w.rate or budget for w in (way, *others))
    return total <= budget and not any(way.shares & w.shares for w in others)
