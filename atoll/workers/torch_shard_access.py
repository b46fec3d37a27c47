"""Between a session and the sharded part of its state: what a regroup has decided, and the way to the whole state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.checkpoint.fs_read import Reading
from atoll.checkpoint.manifest import CommitRecord
from atoll.checkpoint.torch_read import Take
from atoll.checkpoint.torch_state import Flat
from atoll.schema.checkpoints import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a regroup has decided: all stand after `step`. `applying`: this member has yet to apply that step's update.

    It was voted on in epoch `line`.
    `fresh`: nobody holds a state. `update_now` applies it at once, where the model will not be the same afterwards;
    `give_up` lets go of the step, where the state is lost and all return to a checkpoint.
    """

    step: int
    fresh: bool
    applying: bool
    line: int
    update_now: Callable[[], None]
    give_up: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The way to the session's whole state.

    `state` gives it, `load` fills it and returns the step of what it was filled with. `found` has the checkpoint to begin
    with in an epoch taken, if there is one; `opened` opens the step of a folder of them, which another rank has found.
    `before_change` returns when a save that is under way needs the live tensors no more.
    """

    state: Callable[[], Mapping[str, Any]]
    load: Callable[[Flat], int]
    found: Callable[[int, Take], Flat | None]
    opened: Callable[[Path, CommitRecord, Collection[Tier]], Reading]
    before_change: Callable[[], None]
