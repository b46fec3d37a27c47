"""Every kind of failure that is measured: its fault, what Atoll should say of it, and its bar.

`verdict`: what a line of the run's story about a victim has to match. Whoever is no victim and is lost all the same was
condemned wrongly. `shape`: how the kind is measured.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from atoll.schema.views import EventView
from benchmarks import recovery_faults as faults
from benchmarks.recovery_faults import Scene

LOST = ("lost", "evicted", "failed")


class Shape(enum.StrEnum):
    """`LOSS`: until the next members commit. `HELD`: what the fault costs while it lasts. `SLOW`: what is left after."""

    LOSS = "loss"
    HELD = "held"
    SLOW = "slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind. `figure`: the name and bar in seconds of the issue's own figures; `fresh`: it ends its ground.

    `anew`: on a new run each time, and once its members are joined by their fast NICs: a link that was cut before is
    left out until it was probed again, and cutting a NIC that carries nothing costs nothing. A worker that was slow
    keeps a smaller share for a while, and would be hurt less by the next trial.
    """

    name: str
    strike: Callable[[Scene], float | None]
    shape: Shape = Shape.LOSS
    verdict: str = ""
    figure: str = ""
    bar: float | None = None
    fresh: bool = False
    checkpoint_every: int = 0
    anew: bool = False
    note: str = ""


_SIGKILL = r"^lost .*killed by SIGKILL"
KINDS: tuple[Kind, ...] = (
    Kind(name="worker SIGKILL", strike=faults.kill, verdict=_SIGKILL, figure="kill_s", bar=0.6),
    Kind(name="rank 0 SIGKILL", strike=faults.kill_rank0, verdict=_SIGKILL),
    Kind(name="worker SIGSTOP", strike=faults.stop, verdict=r"^lost .*hung.*stop", figure="hang_s", bar=1.5),
    Kind(name="GIL held forever", strike=faults.gil, verdict=r"^lost .*hung", figure="gil_s", bar=2.0),
    Kind(name="bit flipped in a replica", strike=faults.flip, verdict=r"^lost .*corrupt", anew=True),
    Kind(name="host killed", strike=faults.host, verdict=r"^lost .*node", figure="host_s", bar=1.5),
    Kind(name="link cut", strike=faults.cut, verdict=r"^(epoch|lost) ", figure="cut_s", bar=1.5, anew=True),
    Kind(name="one-way cut", strike=faults.cut_one_way, verdict=r"^(epoch|lost) ", anew=True),
    Kind(name="rank and buddy at once", strike=faults.buddies, verdict=_SIGKILL),
    Kind(name="two failures at once", strike=faults.two_at_once, verdict=_SIGKILL),
    Kind(name="failure during recovery", strike=faults.in_recovery, verdict=_SIGKILL),
    Kind(name="failure during a join", strike=faults.in_join, verdict=_SIGKILL),
    Kind(name="failure inside a checkpoint", strike=faults.in_checkpoint, verdict=_SIGKILL, checkpoint_every=10),
    Kind(name="island cut off", strike=faults.partition, verdict=r"partition|node", figure="partition_s", bar=2.0),
    Kind(name="host frozen, woken after it was declared dead", strike=faults.frozen_host, verdict=r"^lost "),
    Kind(
        name="control plane SIGKILL",
        strike=faults.control_killed,
        shape=Shape.HELD,
        figure="control_pause_s",
        bar=0.1,
    ),
    Kind(
        name="control plane SIGSTOP, held",
        strike=faults.control_stopped,
        shape=Shape.HELD,
        figure="control_pause_s",
        bar=0.1,
        note="with the agent that would end it after 3 s",
    ),
    Kind(name="member lost while the control plane is down", strike=faults.lost_without_control, verdict=r"^lost "),
    Kind(name="head's link cut and healed", strike=faults.head_cut, shape=Shape.HELD),
    Kind(name="disk full, then a worker SIGKILL", strike=faults.disk_full, verdict=_SIGKILL),
    Kind(name="slow worker 3x", strike=faults.slow_worker, shape=Shape.SLOW, verdict=r"^slow-worker"),
    Kind(name="slow link 5x", strike=faults.slow_link, shape=Shape.SLOW, verdict=r"^slow-link", anew=True),
    Kind(name="gcs_server SIGKILL", strike=faults.gcs, shape=Shape.HELD, fresh=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What was said. `right`: of a victim and as expected, None where nothing need be said; `wrong`: who was condemned."""

    right: bool | None
    wrong: tuple[str, ...]
    said: tuple[str, ...]


def verdicts(kind: Kind, victims: set[str], told: Iterable[EventView]) -> Verdicts:
    """What the story holds of a fault on `victims` (`*`: of anybody)."""
    lines = [(e.subject, e.kind, f"{e.kind} {e.text}") for e in told]
    # Lines about a run or a node name no trainer; those about a trainer count if it was struck.
    losses = [(subject, line) for subject, what, line in lines if what in LOST]
    innocent = [] if "*" in victims else [(s, line) for s, line in losses if s not in victims]
    theirs = [line for s, _, line in lines if (s, line) not in innocent]
    return Verdicts(
        right=any(re.search(kind.verdict, line) for line in theirs) if kind.verdict else None,
        wrong=tuple(f"{s}: {line}" for s, line in innocent),
        said=tuple(f"{s}: {line}" for s, line in losses),
    )
