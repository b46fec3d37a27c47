"""What protection costs while nothing fails: CPU-seconds a step, agents included, against torch's DDP over Gloo.

The same small GPT on the same four hosts of an unshaped lab, in turns: a few steps of a run of Atoll, then a few of DDP,
or the other way round. CPU-seconds are those of all threads of all four ranks; to ours come those that the agents used,
by their rate over the whole measurement. A second run of Atoll takes part as itself: where its interval is wider than
the bar, a difference of that size cannot be measured here.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
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
from benchmarks.recovery_ground import WORKERS, Ground, Run, ground
from benchmarks.recovery_job import WINDOW, SmallGPT, corpus
from benchmarks.reporting import Figure, Report
from benchmarks.timing import excess, interval, spread

_SHAPE = {"width": 192, "depth": 4}
_MICRO = 4
_BAR = 0.02
_TURN = 3
_PAIRS, _QUICK_PAIRS = 200, 30
_ANSWER_S = 120.0


def overhead(*, quick: bool) -> Report:
    """Pairs of turns, each pair in an order of its own."""
    pairs = _QUICK_PAIRS if quick else _PAIRS
    with ground(networks.flat(WORKERS)) as here:
        gate = here.home / "gate"
        gate.write_text("0")
        config = {"steps": 10**6, "shape": _SHAPE, "batches": (_MICRO * WORKERS, _MICRO), "gate": str(gate)}
        run = here.submit("text", config=config)
        crew = Crew(list(here.lab.hosts), here.lab.enter)
        try:
            crew.call(prepare, store=here.lab.address(here.lab.hosts[0], "flat"), limit_s=_ANSWER_S)
            turns = _Turns(here, run, gate, crew)
            turns.warm()
            return _report(_raced(turns, pairs), pairs)
        finally:
            crew.close()


def _raced(turns: _Turns, pairs: int) -> dict[str, Any]:
    chance = random.Random(1)
    found: dict[str, list[float]] = {"atoll": [], "again": [], "ddp": []}
    ours: list[float] = []
    begun, agents = time.monotonic(), turns.agents_cpu()
    for _ in range(pairs):
        for name in chance.sample(list(found), len(found)):
            start = time.monotonic()
            found[name].append(turns.ddp() if name == "ddp" else turns.atoll())
            if name != "ddp":
                ours.append((time.monotonic() - start) / _TURN)
    rate = (turns.agents_cpu() - agents) / (time.monotonic() - begun)
    return {"cpu": found, "agents_per_s": rate, "step_s": statistics.median(ours)}


def _report(found: dict[str, Any], pairs: int) -> Report:
    cpu = found["cpu"]
    agents = found["agents_per_s"] * found["step_s"]
    ours = [value + agents for value in cpu["atoll"]]
    against = list(zip(cpu["ddp"], ours, strict=True))
    same = list(zip(cpu["again"], cpu["atoll"], strict=True))
    low, high = interval(excess, against, seed=1)
    aa_low, aa_high = interval(excess, same, seed=2)
    value = excess(against)
    trainers = excess(list(zip(cpu["ddp"], cpu["atoll"], strict=True)))
    note = (
        f"{pairs} pairs, 95 % {low:+.1%} to {high:+.1%}; A/A {aa_low:+.1%} to {aa_high:+.1%}; without agents"
        f" {trainers:+.1%}; a step of {found['step_s']:.2f} s, {statistics.median(cpu['ddp']):.3f} CPU-s"
    )
    measurable = aa_high - aa_low <= 2 * _BAR
    shown = value if measurable else None
    figure = Figure(name="overhead", value=shown, bar=_BAR, floor=False, note=note)
    details = {"agents_cpu_per_s": found["agents_per_s"], "excess": value, "interval": [low, high]}
    details |= {"aa_interval": [aa_low, aa_high], "trainers_alone": trainers}
    details |= {name: spread(values).plain() for name, values in cpu.items()}
    return Report(figures=(figure,), details=details)


class _Turns:
    """Each call takes one turn of some steps; returns CPU-seconds a step."""

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
        """One more step than is counted: the gate is passed by the first, and what settles a step follows it."""
        first, self._step = self._step + 1, self._step + 1 + _TURN
        fresh = self._gate.with_suffix(".new")
        fresh.write_text(str(self._step))
        fresh.replace(self._gate)
        self._here.until(lambda: len(self._run.stamped(self._step)) == WORKERS, _ANSWER_S, f"step {self._step}")
        begin, end = self._run.stamped(first), self._run.stamped(self._step)
        return sum(end[pid] - begin[pid] for pid in end) / _TURN

    def ddp(self) -> float:
        answers: list[float] = self._crew.call(steps, count=_TURN, limit_s=_ANSWER_S)
        return sum(answers) / _TURN

    def agents_cpu(self) -> float:
        """CPU-seconds of all agents and what they started, but for trainers."""
        return sum(_used(process) for process in self._agents)


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# -- in a rank ---------------------------------------------------------------------------------------------------------


def prepare(rank: Rank, *, store: str) -> None:
    """The model under DDP over Gloo."""
    torch.set_num_threads(1)
    import os  # noqa: PLC0415 - Gloo has no other way to be told its NIC

    os.environ["GLOO_SOCKET_IFNAME"] = "flat"  # noqa: TID251
    served = dist.TCPStore(store, STORE_PORT, rank.size, rank.number == 0)
    dist.init_process_group("gloo", store=served, rank=rank.number, world_size=rank.size)
    torch.manual_seed(0)
    model = DistributedDataParallel(SmallGPT(**_SHAPE))
    text = torch.frombuffer(bytearray(corpus(1 << 20)), dtype=torch.uint8)
    rank.things |= {"model": model, "text": text, "chance": torch.Generator().manual_seed(rank.number)}
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
    starts: Sequence[int] = torch.randint(0, len(text) - WINDOW - 1, (_MICRO,), generator=things["chance"]).tolist()
    batch = torch.stack([text[s : s + WINDOW + 1] for s in starts]).long()
    things["optimizer"].zero_grad()
    scores = things["model"](batch[:, :-1])
    functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten()).backward()
    things["optimizer"].step()
