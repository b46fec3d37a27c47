"""What may be done to a trainer on purpose. A run allows it with `chaos=True` in its spec; nothing else can be hurt."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from atoll.errors import SpecError
from atoll.schema.ids import TrainerId


class Harm(enum.StrEnum):
    """One way to be hurt.

    `KILL` and `STOP` are signals of the agent. `GIL`, `SLOW`, `DIE` and `FLIP` happen inside the process: its interpreter
    gives no thread a turn; its grains take three times as long; it ends at a named failpoint; a bit of its weights flips. `AGENT` ends the agent of the
    trainer's node, and the trainer not at all.
    """

    KILL = "kill"
    STOP = "stop"
    GIL = "gil"
    SLOW = "slow"
    DIE = "die"
    FLIP = "flip"
    AGENT = "agent"


# What ends by itself if it is told for how long. The others leave nothing that could go on.
PASSING = frozenset({Harm.STOP, Harm.GIL, Harm.SLOW})
# What the process itself has to do.
INWARD = frozenset({Harm.GIL, Harm.SLOW, Harm.DIE, Harm.FLIP})


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmWish:
    """Somebody wants `trainer` hurt. `for_s` seconds of what passes, 0: for good; `place`: the failpoint of `DIE`."""

    trainer: TrainerId
    harm: Harm
    for_s: float = 0.0
    place: str = ""


def check_wish(wish: HarmWish) -> HarmWish:
    """`wish` itself. Raises `SpecError` with what contradicts itself."""
    if not 0 <= wish.for_s < math.inf or (wish.for_s > 0 and wish.harm not in PASSING):
        raise SpecError(f"{wish.harm} for {wish.for_s:g} s: only {', '.join(sorted(PASSING))} pass, 0 is for good")
    if bool(wish.place) != (wish.harm is Harm.DIE):
        raise SpecError(f"{wish.harm} at {wish.place!r}: die needs a failpoint, and nothing else has one")
    return wish
