"""What protection costs while nothing fails: CPU-seconds a step, agents included, against torch's DDP over Gloo.

The same GPT on the same four hosts of an unshaped lab, in turns: a few steps of a run of Atoll, then a few of DDP, or the
other way round. CPU-seconds are those of all threads of all four ranks. To ours come those of the agents: by an unbroken
series of our steps, since an agent works by the clock, and between turns, at the gate, a step would last longer. A second
run of Atoll takes part as itself: where its interval is wider than the bar, a difference of that size cannot be measured.

Two models. The bar is for one of 5M parameters, whose step takes about a second of two cores. `overhead_small_model` has
steps of a twentieth of that, where what a step costs by itself shows most; it has no bar.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks import networks
from benchmarks.contestants import STORE_PORT
from benchmarks.ranks import Crew, Rank
from benchmarks.recovery_ground import WORKERS, Ground, NotSteady, Run, ground
from benchmarks.recovery_job import WINDOW, SmallGPT, corpus
from benchmarks.reporting import Figure, Report
from benchmarks.timing import excess, interval, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model, the rows that each rank takes in a step, and how often things are measured."""

    name: str
    width: int
    depth: int
    rows: int
    pairs: int
    quick_pairs: int
    series: int


_SIZES = (
    Size(name="overhead", width=256, depth=6, rows=32, pairs=200, quick_pairs=20, series=30),
    Size(name="overhead_small_model", width=192, depth=4, rows=4, pairs=200, quick_pairs=30, series=100),
)
_BAR = 0.02
_TURN = 3
_ANSWER_S = 300.0
# Rare enough that looking at what trainers wrote takes nothing from those who are measured.
_LOOK_S = 0.25


def overhead(*, quick: bool) -> Report:
    """Pairs of turns, each pair in an order of its own, for each size."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    with ground(networks.flat(WORKERS)) as here:
        for size in _SIZES:
            found = _measured(here, size, size.quick_pairs if quick else size.pairs)
            figure, more = _report(found, size)
            figures.append(figure)
            details[size.name] = more
    return Report(figures=tuple(figures), details=details)


def _measured(here: Ground, size: Size, pairs: int) -> dict[str, Any]:
    gate = here.home / f"gate-{size.name}"
    gate.write_text("0")
    shape = {"width": size.width, "depth": size.depth}
    config = {"steps": 10**6, "shape": shape, "batches": (size.rows * WORKERS, size.rows), "gate": str(gate)}
    run = here.submit("text", config=config)
    crew = Crew(list(here.lab.hosts), here.lab.enter)
    try:
        address = here.lab.address(here.lab.hosts[0], "flat")
        crew.call(prepare, store=address, shape=shape, rows=size.rows, limit_s=_ANSWER_S)
        turns = _Turns(here, run, gate, crew)
        turns.warm()
        series = [turns.series(size.series)]
        cpu = _raced(turns, pairs)
        series.append(turns.series(size.series))
        return {"cpu": cpu, "series": series}
    finally:
        crew.close()
        here.stop(run)


def _raced(turns: _Turns, pairs: int) -> dict[str, list[float]]:
    chance = random.Random(1)
    found: dict[str, list[float]] = {"atoll": [], "again": [], "ddp": []}
    for _ in range(pairs):
        for name in chance.sample(list(found), len(found)):
            found[name].append(turns.ddp() if name == "ddp" else turns.atoll())
    return found


def _report(found: dict[str, Any], size: Size) -> tuple[Figure, dict[str, Any]]:
    cpu, series = found["cpu"], found["series"]
    agents = statistics.mean(s.agents_cpu for s in series)
    step_s = statistics.mean(s.step_s for s in series)
    ours = [value + agents for value in cpu["atoll"]]
    against = list(zip(cpu["ddp"], ours, strict=True))
    alone = list(zip(cpu["ddp"], cpu["atoll"], strict=True))
    same = list(zip(cpu["again"], cpu["atoll"], strict=True))
    low, high = interval(excess, against, seed=1)
    aa_low, aa_high = interval(excess, same, seed=2)
    ddp = statistics.median(cpu["ddp"])
    fixed_ms = 1e3 * excess(alone) * ddp / WORKERS
    agent_ms = 1e3 * agents / step_s / series[0].agents
    note = (
        f"{len(alone)} pairs, 95 % {low:+.1%} to {high:+.1%}; A/A {aa_low:+.1%} to {aa_high:+.1%}; without agents"
        f" {excess(alone):+.1%}, {fixed_ms:+.1f} CPU-ms a step and trainer; {agent_ms:.1f} CPU-ms a second and agent;"
        f" a step of {step_s:.2f} s, {ddp:.3f} CPU-s under DDP"
    )
    bar = _BAR if size is _SIZES[0] else None
    measurable = bar is None or aa_high - aa_low <= 2 * _BAR
    value = excess(against)
    figure = Figure(name=size.name, value=value if measurable else None, bar=bar, floor=False, note=note)
    details = {"excess": value, "interval": [low, high], "aa_interval": [aa_low, aa_high]}
    details |= {"trainers_alone": excess(alone), "trainer_ms_per_step": fixed_ms, "agent_ms_per_s": agent_ms}
    details |= {"size": asdict(size), "series": [asdict(s) for s in series]}
    return figure, details | {name: spread(values).plain() for name, values in cpu.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Of our steps without a break: seconds and agents' CPU-seconds a step, trainers' too; of how many agents."""

    step_s: float
    agents_cpu: float
    trainers_cpu: float
    agents: int


