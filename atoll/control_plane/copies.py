"""What was decided on a run's remote copies of checkpoints, as trainers are told."""

from __future__ import annotations

from atoll.control_plane.state import Run
from atoll.schema.ids import Step
from atoll.schema.messages import CopyDecided


def decision(run: Run, step: Step) -> CopyDecided:
    """What is decided on the remote copy of a step."""
    return CopyDecided(step=step, record=run.copied.get(step, ""), withdrawn=run.withdrawn.get(step, ()))


def decisions(run: Run) -> tuple[CopyDecided, ...]:
    """All of them, for a trainer that begins."""
    return tuple(decision(run, step) for step in sorted({*run.copied, *run.withdrawn}))
