"""What a user submits: a job spec. Plain data, so that it can be a file, a request body or a journal record."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import SpecError
from atoll.schema.ids import RunId, is_safe_name
from atoll.schema.sharing import (
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    MOST_COUNT,
    MOST_DEVICES,
    MOST_S,
    Alternative,
    sharing_rules,
)
from atoll.schema.uris import without_secrets

# 5 seats of 0.4 (four workers and a spare) fit a two-core machine; trainers share cores anyway on CPU.
DEFAULT_CPUS_PER_WORKER = 0.4


# In the place of a number of steps: the run chooses, from what a save costs and how often members are lost.
AUTO = "auto"
# What `pyarrow.fs` opens and other machines may reach; a file path for a folder that is mounted everywhere.
_REMOTE = re.compile(r"(?:(?:s3|gs|gcs|hdfs|viewfs|abfs|abfss)://[^/\s]+|file:///)\S*\Z")
# Ray gives a stopped job 3 s; a step of a large model takes longer. `stop_grace_s` of a spec asks for more.
STOP_GRACE_S = 20.0
# Who may say any number can make one decision take as long as he likes. More workers than any cluster has devices.
MOST_WORKERS = 65_536
# A spare replaces one lost worker, and places for spares are sought one by one.
MOST_SPARES = 1_024
MOST_STOP_GRACE_S = 3600.0
# What generators of random numbers take.
_MOST_SEED = (1 << 63) - 1
# What a step with a loss or gradient that is not finite does to its run.
STOP, SKIP = "stop", "skip"
# What becomes of the steps that a corrupt replica had a part in: they stand, or the run goes back before them.
EVICT, ROLLBACK = "evict", "rollback"


class JobKind(enum.StrEnum):
    """What the run's processes do."""

    TRAIN = "train"
    SERVE = "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job: which function of which file runs on how many workers, and what it may use.

    `function` is the dotted name of a top-level function in `file`; both are loaded in each trainer from
    `working_dir`, never unpickled. For a training job it is called with one `Context`. `model` names a top-level
    function of the same file that takes no argument and returns the bare module: `atoll serve` builds it and fills it
    from a checkpoint. `config` is JSON handed to the function as `ctx.config`. `nonfinite`: what a step with a loss or
    gradient that is no number does: `stop` the run, or `skip` its update and go on. `compare_every`: steps after which
    workers compare what they hold, 0: never, None: as often as costs little; `corrupt`: when one holds other bits than
    the others, `evict` it, or also `rollback` to the last checkpoint from before. `stop_grace_s`: how long a run that was asked
    to stop may take to reach its next step boundary. `chaos`: its trainers may be hurt on
    purpose (`atoll chaos`).

    `checkpoint_every`: steps, 0 for never, or `auto`. `checkpoint_failures`: so many saves in a row may fail, one more stops
    the run; None: a failed save never does. `checkpoint_remote`: a URI to which each durable checkpoint is copied.
    Beside the last `keep_checkpoints`, steps divisible by `keep_every` stay, and those younger than `keep_for_s`.

    `workers` is how many it wants; with `min_workers` it is elastic and runs with any number from there on, or with those of
    `worker_sizes` only. `queue`, `team`, `priority` (larger first) and `expected_s` (how long it will take, as far as its
    owner knows) are for the queue; `alternatives` for its placement, the dearest first: without any, wherever there is room.
    `speeds`: samples a second of one worker alone, by device, until they are measured; so are `batch`, samples a step, and
    `sync_mib`, MiB of gradients that its workers add up in one.
    `owner` is who submitted it, "" for the cluster itself: the web server writes it in, and `team` too.
    """

    name: str
    kind: JobKind = JobKind.TRAIN
    working_dir: str
    working_dir_uri: str | None = None
    file: str
    function: str = "train"
    model: str | None = None
    tokenizer: str = "bytes"
    config: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    min_workers: int | None = None
    worker_sizes: tuple[int, ...] = ()
    spares: int = 1
    queue: str = DEFAULT_QUEUE
    team: str | None = None
    owner: str = ""
    priority: int = DEFAULT_PRIORITY
    expected_s: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    speeds: dict[str, float] = field(default_factory=dict)
    batch: int = 0
    sync_mib: float = 0.0
    cpus_per_worker: float = DEFAULT_CPUS_PER_WORKER
    gpus_per_worker: float = 0.0
    threads_per_worker: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    checkpoint_dir: str | None = None
    checkpoint_every: int | str = 0
    checkpoint_failures: int | None = None
    checkpoint_remote: str | None = None
    keep_checkpoints: int = 3
    keep_every: int = 0
    keep_for_s: float = 0.0
    resume: str | None = None
    nonfinite: str = STOP
    compare_every: int | None = None
    corrupt: str = EVICT
    stop_grace_s: float = STOP_GRACE_S
    chaos: bool = False
    detach: bool = False
    run_id: RunId | None = None

    def seats(self) -> int:
        """Trainers that hold resources: workers and spares."""
        return self.workers + self.spares

    @property
    def least(self) -> int:
        """With how many workers it can do."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def elastic(self) -> bool:
        """Whether it runs with fewer workers than it wants."""
        return self.least < self.workers

    def sizes(self) -> Sequence[int]:
        """The numbers of workers with which it runs, ascending."""
        return self.worker_sizes or range(self.least, self.workers + 1)


