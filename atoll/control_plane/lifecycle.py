"""Where a run may go from where it stands, as a table. A pair without a row is a bug and says so.

    queued -> placed -> running -> stopping -> succeeded | failed | stopped
    queued -> stopping, placed -> stopping: stopped, or found impossible, before the first step
    stopping -> queued: suspended, to go on from a checkpoint later; stopping -> stopping: stopped for good meanwhile

`STOPPING` is passed on the way to every end, success included: trainers leave, seats are freed, then the run ended.
"""

from __future__ import annotations

import enum

from atoll.errors import TransitionError
from atoll.schema.ids import RunId
from atoll.schema.views import RunState


class Move(enum.StrEnum):
    """What happens to a run."""

    PLACE = "place"
    START = "start"
    STOP = "stop"
    SUCCEED = "succeed"
    FAIL = "fail"
    HALT = "halt"
    SUSPEND = "suspend"


TABLE: dict[tuple[RunState, Move], RunState] = {
    (RunState.QUEUED, Move.PLACE): RunState.PLACED,
    (RunState.QUEUED, Move.STOP): RunState.STOPPING,
    (RunState.PLACED, Move.START): RunState.RUNNING,
    (RunState.PLACED, Move.STOP): RunState.STOPPING,
    (RunState.RUNNING, Move.START): RunState.RUNNING,
    (RunState.RUNNING, Move.STOP): RunState.STOPPING,
    (RunState.STOPPING, Move.STOP): RunState.STOPPING,
    (RunState.STOPPING, Move.SUSPEND): RunState.QUEUED,
    (RunState.STOPPING, Move.SUCCEED): RunState.SUCCEEDED,
    (RunState.STOPPING, Move.FAIL): RunState.FAILED,
    (RunState.STOPPING, Move.HALT): RunState.STOPPED,
}

END_OF_GOAL: dict[RunState, Move] = {
    RunState.SUCCEEDED: Move.SUCCEED,
    RunState.FAILED: Move.FAIL,
    RunState.STOPPED: Move.HALT,
}


def after(run: RunId, state: RunState, move: Move) -> RunState:
    """The state that `move` leads to. Raises `TransitionError` where the table has no row."""
    found = TABLE.get((state, move))
    if found is None:
        allowed = sorted(m.value for s, m in TABLE if s is state)
        raise TransitionError(f"run {run} is {state}: cannot {move}; possible from there: {', '.join(allowed) or '-'}")
    return found
