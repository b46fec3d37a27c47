"""Laws by which jobs come, and how large they are: as published, or fitted to published figures; each says which.

**gavel**: Narayanan et al., "Heterogeneity-Aware Cluster Scheduling Policies for Deep Learning Workloads", OSDI 2020,
section 7.1, the trace "continuous-multiple", drawn after the trace of Microsoft's Philly (Jeon et al., USENIX ATC 2019):
Poisson arrivals; 70 % of jobs ask for one worker, 25 % for two or four (10 and 15 % in the released generator), 5 % for
eight; a job lasts 10^x minutes on V100, x uniform in [1.5, 3] for 80 % of them and in [3, 4] for 20 %.

**helios**: Hu et al., "Characterization and Prediction of Deep Learning Workloads in Large-Scale GPU Datacenters",
SC 2021: durations of GPU jobs have a median of 206 s and a mean of 6,652 s; over half of the jobs ask for one GPU, less
than a tenth for eight or more, which use about 60 % of GPU time, and the mean is 3.72 GPUs. Here: a log-normal law with
that median and mean, and powers of two up to 128 with those shares: laws that agree with the figures, not the trace.

What jobs compute are the four models that Gavel measured on several workers (`simulation_throughputs.json` of its
release): samples/s of one worker on V100, P100 and K80, and the bytes of a step's sum, so that 8 workers on P100 on
one host scale as measured there (`cluster` has the rates of slower levels). Recommendation is left out: it ran faster on a K80 than on a V100.

The law says what users ask for. `elastic` of the jobs may also run on half as many workers and on up to `stretch` times as
many, by powers of two; the others only as asked. Load is what users ask for over what there is: arrivals a second times the mean of
workers x seconds on the reference device, over all devices, each counted by its mean speed against the reference.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoll.schema.ids import RunId
from atoll.simulate.cluster import LOCAL, Cluster
from atoll.simulate.jobs import Job, Model
from atoll.simulate.progress import step_s

REFERENCE = "v100"
_MINUTE = 60.0
_HELIOS_MEDIAN_S, _HELIOS_MEAN_S = 206.0, 6652.0


def _model(name: str, batch: int, steps_per_s: tuple[float, float, float], eight: float) -> Model:
    """`eight`: the share of eight times one P100 that eight of them reached on one host."""
    v100, p100, k80 = (s * batch for s in steps_per_s)
    sync_s = batch / p100 * (1 / eight - 1)
    return Model(
        name=name,
        batch=float(batch),
        speeds={"v100": v100, "p100": p100, "k80": k80},
        sync_bytes=sync_s * LOCAL / (2 * 7 / 8),
    )


MODELS = (
    _model("resnet-18", 128, (17.99, 11.68, 1.807), 0.911),
    _model("resnet-50", 64, (4.395, 2.619, 0.619), 0.870),
    _model("transformer", 64, (8.618, 5.092, 1.752), 0.490),
    _model("lm", 40, (45.24, 35.77, 11.50), 0.357),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How long jobs last on the reference device as asked, and how many workers they ask for with which chance."""

    name: str
    duration_s: Callable[[random.Random], float]
    mean_duration_s: float
    sizes: tuple[tuple[int, float], ...]

    @property
    def mean_workers(self) -> float:
        """Over all jobs; how long a job lasts does not depend on it."""
        return sum(size * share for size, share in self.sizes)


def _gavel_duration(chance: random.Random) -> float:
    low, high = (1.5, 3.0) if chance.random() < 0.8 else (3.0, 4.0)  # noqa: PLR2004 - the law's own figures
    return _MINUTE * 10 ** chance.uniform(low, high)


def _mean_power(low: float, high: float) -> float:
    """Of 10^x, x uniform between the two."""
    return float((10**high - 10**low) / ((high - low) * math.log(10)))


_HELIOS_SIGMA = math.sqrt(2 * math.log(_HELIOS_MEAN_S / _HELIOS_MEDIAN_S))

