"""What a rank does until its epoch is aborted: emulated computing beside all-reduces, with two threads that wait for them."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import torch

from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.work import Work
from atoll.schema.ids import TrainerId
from benchmarks.contestants import inputs, trainer
from benchmarks.ranks import Rank

_COMPUTE_S = 0.05
_LIMIT_S = 30.0


def note_resets(rank: Rank) -> None:
    """From now on write down when a communicator of this process first hears that a peer has ended."""
    heard: list[float] = []
    rank.things["resets"] = heard
    original = Communicator._peer_ended  # noqa: SLF001 - the first moment at which a reset is known

    def noted(self: Communicator, reason: str, rank: int | None, name: str | None) -> None:
        heard.append(time.monotonic())
        original(self, reason, rank, name)

    Communicator._peer_ended = noted  # type: ignore[method-assign]  # noqa: SLF001


def work_until_aborted(rank: Rank, *, count: int, aborter: int, abort_after_s: float, culprit: int) -> dict[str, Any]:
    """Reduce and compute until the end of the epoch; rank `aborter` calls `abort` after so long, if it is not over.

    Returns when it called, the first reset heard, when each waiter that was waiting returned, and what the end left.
    """
    communicator: Communicator = rank.things["communicator"]
    poisoned: list[float] = []
    communicator.on_poison(lambda _: poisoned.append(time.monotonic()))
    second = _Waiter()
    begin = rank.gate()
    called: list[float] = []
    if rank.number == aborter:
        reason = f"{trainer(culprit)} is silent"
        timer = threading.Timer(
            begin + abort_after_s - time.monotonic(), _abort, (communicator, reason, culprit, called)
        )
        timer.start()
    steps, waits, intact = _steps(rank, communicator, second, count)
    second.end()
    if rank.number == aborter:
        timer.cancel()
        timer.join()
    poison = communicator.poisoned
    assert poison is not None
    return {
        "begin": begin,
        "called": called[0] if called else None,
        "reset": min(rank.things["resets"], default=None),
        "poisoned": poisoned[0],
        "returned": [end for start, end in (*waits, *second.waits) if start < poisoned[0]],
        "steps": steps,
        "intact": intact,
        "culprit": poison.culprit,
        "reason": poison.reason,
    }


def _steps(
    rank: Rank, communicator: Communicator, second: _Waiter, count: int
) -> tuple[int, list[tuple[float, float]], bool]:
    """How many steps were done, the last wait of this thread, and whether the aborted input is as it was."""
    given = inputs(rank, rank.number, count, whole=True)
    deadline = time.monotonic() + _LIMIT_S
    steps = 0
    while time.monotonic() < deadline:
        buffer = given.clone()
        work = communicator.all_reduce(buffer)
        second.wait_for(work)
        time.sleep(_COMPUTE_S)
        start = time.monotonic()
        done = work.wait(_LIMIT_S)
        end = time.monotonic()
        if not done:
            return steps, [(start, end)], bool(torch.equal(buffer, given))
        steps += 1
    raise RuntimeError(f"rank {rank.number}: no abort within {_LIMIT_S:g} s, {steps} steps")


def _abort(communicator: Communicator, reason: str, culprit: int, called: list[float]) -> None:
    if communicator.poisoned is None:
        called.append(time.monotonic())
        communicator.abort(reason, TrainerId(trainer(culprit)))


class _Waiter:
    """A second thread that waits for each operation; `waits` holds those that did not end well."""

    def __init__(self) -> None:
        self.waits: list[tuple[float, float]] = []
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, work: Work) -> None:
        self._works.put(work)

    def end(self) -> None:
        self._works.put(None)
        self._thread.join(_LIMIT_S)

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            start = time.monotonic()
            if not work.wait(_LIMIT_S):
                self.waits.append((start, time.monotonic()))