class _Turns:
    """Each call takes one turn of some steps."""

    def __init__(self, here: Ground, run: Run, gate: Path, crew: Crew) -> None:
        self._here, self._run, self._gate, self._crew = here, run, gate, crew
        self._step = 0
        self._agents: list[psutil.Process] = []

    def warm(self) -> None:
        self.atoll()
        self.ddp()
        pids = self._here.status()["agents"].values()
        self._agents = [psutil.Process(pid) for pid in pids]

    def atoll(self) -> float:
        """CPU-seconds a step. One more than is counted: the gate is passed by the first, and what settles a step follows."""
        first = self._go(_TURN)
        return self._used(first) / _TURN

    def series(self, count: int) -> Series:
        """What agents use while the run does nothing but steps."""
        begun, before = time.monotonic(), self.agents_cpu()
        first = self._go(count)
        agents, passed = self.agents_cpu() - before, time.monotonic() - begun
        moments = self._run.books()
        step_s = (moments.committed(self._step) - moments.committed(first)) / count
        # By the second, not by the step: the last look comes a little after the last step.
        return Series(
            step_s=step_s,
            agents_cpu=agents / passed * step_s,
            trainers_cpu=self._used(first) / count,
            agents=len(self._agents),
        )

    def ddp(self) -> float:
        """CPU-seconds a step."""
        answers: list[float] = self._crew.call(steps, count=_TURN, limit_s=_ANSWER_S)
        return sum(answers) / _TURN

    def agents_cpu(self) -> float:
        """CPU-seconds of all agents."""
        return sum(_used(process) for process in self._agents)

    def _go(self, count: int) -> int:
        """Let one step and `count` more pass; returns the first."""
        first, self._step = self._step + 1, self._step + 1 + count
        fresh = self._gate.with_suffix(".new")
        fresh.write_text(str(self._step))
        fresh.replace(self._gate)
        until = time.monotonic() + _ANSWER_S
        while len(self._run.stamped(self._step)) < WORKERS:
            if time.monotonic() > until:
                raise NotSteady(f"step {self._step} did not come within {_ANSWER_S:g} s")
            time.sleep(_LOOK_S)
        return first

    def _used(self, first: int) -> float:
        begin, end = self._run.stamped(first), self._run.stamped(self._step)
        return sum(end[pid] - begin[pid] for pid in end)


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# -- in a rank ---------------------------------------------------------------------------------------------------------


def prepare(rank: Rank, *, store: str, shape: dict[str, int], rows: int) -> None:
    """The model under DDP over Gloo."""
    torch.set_num_threads(1)
    import os  # noqa: PLC0415 - Gloo has no other way to be told its NIC

    os.environ["GLOO_SOCKET_IFNAME"] = "flat"  # noqa: TID251
    served = dist.TCPStore(store, STORE_PORT, rank.size, rank.number == 0)
    dist.init_process_group("gloo", store=served, rank=rank.number, world_size=rank.size)
    torch.manual_seed(0)
    model = DistributedDataParallel(SmallGPT(**shape))
    text = torch.frombuffer(bytearray(corpus(1 << 20)), dtype=torch.uint8)
    chance = torch.Generator().manual_seed(rank.number)
    rank.things |= {"model": model, "text": text, "chance": chance, "rows": rows}
    rank.things["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-3)


def steps(rank: Rank, *, count: int) -> float:
    """CPU-seconds of `count` steps; one more before them, as the other side has."""
    used = 0.0
    for number in range(count + 1):
        if number == 1:
            used = time.process_time()
        _step(rank.things)
    return time.process_time() - used


def _step(things: dict[str, Any]) -> None:
    text = things["text"]
    starts: Sequence[int] = torch.randint(
        0, len(text) - WINDOW - 1, (things["rows"],), generator=things["chance"]
    ).tolist()
    batch = torch.stack([text[s : s + WINDOW + 1] for s in starts]).long()
    things["optimizer"].zero_grad()
    scores = things["model"](batch[:, :-1])
    functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten()).backward()
    things["optimizer"].step()
