"""Six hosts of unlike NICs in a lab: where runs are put, who gives way and how fast, and a host that is drained.

Three hosts share a fast switch, three a slower one, and each has a slow NIC that reaches all; a worker takes a whole host.
Compute is a calibrated sleep, gradients are real bytes on shaped links, so that two cores can stand for six hosts.

`placed`: two gangs of three are submitted as anybody would. `dealt`: the same two gangs, on hosts that a seeded shuffle of
all six dealt out, as a scheduler without a topology might; each deal is a label of the hosts, and the gangs ask for it.
Both are placed by the same control plane and run the same program; a deal that happens to be a good one counts as well.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from atoll.lab.spec import LabSpec
from atoll.schema.sharing import Alternative
from atoll.workers.proc_runtime import lives
from benchmarks import networks
from benchmarks.recovery_ground import Ground, Run, Worker, ground
from benchmarks.reporting import Figure, Report
from benchmarks.timing import ratio, rounds, spread

FAST, SLOWER = 500 * networks.MBIT, 200 * networks.MBIT
GANG = 3
HOSTS = 2 * GANG
# 4 MiB of gradients, and for each gang of three four micro-batches of 40 ms a step and worker.
_TRAINED = {"elements": 1 << 20, "grains": 12, "grain_s": 0.04}
# 256 KiB: over all six hosts it is faster than on one island, so that growing pays.
_LIGHT = {"elements": 1 << 16, "grains": 12, "grain_s": 0.04}
_DEALS, _QUICK_DEALS = 5, 2
_ARRIVALS, _QUICK_ARRIVALS = 5, 2
_DRAINS, _QUICK_DRAINS = 3, 1
_SETTLE_STEPS = 8
_WATCH_S = 20.0
_MEASURED_S = 180.0
# The arbiter asks nobody twice within a minute.
_CALM_S = 62.0
_DRAIN_S = 30.0
_URGENT_STEPS = 40
_SIDES = ("x", "y")


def lab(*, quick: bool) -> Report:
    """Step times where runs are put against where they are dealt; seconds until others gave way; a drained host."""
    deals = _deals(_QUICK_DEALS if quick else _DEALS, seed=5)
    with ground(_spec(deals)) as here:
        _measured(here)
        placed = _Placed(here, deals)
        placed.measure()
        arrivals = _Arrivals(here)
        arrivals.measure(_QUICK_ARRIVALS if quick else _ARRIVALS)
        drains = _Drains(here)
        drains.measure(_QUICK_DRAINS if quick else _DRAINS)
    lost = arrivals.lost + drains.lost
    details = {"placed": placed.plain(), "arrivals": arrivals.plain(), "drains": drains.plain()}
    return Report(
        figures=(
            *placed.figures(),
            *arrivals.figures(),
            *drains.figures(),
            Figure(
                name="lab_lost_or_repeated", value=lost, bar=0.0, floor=False, note="steps and samples of these runs"
            ),
        ),
        details=details,
    )


def _deals(count: int, seed: int) -> list[dict[str, str]]:
    """Host -> side of each deal."""
    chance = random.Random(seed)
    names = [host.name for host in _bare().hosts]
    deals = []
    for _ in range(count):
        chance.shuffle(names)
        deals.append({name: _SIDES[n // GANG] for n, name in enumerate(names)})
    return deals


def _bare() -> LabSpec:
    return networks.islands([GANG, GANG], [FAST, SLOWER], networks.SLOW)


def _spec(deals: Sequence[dict[str, str]]) -> LabSpec:
    spec = _bare()
    hosts = [replace(host, labels={f"deal{n}": deal[host.name] for n, deal in enumerate(deals)}) for host in spec.hosts]
    return replace(spec, hosts=tuple(hosts))


def _measured(here: Ground) -> None:
    """Until the agents have measured the links and the islands are known."""

    def known() -> bool:
        found = here.client.topology()
        return not found.unmeasured and len(found.islands.children) > 1

    began = time.monotonic()
    here.until(known, _MEASURED_S, "the links to be measured")
    print(f"  links measured after {time.monotonic() - began:.0f} s: {networks.drawn(_bare())}", flush=True)


def _lost(run: Run) -> int:
    """Steps and samples that its account misses or has twice."""
    account = run.ledger.account()
    return account.lost + account.repeated + len(account.gaps) + len(account.problems)


def _hosts(members: Sequence[Worker]) -> list[str]:
    return sorted(member.host for member in members)


class _Placed:
    """Two gangs at once, placed and dealt in turns."""

    def __init__(self, here: Ground, deals: Sequence[dict[str, str]]) -> None:
        self._here, self._deals = here, deals
        self.rows: list[dict[str, Any]] = []

    def measure(self) -> None:
        dealt = 0
        for name in rounds(["placed", "dealt"], len(self._deals), seed=2):
            if name == "placed":
                self._pair(name, [(), ()])
            else:
                self._pair(name, [(Alternative(labels={f"deal{dealt}": side}),) for side in _SIDES])
                dealt += 1

    def _pair(self, name: str, wishes: Sequence[tuple[Alternative, ...]]) -> None:
        runs = [
            self._here.submit("emulated", workers=GANG, spares=0, alternatives=wish, config=dict(_TRAINED))
            for wish in wishes
        ]
        for run in runs:
            self._here.steady(run, steps=_SETTLE_STEPS, members=GANG)
        begin = time.monotonic()
        time.sleep(_WATCH_S)
        ends = time.monotonic()
        steps = [_step_s(run, begin, ends) for run in runs]
        on = [_hosts(self._here.members(self._here.client.run(run.id))) for run in runs]
        for run in runs:
            self._here.stop(run)
        self.rows.append({"how": name, "hosts": on, "step_s": steps})
        told = ", ".join(f"{'+'.join(h)} {s:.3f} s a step" for h, s in zip(on, steps, strict=True))
        print(f"  {name}: {told}", flush=True)

    def _means(self, how: str) -> list[float]:
        return [statistics.fmean(row["step_s"]) for row in self.rows if row["how"] == how]

    def figures(self) -> Iterator[Figure]:
        placed, dealt = self._means("placed"), self._means("dealt")
        yield Figure(
            name="placed_vs_random_step_time",
            value=ratio(dealt, placed),
            bar=1.5,
            note=(
                f"medians over {len(dealt)} pairs of gangs of {GANG}: {statistics.median(dealt):.3f} s a step where "
                f"{len(dealt)} deals of the hosts put them, {statistics.median(placed):.3f} s where Atoll did; 0.16 s of it "
                "are emulated compute, 4 MiB of gradients"
            ),
        )

    def plain(self) -> dict[str, Any]:
        return {"runs": self.rows, "network": networks.drawn(_bare())}


def _step_s(run: Run, begin: float, ends: float) -> float:
    """Seconds from the first to the last step that all committed in [begin, ends], for each step between."""
    moments = [commit.at for commit in run.books().commits() if begin <= commit.at <= ends]
    return (moments[-1] - moments[0]) / (len(moments) - 1)


@dataclass(slots=True)
class _Arrivals:
    """A run of high priority comes to a cluster that an elastic one fills."""

    here: Ground
    gave_way: list[float] = field(default_factory=list)
    first_step: list[float] = field(default_factory=list)
    grown: list[float] = field(default_factory=list)
    lost: int = 0

    def measure(self, times: int) -> None:
        elastic = self.here.submit("emulated", workers=HOSTS, min_workers=2, priority=20, spares=0, config=dict(_LIGHT))
        self.here.steady(elastic, steps=_SETTLE_STEPS, members=HOSTS)
        for n in range(times):
            if n:
                time.sleep(_CALM_S)
            self._arrive(elastic)
        self.here.stop(elastic)
        self.lost += _lost(elastic)

    def _arrive(self, elastic: Run) -> None:
        begin = time.monotonic()
        config = dict(_LIGHT) | {"steps": _URGENT_STEPS}
        urgent = self.here.submit("emulated", workers=GANG, priority=90, spares=0, config=config)
        self.gave_way.append(self._at(elastic, begin, HOSTS - GANG) - begin)
        self.first_step.append(self._at(urgent, begin, GANG) - begin)
        self.here.until(lambda: self.here.client.run(urgent.id).state.ended, 120.0, f"{urgent.id} to end")
        self.lost += _lost(urgent)
        ended = time.monotonic()
        self.grown.append(self._at(elastic, ended, HOSTS) - ended)
        print(
            f"  a run of priority 90: the elastic one had given way after {self.gave_way[-1]:.2f} s, its first step after "
            f"{self.first_step[-1]:.2f} s; grown back {self.grown[-1]:.1f} s after its end",
            flush=True,
        )

    def _at(self, run: Run, begin: float, members: int) -> float:
        """When the run committed its first step with so many members since `begin`."""

        def found() -> float | None:
            return next((c.at for c in run.books().commits() if c.at > begin and c.members == members), None)

        at: float = self.here.until(found, 120.0, f"{run.id} to have {members} members")
        return at

    def figures(self) -> Iterator[Figure]:
        yield Figure(
            name="shrink_s",
            value=max(self.gave_way),
            bar=3.0,
            floor=False,
            note=(
                f"from the submission of a gang of {GANG} with priority 90 to the first step of the elastic run with "
                f"{HOSTS - GANG} of its {HOSTS} workers; worst of {len(self.gave_way)}, median {statistics.median(self.gave_way):.2f}"
            ),
        )
        yield Figure(
            name="urgent_first_step_s",
            value=statistics.median(self.first_step),
            note="of that gang, from its submission",
        )
        yield Figure(
            name="grown_back_s",
            value=statistics.median(self.grown),
            note="from the end of that gang to the first step with all workers again; it changes its size once in ten seconds at most",
        )

    def plain(self) -> dict[str, Any]:
        found = {"gave_way_s": self.gave_way, "first_step_s": self.first_step, "grown_back_s": self.grown}
        return {name: spread(values).plain() for name, values in found.items()}


@dataclass(slots=True)
class _Drains:
    """An operator drains the host of a worker; a free host is there for it."""

    here: Ground
    empty: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    late: int = 0
    lost: int = 0

    def measure(self, times: int) -> None:
        run = self.here.submit("emulated", workers=HOSTS - 2, spares=0, config=dict(_LIGHT))
        for _ in range(times):
            members = self.here.steady(run, steps=_SETTLE_STEPS, members=HOSTS - 2)
            self._drain(run, members[-1])
        self.here.stop(run)
        self.lost += _lost(run)

    def _drain(self, run: Run, victim: Worker) -> None:
        client = self.here.client
        node = next(t.node for t in client.run(run.id).trainers if t.trainer == victim.trainer)
        begin = time.monotonic()
        client.drain(node, _DRAIN_S, "the benchmark")

        def left() -> bool:
            drain = next(n for n in client.nodes() if n.node == node).drain
            return drain is not None and drain.left

        self.here.until(left, 2 * _DRAIN_S, f"{victim.host} to be empty")
        self.empty.append(time.monotonic() - begin)
        # What the cluster says is proven here: the process of that pid and start is gone.
        self.late += self.empty[-1] > _DRAIN_S or lives(victim.pid, victim.ticks)
        members = self.here.steady(run, steps=_SETTLE_STEPS, members=HOSTS - 2)
        self.back.append(time.monotonic() - begin)
        self.late += victim.host in _hosts(members)
        client.undrain(node)
        print(f"  {victim.host} drained: empty after {self.empty[-1]:.1f} s of {_DRAIN_S:g}", flush=True)

    def figures(self) -> Iterator[Figure]:
        yield Figure(
            name="drained_empty_s",
            value=max(self.empty),
            bar=_DRAIN_S,
            floor=False,
            note=f"proven empty, of a deadline of {_DRAIN_S:g} s; worst of {len(self.empty)}, median {statistics.median(self.empty):.1f}",
        )
        yield Figure(
            name="drained_late",
            value=self.late,
            bar=0.0,
            floor=False,
            note="hosts not empty by their deadline, or with a member or its process still on them",
        )

    def plain(self) -> dict[str, Any]:
        return {"empty_s": spread(self.empty).plain(), "eight_steps_later_s": spread(self.back).plain()}
