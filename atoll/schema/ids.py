"""The names of things. Every id is a short string that may appear in a path, a log line and a URL."""

from __future__ import annotations

import re
from typing import NewType

NodeId = NewType("NodeId", str)
RunId = NewType("RunId", str)
SeatId = NewType("SeatId", str)
TrainerId = NewType("TrainerId", str)
Rank = NewType("Rank", int)
Epoch = NewType("Epoch", int)
Step = NewType("Step", int)
Incarnation = NewType("Incarnation", int)
Seconds = NewType("Seconds", float)

# Epochs and steps count from 1: of who is in none yet, or does not tell his.
NO_EPOCH, NO_STEP = Epoch(0), Step(0)

# Set in `__main__` of a trainer, so that code of the user's file can be told from the same code in a driver.
TRAINER_MARK = "__atoll_trainer__"

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def is_safe_name(text: str) -> bool:
    """True where `text` can stand in a file name, a URL and a log line without quoting."""
    return _SAFE.fullmatch(text) is not None
