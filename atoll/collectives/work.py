"""A collective in flight: it ends once, done or poisoned, and never raises for a peer's fault."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atoll.collectives.telemetry import Trace
from atoll.schema.ids import TrainerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """Why an epoch's collectives ended early. `culprit` is None where no peer is to blame (a new epoch, a close).

    `differ`: the ranks called different operations; the reason names two of them and both calls.
    """

    reason: str
    culprit: TrainerId | None
    epoch: int
    differ: bool = False


class Work:
    """Handle of one operation.

    Poisoning and finishing exclude each other: whoever comes first wins, and the operation's result is written into
    the caller's buffer only inside `finish`, so a poisoned operation leaves its input as it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._callbacks: list[Callable[[Work], None]] = []
        self.trace = Trace()
        self.result: Any = None
        self.poison: Poison | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """True once done; False when poisoned, or not ended within `timeout` seconds."""
        return self._ended.wait(timeout) and self.poison is None

    @property
    def ended(self) -> bool:
        """True once done or poisoned."""
        return self._ended.is_set()

    def add_done_callback(self, call: Callable[[Work], None]) -> None:
        """Run `call(self)` when ended, at once if it has: on the transport's thread or the aborter's. Be quick."""
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(call)
                return
        call(self)

    def finish(self, result: Any = None, write: Callable[[], None] | None = None) -> None:
        """Done, after `write` has put the result where the caller wants it."""
        with self._lock:
            if self._ended.is_set():
                return
            if write is not None:
                write()
            self.result = result
            self._ended.set()
        self._tell()

    def spoil(self, poison: Poison) -> None:
        """Ended without a result."""
        with self._lock:
            if self._ended.is_set():
                return
            self.poison = poison
            self._ended.set()
        self._tell()

    def _tell(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for call in callbacks:
            call(self)
