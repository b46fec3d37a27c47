"""How many losses a run may have, by their cause, before its program is at fault and it stops with a report.

Hardware dies without asking (a host, a link, a kill from outside): such losses are borne generously, and forgotten with
each committed step. A process that ends by itself (a segfault, an exit status) is more likely the program's doing: once
for every worker and one more without one step between them. Memory that runs out in the same step twice will run out a
third time, with however many steps committed elsewhere meanwhile: the samples of a step, and so what it needs, never
change. The same on all members at once is no accident the first time. Deaths before a trainer was ready have a budget
of their own (`policy.START_BUDGET`), and what the program raises ends the run at once.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.errors import OutOfMemory
from atoll.schema.ids import Epoch, NodeId, Step, TrainerId

# Signals by which others end a process; those that a process brings upon itself are SIGSEGV, SIGABRT and their like.
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP})
# What an agent says where nobody was told the status.
EXIT_UNKNOWN = 255
# A kill is noticed beside the steps: the last one known may be one behind.
_SAME_STEP = 1
# Bits flip once in weeks, in a bad host more often, and its node is left out then. So many within so many steps, though
# bad nodes were left out, is no hardware.
CORRUPT_WITHIN = 10_000
# Of memory that ran out, and of corruption, at least the last so many are remembered, and as many as the budget counts.
REMEMBERED = 32


NOWHERE = NodeId("")


class Cause(enum.StrEnum):
    """Why a trainer was lost."""

    HARDWARE = "hardware"
    CRASH = "crash"
    MEMORY = "memory"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A trainer lost while it computed `step` in `epoch`."""

    trainer: TrainerId
    cause: Cause
    step: Step
    epoch: Epoch
    reason: str
    node: NodeId = NOWHERE


def cause_of_exit(status: int, *, out_of_memory: bool) -> Cause:
    """Of an exit status, or minus a signal. `out_of_memory`: the kernel killed for memory there just then."""
    if out_of_memory:
        return Cause.MEMORY
    if status == EXIT_UNKNOWN or -status in _FROM_OUTSIDE:
        return Cause.HARDWARE
    return Cause.CRASH


def cause_of_failure(code: str) -> Cause:
    """Of an error that a trainer told and that is not its program's."""
    return Cause.MEMORY if code == OutOfMemory.code else Cause.HARDWARE


def allowed(cause: Cause, workers: int) -> int:
    """Losses of this cause without one committed step between them that end the run."""
    return {Cause.HARDWARE: 4 * workers + 8, Cause.CRASH: workers + 1, Cause.MEMORY: 2, Cause.CORRUPT: 2 * workers + 4}[
        cause
    ]


def after_commit(losses: Sequence[Loss], *, workers: int) -> list[Loss]:
    """What is remembered of losses once a step was committed after them, in their order."""
    room = {cause: max(REMEMBERED, allowed(cause, workers)) for cause in (Cause.MEMORY, Cause.CORRUPT)}
    kept: list[Loss] = []
    for loss in reversed(losses):
        if room.get(loss.cause, 0):
            room[loss.cause] -= 1
            kept.append(loss)
    return kept[::-1]


def after_restart(losses: Sequence[Loss], *, workers: int) -> list[Loss]:
    """What a control plane that starts anew remembers of those on record: corruption.

    Whether a step was committed since is not on record, nor does it know at which step a run stands before one is told:
    memory that runs out until then would seem to do so in the first step, again and again.
    """
    return [loss for loss in after_commit(losses, workers=workers) if loss.cause is Cause.CORRUPT]


def verdict(losses: Sequence[Loss], *, workers: int) -> str:
    """Why the run stops, in words for its owner; empty while it may go on."""
    starved = _starved([loss for loss in losses if loss.cause is Cause.MEMORY], workers)
    if starved:
        return starved
    corrupt = [loss for loss in losses if loss.cause is Cause.CORRUPT]
    if (
        len(corrupt) >= allowed(Cause.CORRUPT, workers)
        and corrupt[-1].step - corrupt[-allowed(Cause.CORRUPT, workers)].step <= CORRUPT_WITHIN
    ):
        return (
            f"{len(corrupt)} replicas came to differ from the others, last {corrupt[-1].trainer}: {corrupt[-1].reason}; "
            "a program that changes weights on one worker only, or updates them with chance, does so everywhere"
        )
    for cause, what in ((Cause.CRASH, "crashed"), (Cause.HARDWARE, "were lost")):
        found = [loss for loss in losses if loss.cause is cause]
        if len(found) >= allowed(cause, workers):
            last = found[-1]
            return (
                f"{len(found)} trainers {what} without one step committed between; last {last.trainer} in step "
                f"{last.step}: {last.reason}"
            )
    return ""


def _starved(losses: list[Loss], workers: int) -> str:
    remedy = "use a smaller micro_batch, fewer workers on a host, or hosts with more memory"
    for i, loss in enumerate(losses):
        before = [b for b in losses[:i] if abs(b.step - loss.step) <= _SAME_STEP]
        again = next((b for b in before if b.epoch != loss.epoch), None)
        if again is not None:
            return (
                f"out of memory in step {loss.step} twice: {again.trainer} ({again.reason}), then {loss.trainer} "
                f"({loss.reason}); {remedy}"
            )
        together = {b.trainer for b in before if b.epoch == loss.epoch} | {loss.trainer}
        if 1 < workers <= len(together):
            return f"out of memory in step {loss.step} on all {len(together)} workers: {loss.reason}; {remedy}"
    return ""
