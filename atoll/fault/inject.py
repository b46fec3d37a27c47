"""Scripted faults: named places in the code where a test may make something happen.

`failpoint(name)` is called by the session at every place where a death would hurt; it does nothing until a test arms the
name. An armed action runs on the calling thread at the given pass of that place, so a test can end the process there,
raise, or wait. Nothing outside the process can arm one: there is no variable and no message for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The places, in the order in which one step passes them. Tests walk this list.
FAILPOINTS = (
    "step-entry",
    "before-backward",
    "in-bucket",
    "after-backward",
    "before-vote",
    "after-vote",
    "in-update",
    "after-update",
    "before-ack",
    "after-ack",
    "in-regroup",
    "in-transfer",
)

# Those that a save passes, on the writer's threads.
CHECKPOINT_FAILPOINTS = ("before-pack-sync", "between-pack-and-sidecar", "before-link", "after-link")


@dataclass(slots=True)
class _Charge:
    action: Callable[[], None]
    skip: int


_armed: dict[str, _Charge] = {}


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
    known = (*FAILPOINTS, *CHECKPOINT_FAILPOINTS)
    if name not in known:
        raise ValueError(f"no failpoint {name!r}; there are {', '.join(known)}")
    _armed[name] = _Charge(action=action, skip=skip)


def disarm() -> None:
    """Forget every armed failpoint."""
    _armed.clear()
