"""What an engine works with, where its member stands, and the small judgements on a step that need neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atoll.errors import UserError
from atoll.workers import reports
from atoll.workers.account import fed_line
from atoll.workers.busy_runtime import Announcements
from atoll.workers.epoch_runtime import EpochLink
from atoll.workers.fs_account import AccountFile
from atoll.workers.host import Host
from atoll.workers.outcome_runtime import Outcomes
from atoll.workers.samples import Plan
from atoll.workers.saving_runtime import Saving
from atoll.workers.torch_backup import Backups
from atoll.workers.torch_learning import Classroom
from atoll.workers.torch_loader import Loader
from atoll.workers.torch_managed import Managed
from atoll.workers.torch_replicas import Replicas
from atoll.workers.torch_step import Step

if TYPE_CHECKING:
    from atoll.workers.torch_sharded import Sharded


class Lost(BaseException):
    """An update failed after its step was committed: this process no longer holds the run's state (law 3)."""


class Suspended(BaseException):
    """The run leaves its seats after a checkpoint: the program is left where it is, and begun anew from there later."""


@dataclass(slots=True)
class Standing:
    """Where this member stands. `stopping`: no step follows, and if `suspending`, not even the program's end. `sums` are the reported means that came with the last vote.

    `shown`: up to here steps may have been shown outside, though all went back to an earlier one since.
    """

    committed: int = 0
    shown: int = 0
    has_state: bool = False
    stopping: bool = False
    suspending: bool = False
    sums: reports.Sums = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Parts:
    """What an engine works with."""

    host: Host
    link: EpochLink
    plan: Plan
    managed: Managed
    loader: Loader
    saving: Saving
    account: AccountFile
    outcomes: Outcomes
    standing: Standing
    announcements: Announcements
    classroom: Classroom
    replicas: Replicas
    backups: Backups
    sharded: Sharded | None = None


def refuse_spoilt(step: Step) -> None:
    """A step that failed here is at odds with the other members: a program that caught the error cannot go on."""
    if step.problem is not None:
        error = step.problem
        raise UserError(
            f"step {step.index} failed with {type(error).__name__}: {error}; do not catch it, this worker cannot go on "
            "as if nothing had happened"
        ) from error


def fed_of(step: Step, plan: Plan) -> str:
    """The line of the account that says what this member fed, and what of its own it left out."""
    left_out = [row for grain in step.grains if grain not in step.fed for row in plan.grain(step.index, grain)]
    ids = [row for rows in step.fed.values() for row in rows]
    return fed_line(step.index, step.transaction.epoch, step.attempt, ids, left_out)
