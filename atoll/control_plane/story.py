"""How each decision reads in the story: (subject, kind, text), the same words in CLI, dashboard and log.

A kind is one word that reads on into its text: "t1 lost: killed by SIGKILL". Texts name trainers and seats of their own run
by the short name, `t1`; the subject keeps the full id, by which `atoll story` finds it.
"""

from __future__ import annotations

import re
from typing import assert_never

from atoll.control_plane import records as r
from atoll.schema.ids import RunId
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

Line = tuple[str, str, str]

_STOPPING = {RunState.SUCCEEDED: "finishing", RunState.FAILED: "failing", RunState.QUEUED: "suspending"}


def brief(run: RunId, text: str) -> str:
    """`text` with `t1` for `my-run-t1`: in a line of that run its name only takes room."""
    return re.sub(rf"(?<![\w.-]){re.escape(run)}-(?=[ts]\d)", "", text)


def told(record: r.Record) -> Line | None:
    """The story's line for a record, or None for one that people need not see."""
    match record:
        case r.RunSubmitted() | r.RunPlaced() | r.RunResized() | r.RunMoved() | r.RunServing():
            return _run_line(record)
        case r.RunStopping() | r.RunSuspended() | r.RunHeld() | r.RunEnded():
            return _end_line(record)
        case r.TrainerAssigned() | r.TrainerBegan() | r.TrainerEnded() | r.TrainerGone():
            return _trainer_line(record)
        case r.SeatTaken() | r.SeatFreed():
            return _seat_line(record)
        case r.EpochRaised() | r.CheckpointKept() | r.CopyDecided() | r.CopyWithdrawn() | r.RunRewound():
            return _state_line(record)
        case r.NodeDraining() | r.NodeDrained() | r.NodeUndrained() | r.QueuesSet():
            return _cluster_line(record)
        case _:
            assert_never(record)


def _run_line(record: r.RunSubmitted | r.RunPlaced | r.RunResized | r.RunMoved | r.RunServing) -> Line:
    match record:
        case r.RunMoved():
            return record.run, "moves", record.reason
        case r.RunSubmitted():
            spec = record.spec
            return record.run, "submitted", f"{spec.kind} {spec.file}:{spec.function}, {_crew(spec)}"
        case r.RunPlaced():
            return record.run, "placed", record.reason
        case r.RunResized() if record.most is not None:
            return record.run, "resized", f"up to {record.most} workers as soon as there is room: {record.reason}"
        case r.RunResized():
            return record.run, "resized", f"{record.workers} worker{'s' * (record.workers != 1)}: {record.reason}"
        case r.RunServing():
            return record.run, "serving", "the first replica answers"
        case _:
            assert_never(record)


def _end_line(record: r.RunStopping | r.RunSuspended | r.RunHeld | r.RunEnded) -> Line:
    match record:
        case r.RunHeld():
            return record.run, "held" if record.held else "resumed", record.reason
        case r.RunStopping():
            return record.run, _STOPPING.get(record.goal, "stopping"), record.reason
        case r.RunSuspended():
            return record.run, "suspended", "its resources are free; it waits, and goes on from its last checkpoint"
        case r.RunEnded():
            return record.run, "ended", "its processes are gone and its resources free"
        case _:
            assert_never(record)


def _state_line(
    record: r.EpochRaised | r.CheckpointKept | r.CopyDecided | r.CopyWithdrawn | r.RunRewound,
) -> Line | None:
    if isinstance(record, r.CopyDecided | r.CopyWithdrawn):
        return None  # the copy itself has a line and a light
    if isinstance(record, r.EpochRaised):
        names = ", ".join(m.trainer for m in record.members)
        return record.run, "epoch", f"{record.epoch} of {names}: {record.reason}"
    if isinstance(record, r.RunRewound):
        return record.run, "rewound", f"to the checkpoint of step {record.step}: {record.reason}"
    return record.run, "checkpoint", f"step {record.step} is durable at {record.path}"


def _seat_line(record: r.SeatTaken | r.SeatFreed) -> Line:
    if isinstance(record, r.SeatTaken):
        return record.seat, "seat-taken", f"resources for one trainer are held on {record.node}"
    return record.seat, "seat-freed", "its resources are free again"


def _cluster_line(record: r.NodeRecord | r.QueuesSet) -> Line:
    match record:
        case r.QueuesSet():
            names = ", ".join(queue.name for queue in record.sharing.queue)
            return "queues", "queues-set", f"{names}: set by {record.by}"
        case r.NodeDraining():
            left = max(record.until - record.at, 0.0)
            return record.node, "draining", f"{record.reason}; whatever is there after {left:.0f} s is ended"
        case r.NodeDrained():
            return record.node, "drained", "no process of any run is left there"
        case r.NodeUndrained():
            return record.node, "undrained", "trainers may be placed there again"
        case _:
            assert_never(record)


def _crew(spec: JobSpec) -> str:
    span = f"{spec.least} to {spec.workers}" if spec.elastic else f"{spec.workers}"
    workers = f"{span} worker{'s' * (spec.workers != 1)}"
    return f"{workers} and {spec.spares} spare{'s' * (spec.spares != 1)}" if spec.spares else workers


def _trainer_line(record: r.TrainerAssigned | r.TrainerBegan | r.TrainerEnded | r.TrainerGone) -> Line:
    match record:
        case r.TrainerAssigned():
            return record.trainer, "assigned", f"to seat {record.seat}"
        case r.TrainerBegan():
            return record.trainer, "started", f"process {record.pid}"
        case r.TrainerEnded():
            dismissed = record.end is r.End.DISMISSED
            return record.trainer, record.end.value, "the run is over" if dismissed else record.reason
        case r.TrainerGone():
            return record.trainer, "gone", record.evidence
        case _:
            assert_never(record)
