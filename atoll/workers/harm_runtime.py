"""Faults that a trainer does to itself, asked for by `atoll chaos`: a kept GIL, slow grains, a death, a flipped bit.

Installed only where the run's spec says `chaos=True`. Orders come on the link's thread. A call through `ctypes.PyDLL`
keeps the GIL while it lasts: no other thread of this interpreter gets a turn, as with a C extension that computes
without giving it back. Slow grains wait where the engine passes the failpoints of a grain.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time

from atoll.clock import Clock
from atoll.fault import inject
from atoll.schema.harm import Harm
from atoll.schema.messages import Misbehave

# What a slow trainer's grains take, in multiples of what they took.
SLOWNESS = 3.0
_FOR_GOOD_S = 1 << 30


class Harms:
    """What this trainer does to itself when told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slow_until = 0.0
        self._mark = 0.0

    def suffer(self, order: Misbehave) -> None:
        """Do it, on the calling thread. An order that makes no sense is a line in the log."""
        sys.stderr.write(f"atoll: hurts itself as told: {order.harm} {order.place}\n")
        match order.harm:
            case Harm.GIL:
                ctypes.PyDLL(None).sleep(math.ceil(order.for_s) or _FOR_GOOD_S)
            case Harm.SLOW:
                self._slow_until = self._clock.monotonic() + (order.for_s or _FOR_GOOD_S)
                self._stretch()
            case Harm.DIE:
                self._die_at(order.place)
            case Harm.FLIP:
                inject.flip()
            case _:
                sys.stderr.write(f"atoll: {order.harm} is not done from inside; nothing happens\n")

    def _die_at(self, place: str) -> None:
        try:
            inject.arm_death(place)
        except ValueError as error:
            sys.stderr.write(f"atoll: {error}\n")

    # -- slow grains ---------------------------------------------------------------------------------------------------

    def _stretch(self) -> None:
        inject.arm("step-entry", self._entered)
        inject.arm("before-backward", self._computed)
        inject.arm("after-backward", self._went_back)

    def _entered(self) -> None:
        self._mark = self._clock.monotonic()
        self._again("step-entry")

    def _computed(self) -> None:
        """A grain's forward, and what came before it, has taken until now."""
        if self._mark:
            time.sleep((SLOWNESS - 1) * max(self._clock.monotonic() - self._mark, 0.0))
        self._again("before-backward")

    def _went_back(self) -> None:
        self._mark = self._clock.monotonic()
        self._again("after-backward")

    def _again(self, place: str) -> None:
        if self._clock.monotonic() < self._slow_until:
            actions = {
                "step-entry": self._entered,
                "before-backward": self._computed,
                "after-backward": self._went_back,
            }
            inject.arm(place, actions[place])
