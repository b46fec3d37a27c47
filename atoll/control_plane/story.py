"""How each decision reads in the story: (subject, kind, text), the same words in CLI, dashboard and log."""

from __future__ import annotations

from typing import assert_never

from atoll.control_plane import records as r

Line = tuple[str, str, str]


def told(record: r.Record) -> Line | None:
    """The story's line for a record, or None for one that people need not see."""
    match record:
        case r.RunSubmitted() | r.RunPlaced() | r.RunServing() | r.RunStopping() | r.RunEnded():
            return _run_line(record)
        case r.TrainerAssigned() | r.TrainerBegan() | r.TrainerEnded() | r.TrainerGone():
            return _trainer_line(record)
        case r.SeatTaken():
            return record.seat, "seat-taken", f"resources for one trainer on {record.node}"
        case r.SeatFreed():
            return record.seat, "seat-freed", "resources given back"
        case r.EpochRaised():
            names = ", ".join(m.trainer for m in record.members)
            return record.run, "epoch", f"epoch {record.epoch}: {record.reason}; members: {names}"
        case r.CheckpointKept():
            return record.run, "checkpoint", f"step {record.step} is durable at {record.path}"
        case _:
            assert_never(record)


def _run_line(record: r.RunSubmitted | r.RunPlaced | r.RunServing | r.RunStopping | r.RunEnded) -> Line:
    match record:
        case r.RunSubmitted():
            spec = record.spec
            return record.run, "submitted", f"{spec.kind} {spec.file}:{spec.function} on {spec.workers} workers"
        case r.RunPlaced():
            return record.run, "placed", "all its seats are reserved"
        case r.RunServing():
            return record.run, "serving", "the first replica answers"
        case r.RunStopping():
            return record.run, "stopping", f"towards {record.goal}: {record.reason}"
        case r.RunEnded():
            return record.run, "ended", "all trainers are gone and all seats free"
        case _:
            assert_never(record)


def _trainer_line(record: r.TrainerAssigned | r.TrainerBegan | r.TrainerEnded | r.TrainerGone) -> Line:
    match record:
        case r.TrainerAssigned():
            return record.trainer, "assigned", f"to live in {record.seat}"
        case r.TrainerBegan():
            return record.trainer, "began", f"as process {record.pid}"
        case r.TrainerEnded():
            return record.trainer, record.end.value, record.reason
        case r.TrainerGone():
            return record.trainer, "gone", record.evidence
        case _:
            assert_never(record)
