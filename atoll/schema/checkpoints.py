"""Where copies of a checkpoint lie, and how each of them stands."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Tier(enum.StrEnum):
    """A place for copies, the cheapest to read first."""

    MEMORY = "memory"
    LOCAL = "local"
    REMOTE = "remote"


class TierState(enum.StrEnum):
    """How the copy in a tier stands."""

    COPYING = "copying"
    WHOLE = "whole"
    FAILED = "failed"
    DAMAGED = "damaged"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierView:
    """One copy of one checkpoint. `detail` says where it is, how far it got, or what is wrong."""

    tier: Tier
    state: TierState
    detail: str = ""
