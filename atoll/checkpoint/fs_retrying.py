"""How long to wait before something is tried again, and when to give it up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits of `first_s`, twice that, and so on up to `most_s`; `tries` in all.

    Eight tries from half a second last a minute: as long as a store that sheds load takes to recover. What fails longer
    is told, and the next checkpoint tries again.
    """

    tries: int = 8
    first_s: float = 0.5
    most_s: float = 30.0

    def wait_s(self, failed: int) -> float | None:
        """Seconds to wait after `failed` tries (1 or more) in a row; None: give it up."""
        return None if failed >= self.tries else min(self.most_s, self.first_s * 2.0 ** (failed - 1))

    def again(self, act: Callable[[], T], failing: type[Exception], stopping: threading.Event | None = None) -> T:
        """What `act` returns, tried again after `failing`, until it is given up or `stopping` is set."""
        failed, stop = 0, stopping or threading.Event()
        while True:
            try:
                return act()
            except failing as error:
                failed += 1
                wait = self.wait_s(failed)
                if wait is None:
                    raise failing(f"{error}; given up after {failed} tries") from None
                if stop.wait(wait):
                    raise