def check_spec(spec: JobSpec) -> JobSpec:
    """`spec` itself, or a `SpecError` that names the first field at fault, its value and what would be right."""
    rules = [
        (is_safe_name(spec.name), f"name={spec.name!r}: use letters, digits, '_', '.' and '-' only"),
        (1 <= spec.workers <= MOST_WORKERS, f"workers={spec.workers}: at least 1, at most {MOST_WORKERS}"),
        (0 <= spec.spares <= MOST_SPARES, f"spares={spec.spares}: 0 or more, at most {MOST_SPARES}"),
        *sharing_rules(spec),
        *(
            (0 <= amount <= MOST_DEVICES, f"{name}={amount}: a number, 0 or more, at most {MOST_DEVICES:.0f}")
            for name, amount in (("cpus_per_worker", spec.cpus_per_worker), ("gpus_per_worker", spec.gpus_per_worker))
        ),
        *((abs(count) <= most, f"{name}={count}: too large, at most {most}") for name, count, most in _counts(spec)),
        (
            _is_interval(spec.checkpoint_every),
            f"checkpoint_every={spec.checkpoint_every!r}: steps, 0 for never, or 'auto'",
        ),
        (
            spec.checkpoint_failures is None or spec.checkpoint_failures >= 0,
            f"checkpoint_failures={spec.checkpoint_failures}: saves in a row, 0 or more, None for any number",
        ),
        without_secrets("checkpoint_remote", spec.checkpoint_remote),
        without_secrets("working_dir_uri", spec.working_dir_uri),
        (
            spec.checkpoint_remote is None or _REMOTE.match(spec.checkpoint_remote) is not None,
            f"checkpoint_remote={spec.checkpoint_remote!r}: a URI such as s3://bucket/folder, gs://, hdfs:// or file:///path",
        ),
        (spec.keep_checkpoints >= 1, f"keep_checkpoints={spec.keep_checkpoints}: at least 1"),
        (spec.keep_every >= 0, f"keep_every={spec.keep_every}: steps, 0 for none"),
        (0 <= spec.keep_for_s <= MOST_S, f"keep_for_s={spec.keep_for_s}: seconds, 0 for none, at most {MOST_S:.0e}"),
        (
            0 <= spec.stop_grace_s <= MOST_STOP_GRACE_S,
            f"stop_grace_s={spec.stop_grace_s}: seconds, 0 for at once, at most {MOST_STOP_GRACE_S:.0f}",
        ),
        (spec.nonfinite in {STOP, SKIP}, f"nonfinite={spec.nonfinite!r}: {STOP!r} or {SKIP!r}"),
        (
            spec.compare_every is None or spec.compare_every >= 0,
            f"compare_every={spec.compare_every}: steps, 0 for never, None for as often as costs little",
        ),
        (spec.corrupt in {EVICT, ROLLBACK}, f"corrupt={spec.corrupt!r}: {EVICT!r} or {ROLLBACK!r}"),
        (spec.file.endswith(".py"), f"file={spec.file!r}: a Python file"),
        (all(p.isidentifier() for p in spec.function.split(".")), f"function={spec.function!r}: a dotted name"),
        (spec.run_id is None or is_safe_name(spec.run_id), f"run_id={spec.run_id!r}: no spaces or slashes"),
    ]
    for ok, problem in rules:
        if not ok:
            raise SpecError(problem)
    return spec


def _counts(spec: JobSpec) -> Sequence[tuple[str, int, int]]:
    """The whole numbers that have no other bound, each with how large it may be."""
    named = ("keep_checkpoints", "keep_every", "checkpoint_failures", "compare_every", "checkpoint_every")
    given = [(name, getattr(spec, name), MOST_COUNT) for name in named]
    given += [("seed", spec.seed, _MOST_SEED), ("threads_per_worker", spec.threads_per_worker, MOST_WORKERS)]
    return [(name, count, most) for name, count, most in given if isinstance(count, int)]


def _is_interval(every: int | str) -> bool:
    return every == AUTO if isinstance(every, str) else every >= 0
