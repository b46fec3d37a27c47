"""Scripted faults: named places in the code where a test may make something happen.

`failpoint(name)` is called by the session at every place where a death would hurt; it does nothing until a test arms the
name. An armed action runs on the calling thread at the given pass of that place, so a test can end the process there,
raise, or wait. From outside a process only a run whose spec says `chaos=True` has one armed, to end itself there (see
`atoll/workers/harm_runtime.py`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass

from atoll.fault.places import CHECKPOINT_FAILPOINTS, FAILPOINTS, LEARNING_FAILPOINTS, UPLOAD_FAILPOINTS


@dataclass(slots=True)
class _Charge:
    action: Callable[[], None]
    skip: int
    is_death: bool = False


_armed: dict[str, _Charge] = {}
_flips: list[Callable[[], None]] = []


def failpoint(name: str) -> None:
    """Run what a test armed for this place, if anything."""
    if _armed:
        _pass(name)


def _pass(name: str) -> None:
    charge = _armed.get(name)
    if charge is None:
        return
    if charge.skip > 0:
        charge.skip -= 1
        return
    del _armed[name]
    charge.action()


def arm(name: str, action: Callable[[], None], *, skip: int = 0) -> None:
    """Have `action` run once at `name`, after `skip` passes without effect."""
    known = (*FAILPOINTS, *LEARNING_FAILPOINTS, *CHECKPOINT_FAILPOINTS, *UPLOAD_FAILPOINTS)
    if name not in known:
        raise ValueError(f"no failpoint {name!r}; there are {', '.join(known)}")
    _armed[name] = _Charge(action=action, skip=skip)


def arm_death(name: str) -> None:
    """Have the process that passes `name` end there at once: this one, or the one that it hands the order on to."""
    arm(name, _die)
    _armed[name].is_death = True


def handed_on(names: Collection[str]) -> list[str]:
    """Those of `names` at which a death is armed: from here on it is another process's to `arm_death` there."""
    found = [name for name, charge in _armed.items() if charge.is_death and name in names]
    for name in found:
        del _armed[name]
    return found


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disarm() -> None:
    """Forget every armed failpoint."""
    _armed.clear()


def offer(flip: Callable[[], None]) -> None:
    """How a bit of what this process trains is flipped, should anybody ask for it. The last offer counts."""
    _flips[:] = [flip]


def flip() -> None:
    """Flip it, at the next vote: on the thread that trains, and between two uses of what is changed."""
    arm("before-vote", _flip)


def _flip() -> None:
    for each in _flips:
        each()
