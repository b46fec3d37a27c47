"""The agent's watch: a thread of its own that beats to other agents and looks at trainers, ten times a second.

It is no part of the event loop, which may be held up by a log that is read or a record that is written: a beat that comes
late is a silence to its listeners. The thread sends, reads what came and looks; `beating` and `watching` decide what is
told, and `emit` (called on this thread) passes that on. It knows how late each of its own turns came, and that is told
along, for an agent without processor time sees silences that nobody made.

What the loop wants of it goes through a queue and takes effect with the next turn.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atoll.clock import Clock
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.messages import PeersWatched, TrainerWatched, WatchPeers
from atoll.schema.topology import Nic
from atoll.workers.beat_runtime import Beats
from atoll.workers.proc_runtime import ProcessView
from atoll.workers.proc_turns import take_short_turns
from atoll.workers.pulse_runtime import pulse_path, read_pulse
from atoll.workers.watching import Beat, Look, Process, TrainersWatch

TICK_S = 0.1
Fact = PeersWatched | TrainerWatched
Emit = Callable[[tuple[Fact, ...] | None, float], None]


@dataclass(frozen=True, slots=True)
class _Trainer:
    run: RunId
    view: ProcessView
    pulse: Path


class Watcher:
    """Listens from the moment it is made. `start` it once; the other methods may be called from any thread."""

    def __init__(self, node: NodeId, nics: tuple[Nic, ...], state_dir: Path, clock: Clock) -> None:
        self._clock = clock
        self._state_dir = state_dir
        self._beats = Beats(node, nics, first=int(clock.now() * 1e6))
        self.doors = self._beats.doors
        self._wishes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._trainers: dict[TrainerId, _Trainer] = {}
        self._watch = TrainersWatch()
        self._over = False
        self._thread: threading.Thread | None = None

    def start(self, emit: Emit) -> None:
        """Begin. `emit` gets, on the thread, what is to be told and as of when; None once the thread ends."""
        self._thread = threading.Thread(target=self._run, args=[emit], name="atoll-watch", daemon=True)
        self._thread.start()

    def obey(self, command: WatchPeers) -> None:
        """Beat to and listen for these from now on."""
        self._wishes.put(lambda: self._beats.obey(command))

    def watch(self, trainer: TrainerId, run: RunId, pid: int, ticks: int) -> None:
        """Look at this process from now on."""
        self._wishes.put(lambda: self._begin(trainer, run, pid, ticks))

    def forget(self, trainer: TrainerId) -> None:
        """It has ended."""
        self._wishes.put(lambda: self._end(trainer))

    def close(self) -> None:
        """End the thread and give back what it held."""
        self._over = True
        if self._thread is not None:
            self._thread.join(5.0)
        for found in self._trainers.values():
            found.view.close()
        self._beats.close()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self, emit: Emit) -> None:
        take_short_turns()
        due = self._clock.monotonic() + TICK_S
        try:
            while not self._over:
                time.sleep(max(0.0, due - self._clock.monotonic()))  # half the price of waiting for an event
                now = self._clock.monotonic()
                if facts := self.turn(now=now, behind_s=max(0.0, now - due)):
                    emit(facts, now)
                # Turns that were missed are not made up for.
                due = due + TICK_S if due + TICK_S > now else now + TICK_S
        finally:
            emit(None, due)

    def turn(self, *, now: float, behind_s: float) -> tuple[Fact, ...]:
        """One beat and one look at everything, `behind_s` after it was due: what is to be told."""
        while not self._wishes.empty():
            self._wishes.get()()
        found = ((trainer, self._look(trainer, at, behind_s)) for trainer, at in self._trainers.items())
        looks = {trainer: look for trainer, look in found if look is not None}
        facts = self._watch.looked(looks, now=self._clock.monotonic(), behind_s=behind_s)
        heard = self._beats.tick(now=now, behind_s=behind_s, along=bool(facts))
        return facts if heard is None else (*facts, heard)

    def _look(self, trainer: TrainerId, at: _Trainer, behind_s: float) -> Look | None:
        pulse = read_pulse(at.pulse)
        beat = Beat() if pulse is None else Beat(count=pulse.count, at=pulse.at)
        if not self._watch.wants_process(trainer, beat, now=self._clock.monotonic(), behind_s=behind_s):
            return Look(run=at.run, beat=beat)
        stat = at.view.look()
        return (
            None if stat is None else Look(run=at.run, beat=beat, process=Process(state=stat.state, cpu_s=stat.cpu_s))
        )

    def _begin(self, trainer: TrainerId, run: RunId, pid: int, ticks: int) -> None:
        self._end(trainer, keep_pulse=True)
        pulse = pulse_path(self._state_dir, trainer)
        self._trainers[trainer] = _Trainer(run=run, view=ProcessView(pid, ticks), pulse=pulse)

    def _end(self, trainer: TrainerId, *, keep_pulse: bool = False) -> None:
        found = self._trainers.pop(trainer, None)
        if found is not None:
            found.view.close()
        if not keep_pulse:
            with contextlib.suppress(OSError):  # a leftover link leads nowhere
                pulse_path(self._state_dir, trainer).unlink(missing_ok=True)
