"""What the head's agent does for the control plane and the web process: pure decisions, one look each quarter second.

- A control plane that is attached and silent is killed, once a stream, because Ray never restarts a frozen actor: after
  3 s where a signal stopped it, after 30 s where nothing shows that it is not merely slow. On a host that is too busy, or
  whose disk is, a new one would be later still. This is armed by its first beat only: one that does not beat cannot fall
  silent.
- While none is attached for 10 s, a helper that creates the actor again on a reachable Ray is run, with growing pauses:
  Ray may be away for minutes, and each try costs seconds of a core.
- The web process is started whenever it is not there, with growing pauses while it does not stay. One that touched its
  beat file and does so no more for 10 s hangs, and is killed.

Silence is counted as in `silence.py`, so a stall of this agent kills nobody.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atoll.workers.silence import Backoff, Silence

STOPPED_S = 3.0
SILENT_S = 30.0
AWAY_S = 10.0
WEB_SILENT_S = 10.0
# Ray's own start-up, a placement and an actor's imports on a loaded machine take less; a hung Ray call takes for ever.
ENSURE_S = 90.0
# A web process that lived this long did start; its next end is a new story.
SETTLED_S = 30.0


class Action(enum.StrEnum):
    """What to do now."""

    KILL_STOPPED_CONTROL = "kill-stopped-control"
    KILL_SILENT_CONTROL = "kill-silent-control"
    START_ENSURE = "start-ensure"
    KILL_ENSURE = "kill-ensure"
    START_WEB = "start-web"
    KILL_WEB = "kill-web"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look. `stream` and `frames` count streams and frames since the agent began; 0 streams: never attached.

    `stopped`: a signal stopped the control plane's process. `web_beat` is the time of the web process's last beat, 0
    before the first.
    """

    attached: bool
    stream: int
    beating: bool
    frames: int
    web_lives: bool
    ensure_lives: bool
    stopped: bool = False
    web_beat: int = 0


class Supervision:
    """Folds looks into actions."""

    def __init__(self) -> None:
        self._silence = Silence()
        self._away = Silence()
        self._frames = 0
        self._killed_stream = 0
        self._ensure_pause = Backoff(first_s=2.0, last_s=30.0)
        self._ensure_next = 0.0
        self._ensure_began = 0.0
        self._web_pause = Backoff(first_s=0.5, last_s=15.0)
        self._web_next = 0.0
        self._web_began = 0.0
        self._web_silence = Silence()
        self._web_beat = 0
        self._web_beats = False

    def look(self, seen: Seen, *, now: float) -> list[Action]:
        """What to do as of `now` (monotonic)."""
        if seen.attached and (seen.frames != self._frames or not seen.beating):
            self._heard()
        self._frames = seen.frames
        if seen.attached:
            self._away.heard()
        return [*self._control(seen, now), *self._ensure(seen, now), *self._web(seen, now)]

    def _heard(self) -> None:
        self._silence.heard()
        self._ensure_pause.reset()

    def _control(self, seen: Seen, now: float) -> list[Action]:
        silent_s = self._silence.look(now=now)
        limit_s = STOPPED_S if seen.stopped else SILENT_S
        if not seen.attached or silent_s < limit_s or self._killed_stream == seen.stream:
            return []
        self._killed_stream = seen.stream
        return [Action.KILL_STOPPED_CONTROL if seen.stopped else Action.KILL_SILENT_CONTROL]

    def _ensure(self, seen: Seen, now: float) -> list[Action]:
        away_s = self._away.look(now=now)
        if seen.ensure_lives:
            return [Action.KILL_ENSURE] if now - self._ensure_began > ENSURE_S else []
        if away_s < AWAY_S or now < self._ensure_next:
            return []
        self._ensure_began = now
        self._ensure_next = now + self._ensure_pause.next()
        return [Action.START_ENSURE]

    def _web(self, seen: Seen, now: float) -> list[Action]:
        hangs = self._web_hangs(seen, now)
        if seen.web_lives:
            if now - self._web_began > SETTLED_S:
                self._web_pause.reset()
            return [Action.KILL_WEB] if hangs else []
        if now < self._web_next:
            return []
        self._web_began = now
        self._web_next = now + self._web_pause.next()
        return [Action.START_WEB]

    def _web_hangs(self, seen: Seen, now: float) -> bool:
        silent_s = self._web_silence.look(now=now)
        if seen.web_beat != self._web_beat:
            # The file may be of an earlier process: only one that changes while this one lives shows that it beats.
            self._web_beats = seen.web_lives and self._web_beat != 0
            self._web_beat = seen.web_beat
            self._web_silence.heard()
            return False
        hangs = seen.web_lives and self._web_beats and silent_s >= WEB_SILENT_S
        self._web_beats = self._web_beats and seen.web_lives and not hangs
        return hangs
