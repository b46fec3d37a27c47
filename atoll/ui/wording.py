"""Numbers, times and states in the words and shapes that people read.

Every state has a tone (which colour) and a glyph (which shape), so that colour never carries a meaning alone. Relative
times are coarse on purpose: a cell that changes each second draws the eye away from what matters.
"""

from __future__ import annotations

import datetime as dt
import enum
import math
import re

from atoll.schema.checkpoints import TierState
from atoll.schema.views import RunState

NOTHING = "\u2013"

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_KIB = 1024.0
# Four significant digits tell two losses of one run apart; more would flicker in the last place.
_SMALL = 1e-3
_LARGE = 10_000.0
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class Tone(enum.StrEnum):
    """The mood of a state, an event or a notice."""

    CALM = "calm"
    ACTIVE = "active"
    GOOD = "good"
    CARE = "care"
    BAD = "bad"


_RUN_TONES = {
    RunState.QUEUED: Tone.CALM,
    RunState.PLACED: Tone.CALM,
    RunState.RUNNING: Tone.ACTIVE,
    RunState.STOPPING: Tone.CARE,
    RunState.SUCCEEDED: Tone.GOOD,
    RunState.FAILED: Tone.BAD,
    RunState.STOPPED: Tone.CALM,
}
_RUN_GLYPHS = {
    RunState.QUEUED: "\u25f7",
    RunState.PLACED: "\u25cc",
    RunState.RUNNING: "\u25b6",
    RunState.STOPPING: "\u25a3",
    RunState.SUCCEEDED: "\u2713",
    RunState.FAILED: "\u2715",
    RunState.STOPPED: "\u25a0",
}
TONE_GLYPHS = {
    Tone.CALM: "\u00b7",
    Tone.ACTIVE: "\u25b8",
    Tone.GOOD: "\u2713",
    Tone.CARE: "\u25b2",
    Tone.BAD: "\u2715",
}

# Read from the first to the last: "checkpoint failed" is bad although "checkpoint" alone is good.
_KIND_TONES: tuple[tuple[Tone, tuple[str, ...]], ...] = (
    (Tone.BAD, ("fail", "refus", "error", "damag", "cannot")),
    (Tone.CARE, ("lost", "down", "exit", "fence", "gone", "suspect", "stop", "silent", "unreach", "kill", "leave")),
    (Tone.CARE, ("slow", "evict", "draining", "skip", "jump")),
    (Tone.GOOD, ("succeed", "finish", "commit", "checkpoint", "ready", "join", "attach", "adopt", "return", "serving")),
    (Tone.GOOD, ("keeps-up", "restored", "drained")),
    (Tone.ACTIVE, ("epoch", "start", "place", "regroup", "submit", "run", "promot", "resume")),
)


# Kinds whose bare word says too little to someone who does not know the control plane.
_TITLES = {
    "epoch": "new epoch",
    "gone": "process ended",
    "started": "process started",
    "assigned": "seat assigned",
    "ended": "run ended",
    "peer-down": "connection lost",
}


_COPY_TONES = {
    TierState.COPYING: Tone.ACTIVE,
    TierState.WHOLE: Tone.GOOD,
    TierState.FAILED: Tone.BAD,
    TierState.DAMAGED: Tone.BAD,
    TierState.GONE: Tone.CALM,
}


def run_tone(state: RunState) -> Tone:
    """The tone of a run's state."""
    return _RUN_TONES[state]


def run_glyph(state: RunState) -> str:
    """A shape that tells the state without its colour."""
    return _RUN_GLYPHS[state]


def copy_tone(state: TierState) -> Tone:
    """The tone of a copy of a checkpoint."""
    return _COPY_TONES[state]


def event_tone(kind: str) -> Tone:
    """The tone of an event, from the words in its kind; calm for a kind that nobody here has heard of."""
    low = kind.lower()
    return next((tone for tone, words in _KIND_TONES if any(word in low for word in words)), Tone.CALM)


def kind_words(kind: str) -> str:
    """`"EpochRaised"`, `"epoch_raised"` and `"epoch-raised"` as `"Epoch raised"`."""
    if kind in _TITLES:
        return _TITLES[kind].capitalize()
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind)
    words = re.split(r"[\s_.-]+", spaced.strip())
    return " ".join(words).lower().capitalize()


def number(value: float | None) -> str:
    """A measurement in four significant digits."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= _LARGE:
        return f"{value:,.0f}"
    if size < _SMALL:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(size)))}f}"


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in the unit that keeps three digits or fewer before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < _KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KIB
    return f"{value:.1f} TiB"


def duration(seconds: float | None) -> str:
    """How long something took: `"214 ms"`, `"3.20 s"`, `"2 min 05 s"`, `"1 h 12 min"`, `"3 d 4 h"`."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.2f} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE):02d} s"
    if seconds < _DAY:
        return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE):02d} min"
    return f"{int(seconds // _DAY)} d {int(seconds % _DAY // _HOUR)} h"


def elapsed(seconds: float) -> str:
    """How long something has been going on, in whole seconds."""
    return f"{max(0, int(seconds))} s" if seconds < _MINUTE else duration(seconds)


def ago(then: float | None, *, now: float) -> str:
    """How long ago, coarsely. A clock that is a little ahead reads as now."""
    if then is None:
        return NOTHING
    passed = now - then
    if passed < 10:  # noqa: PLR2004 - below ten seconds a person reads "now"
        return "just now"
    if passed < _MINUTE:
        return f"{int(passed // 10) * 10} s ago"
    if passed < _HOUR:
        return f"{int(passed // _MINUTE)} min ago"
    if passed < _DAY:
        return f"{int(passed // _HOUR)} h ago"
    return f"{int(passed // _DAY)} d ago"


def clock_time(at: float) -> str:
    """The time of day in UTC, as the story writes it."""
    return dt.datetime.fromtimestamp(at, tz=dt.UTC).strftime("%H:%M:%S")


def plural(amount: int, word: str) -> str:
    """`"1 member"`, `"2 members"`."""
    return f"{amount} {word}" if amount == 1 else f"{amount} {word}s"


def plain_log(text: str) -> list[str]:
    """Lines of a log without terminal colours; of a line that a progress bar rewrote, only the last form."""
    return [line.rsplit("\r", 1)[-1] for line in _ANSI.sub("", text).replace("\r\n", "\n").split("\n")]
