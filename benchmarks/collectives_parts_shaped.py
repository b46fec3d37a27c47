"""Parts on shaped networks: two islands, plain and coded; one trunk between, ranks in order and interleaved."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from atoll.collectives.torch_codecs import ratio
from atoll.lab.spec import LabSpec
from benchmarks import networks, races, timing
from benchmarks.reporting import Figure, Report

# A quick look is at a quarter of the message: latencies weigh more there.
SIZE, QUICK_SIZE = 8 * networks.MIB, 2 * networks.MIB
_TRUNK_HOSTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """One race and what nothing can beat there. `first_s`: the first operation of its size, which plans."""

    outcome: races.Outcome
    first_s: float
    plan: dict[str, Any]
    bound_s: float
    gloo_bound_s: float

    @property
    def ratio(self) -> float:
        """Of Gloo's median by ours."""
        return timing.ratio(self.outcome.seconds["gloo"], self.outcome.seconds["atoll"])

    @property
    def median_s(self) -> float:
        """Ours."""
        return timing.spread(self.outcome.seconds["atoll"]).median

    def words(self) -> str:
        """Both medians with their bounds."""
        gloo = timing.spread(self.outcome.seconds["gloo"]).median
        return (
            f"Gloo {gloo:.3f} s (bound {self.gloo_bound_s:.3f}), ours {self.median_s:.3f} s (bound {self.bound_s:.3f}); "
            f"the bounds' ratio is {self.gloo_bound_s / self.bound_s:.2f}"
        )

    def versus(self, name: str, bar: float) -> Report:
        """How many times faster than Gloo."""
        figure = Figure(name=name, value=self.ratio, bar=bar, note=self.words())
        return Report(figures=(figure,), details=self.details())

    def details(self) -> dict[str, Any]:
        """For the results."""
        return {
            "atoll_s": timing.spread(self.outcome.seconds["atoll"]).plain(),
            "gloo_s": timing.spread(self.outcome.seconds["gloo"]).plain(),
            "atoll_first_s": timing.rounded(self.first_s),
            "cpu_seconds": {n: timing.rounded(timing.spread(v).median) for n, v in self.outcome.cpu.items()},
            "sent_bytes": self.outcome.sent,
            "bound_s": timing.rounded(self.bound_s),
            "gloo_bound_s": timing.rounded(self.gloo_bound_s),
            "plan": self.plan["name"],
            "plans_followed": [[name, len(list(run))] for name, run in groupby(self.outcome.plans["atoll"])],
            "network_changes": self.outcome.changes,
            "predicted_s": timing.rounded(self.plan["predicted_s"]),
            "largest_error": timing.rounded(self.outcome.error["atoll"]),
        }


def two_by_two(*, quick: bool) -> Report:
    """Two islands of two."""
    return _islands(2, quick=quick).versus("vs_gloo_2x2", 2.6)


def two_by_four(*, quick: bool) -> Report:
    """Two islands of four."""
    return _islands(4, quick=quick).versus("vs_gloo_2x4", 6)


def coded(*, quick: bool) -> Report:
    """Two islands of four, block int8 between them."""
    return _islands(4, quick=quick, codec="int8").versus("vs_gloo_2x4_int8", 9.5)


def coded_slow(*, quick: bool) -> Report:
    """The same with a slow NIC of 10 Mbit/s."""
    return _islands(4, quick=quick, codec="int8", slow=10 * networks.MBIT).versus("vs_gloo_2x4_int8_10mbit", 18)


def trunk(*, quick: bool) -> Report:
    """One trunk between two islands of four, ranks in order."""
    found = _trunked(quick=quick, interleaved=False)
    value = found.median_s / found.bound_s
    figure = Figure(name="trunk_of_bound", value=value, bar=1.15, floor=False, note=found.words())
    return Report(figures=(figure,), details=found.details())


def interleaved(*, quick: bool) -> Report:
    """The same with ranks from both islands in turn: a flat ring in rank order crosses the trunk at every step."""
    return _trunked(quick=quick, interleaved=True).versus("vs_gloo_interleaved", 5)


def _islands(hosts: int, *, quick: bool, codec: str | None = None, slow: float = networks.SLOW) -> _Result:
    spec, size = networks.two_islands(hosts, slow=slow), QUICK_SIZE if quick else SIZE
    bound = networks.islands_bound(size, hosts, networks.FAST, slow, ratio(codec) if codec else 1.0)
    return _race(spec, None, codec, size, (bound, networks.ring_bound(size, 2 * hosts, slow)), quick=quick)


def _trunked(*, quick: bool, interleaved: bool) -> _Result:
    spec, size = networks.trunked(_TRUNK_HOSTS), QUICK_SIZE if quick else SIZE
    names = [h.name for h in spec.hosts]
    order = networks.interleaved(names) if interleaved else names
    gloo = networks.ring_bound(size, len(order), networks.SLOW, sharing=networks.crossings(order))
    return _race(spec, order, None, size, (networks.trunk_bound(size, networks.SLOW), gloo), quick=quick)


def _race(
    spec: LabSpec, order: list[str] | None, codec: str | None, size: int, bounds: tuple[float, float], *, quick: bool
) -> _Result:
    """Medians of at least five, in turn after one of each to warm up, but for a quick look; two of ours to one of Gloo's."""
    count = 1 if quick else 5
    entrants = {"atoll": races.coded(spec, codec) if codec else races.OURS, "gloo": races.GLOO}
    with races.field(spec, order) as field:
        plan = field.plans(size, codec)[0]
        first = field.race(size, entrants, ["atoll", "gloo"])
        outcome = field.race(size, entrants, timing.rounds(("atoll", "gloo", "atoll"), count, seed=1))
    return _Result(
        outcome=outcome,
        first_s=first.seconds["atoll"][0],
        plan=plan,
        bound_s=bounds[0],
        gloo_bound_s=bounds[1],
    )
