"""Whom an operation waits for: who has not entered it, and who entered and is silent.

A rank sees only those whose bytes it waits for itself. In a ring that is its neighbour, who may wait for another in turn.
So whoever has waited for `ASK_S` asks all ranks how far they are (`Progress`): which collective they entered last, and
what they know of others, so that also a rank that this one cannot hear is not taken for one that has not come. Their
loops answer by themselves, also while their programs compute. While nobody waits nothing is asked.

*Missing* are those that have not entered, though the operation cannot end without them; their loops may answer. *Silent*
are those whose bytes this rank waits for, that entered, and from which nothing came for a while though they were asked: a
process that stands still, or a link that carries nothing. A rank that waits for others answers, so it is neither.

A loop that was itself late counts its waits from when it woke: what came meanwhile is still to be read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.errors import HandshakeError

# How often a loop looks while something is in flight: finer than what is told, and 20 turns a second cost nothing.
LOOK_S = 0.05
# Most waits are shorter: ranks of one speed, and links that are up.
ASK_S = 0.1
# What is shorter is nobody's concern; what lasts is told again as often.
TELL_S = 0.25
# Two answers in a row may be lost to a busy machine before a rank is called silent.
_SILENT_ASKS = 2.5
# Asking all ranks costs each of them a few microseconds an answer: many ranks are asked less often.
_ASK_EACH_S = 0.002
# A loop that had no turn for so long was stopped, starved, or adding up a very large message.
STALL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """For `for_s` seconds `operation` has waited for these ranks. With none of them, a wait that was told is over.

    `sequence` numbers the epoch's collectives from 1; 0: the meeting of the ranks, or a message from rank to rank.
    """

    operation: str
    sequence: int
    for_s: float
    missing: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nobody is waited for any more."""
        return not (self.missing or self.silent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The oldest operation in flight. Times in monotonic seconds.

    `needed`: ranks without which it cannot end; `awaited`: those whose bytes this rank itself waits for, or that do not
    take its own; `silence_s`: for how long these gave no sign since they were asked.
    """

    operation: str
    sequence: int
    since_s: float
    needed: frozenset[int] = frozenset()
    awaited: frozenset[int] = frozenset()
    silence_s: Mapping[int, float] = field(default_factory=dict)


class Progress:
    """The collective that each rank entered last, as far as this one knows."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self.entered = [0] * size
        self._form = struct.Struct(f"!{size}I")

    def enters(self, sequence: int) -> None:
        """This rank enters a collective."""
        self.heard(self._rank, sequence)

    def heard(self, rank: int, sequence: int) -> None:
        """Bytes of this collective came from `rank`, so it has entered it."""
        self.entered[rank] = max(self.entered[rank], sequence)

    def word(self) -> bytes:
        """What this rank tells others."""
        return self._form.pack(*self.entered)

    def learn(self, word: bytes) -> None:
        """What another rank knows. Raises `HandshakeError` for a word of another number of ranks."""
        if len(word) != self._form.size:
            raise HandshakeError(
                f"progress of {len(word)} bytes; of {len(self.entered)} ranks it has {self._form.size}"
            )
        for rank, sequence in enumerate(self._form.unpack(word)):
            self.heard(rank, sequence)


class Watch:
    """When to ask and to tell; one for each loop or meeting, which looks each `LOOK_S`."""

    def __init__(self, size: int) -> None:
        self.asked_s: float | None = None  # the first time in this wait
        self._ask_s = max(ASK_S, size * _ASK_EACH_S)
        self._asks_at = 0.0
        self._woke_s = 0.0
        self._told: Wait | None = None
        self._told_s = 0.0

    @property
    def told(self) -> bool:
        """Whether a wait was told that is not over."""
        return self._told is not None

    def woke(self, now: float) -> None:
        """This process was late itself."""
        self._woke_s = now
        self.asked_s = None

    def asks(self, since_s: float | None, now: float) -> bool:
        """Whether to ask now, of an operation that is in flight since then (None: there is none)."""
        if since_s is None or now - max(since_s, self._woke_s) < ASK_S:
            self.asked_s = None
            return False
        if self.asked_s is not None and now < self._asks_at:
            return False
        self.asked_s = now if self.asked_s is None else self.asked_s
        self._asks_at = now + self._ask_s
        return True

    def judged(self, scene: Scene, entered: list[int], now: float) -> Wait | None:
        """Who is missing and who is silent in `scene`; None where nobody is, or not yet."""
        since = max(scene.since_s, self._woke_s)
        if now - since < TELL_S:
            return None
        quiet = {r for r in scene.awaited if scene.silence_s.get(r, 0.0) >= self._silent_s}
        if scene.sequence:
            absent = {r for r in scene.needed | scene.awaited if entered[r] < scene.sequence}
        else:  # not numbered: whoever owes something has not come, unless it is silent
            absent = set(scene.needed) - quiet
        quiet -= absent
        if not (absent or quiet):
            return None
        lasted = now - since if absent else max(scene.silence_s[r] for r in quiet)
        return Wait(
            operation=scene.operation,
            sequence=scene.sequence,
            for_s=lasted,
            missing=tuple(sorted(absent)),
            silent=tuple(sorted(quiet)),
        )

    def tells(self, found: Wait | None, now: float) -> Wait | None:
        """What to tell: a change at once, what lasts each `TELL_S`, and its end."""
        before = self._told
        if found is None:
            self._told = None
            if before is None:
                return None
            return Wait(operation=before.operation, sequence=before.sequence, for_s=0.0)
        if before is not None and _same(before, found) and now - self._told_s < TELL_S:
            return None
        self._told, self._told_s = found, now
        return found

    @property
    def _silent_s(self) -> float:
        return max(TELL_S, _SILENT_ASKS * self._ask_s)


def _same(one: Wait, other: Wait) -> bool:
    return (one.sequence, one.missing, one.silent) == (other.sequence, other.missing, other.silent)