GAVEL = Law(
    name="gavel",
    duration_s=_gavel_duration,
    mean_duration_s=_MINUTE * (0.8 * _mean_power(1.5, 3.0) + 0.2 * _mean_power(3.0, 4.0)),
    sizes=((1, 0.70), (2, 0.10), (4, 0.15), (8, 0.05)),
)
HELIOS = Law(
    name="helios",
    duration_s=lambda chance: chance.lognormvariate(math.log(_HELIOS_MEDIAN_S), _HELIOS_SIGMA),
    mean_duration_s=_HELIOS_MEAN_S,
    sizes=((1, 0.577), (2, 0.15), (4, 0.175), (8, 0.06), (16, 0.015), (32, 0.01), (64, 0.009), (128, 0.004)),
)
LAWS = {law.name: law for law in (GAVEL, HELIOS)}
# Three queues of unlike traffic; shares of jobs.
QUEUES = {"research": 0.5, "product": 0.3, "batch": 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How many jobs come, at which load, by which law. `cv`: of the times between arrivals: 1 is Poisson, more is bursty.

    `scale`: so many times the workers of the law, for clusters that are as much larger than those that it was seen on.
    """

    law: Law = GAVEL
    jobs: int = 1000
    load: float = 0.9
    elastic: float = 0.8
    stretch: int = 4
    cv: float = 1.0
    scale: int = 1
    models: Sequence[Model] = MODELS


def generate(traffic: Traffic, cluster: Cluster, seed: int) -> tuple[Job, ...]:
    """The jobs, in order of arrival. What each is does not depend on the load, only when it comes: seeds can be compared."""
    chance = random.Random(f"{seed} {traffic.law.name}")  # noqa: S311 - no secret
    gaps = random.Random(f"{seed} {traffic.law.name} gaps")  # noqa: S311 - likewise
    mean_gap_s = (
        traffic.law.mean_duration_s
        * traffic.law.mean_workers
        * traffic.scale
        / (traffic.load * capacity(traffic.models, cluster))
    )
    largest = cluster.devices
    jobs, now = [], 0.0
    for number in range(traffic.jobs):
        now += _gap(gaps, traffic.cv) * mean_gap_s
        jobs.append(_job(number, now, traffic, chance, largest))
    return tuple(jobs)


def capacity(models: Sequence[Model], cluster: Cluster) -> float:
    """Devices, each counted by its mean speed over the models against the reference device."""
    return sum(
        count * sum(m.speeds[device] / m.speeds[REFERENCE] for m in models) / len(models)
        for device, count in cluster.of_type().items()
    )


def _gap(chance: random.Random, cv: float) -> float:
    """Of mean 1: gamma distributed, which at a coefficient of variation of 1 is the exponential law."""
    shape = 1 / cv**2
    return chance.gammavariate(shape, 1 / shape)


def _job(number: int, now: float, traffic: Traffic, chance: random.Random, largest: int) -> Job:
    sizes, shares = zip(*traffic.law.sizes, strict=True)
    workers = min(chance.choices(sizes, shares)[0] * traffic.scale, largest)
    duration = traffic.law.duration_s(chance)
    model = chance.choice(traffic.models)
    elastic = chance.random() < traffic.elastic
    queue = chance.choices(list(QUEUES), list(QUEUES.values()))[0]
    batch = model.batch * workers
    rate = batch / step_s(model, batch, workers, workers * model.speeds[REFERENCE], LOCAL)
    return Job(
        id=RunId(f"job-{number:05d}"),
        submitted_s=now,
        model=model,
        samples=duration * rate,
        workers=workers,
        sizes=legal_sizes(workers, traffic.stretch, largest) if elastic else (workers,),
        queue=queue,
        user=f"{queue}-{chance.randrange(8)}",
    )


def legal_sizes(workers: int, stretch: int, largest: int) -> tuple[int, ...]:
    """Half of what was asked, that, and powers of two times it up to `stretch`."""
    found = {max(1, workers // 2)}
    factor = 1
    while factor <= stretch and workers * factor <= largest:
        found.add(workers * factor)
        factor *= 2
    return tuple(sorted(found))
