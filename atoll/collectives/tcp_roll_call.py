"""Who has come how far: asked of all ranks when an operation is overdue, answered without their program's help.

A ring's operation that hangs tells each rank only of its neighbours. So whoever runs out of patience asks everyone how many
collectives they have called; the loops answer by themselves, also while their programs compute. Who has called fewer is
missing, who does not answer is hung or cut off.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.wire import LANES
from atoll.collectives.work import Work

# The last tag is ours: programs have all below it.
TAG = LANES - 2
_ASK, _ANSWER = 0, 1


class RollCall:
    """One rank's part: answers with `called()`, and asks."""

    def __init__(self, communicator: Communicator, called: Callable[[], int]) -> None:
        self._communicator, self._called = communicator, called
        self._answers: dict[int, int] = {}
        self._changed = threading.Condition()
        if communicator.size > 1:
            self._listen()

    def ask(self, patience_s: float) -> dict[int, int]:
        """How many collectives each other rank has called; those that do not answer in time are left out."""
        deadline = time.monotonic() + patience_s
        with self._changed:
            self._answers.clear()
        for rank in range(self._communicator.size):
            if rank != self._communicator.rank:
                self._say(rank, _ASK)
        with self._changed:
            while len(self._answers) < self._communicator.size - 1:
                left = deadline - time.monotonic()
                if left <= 0 or self._communicator.poisoned is not None or not self._changed.wait(left):
                    break
            return dict(self._answers)

    def _listen(self) -> None:
        message = torch.empty(2, dtype=torch.int64)
        heard = self._communicator.recv(message, source=None, tag=TAG)
        heard.add_done_callback(lambda work: self._hear(work, message))

    def _hear(self, work: Work, message: torch.Tensor) -> None:
        if work.poison is not None:
            with self._changed:
                self._changed.notify_all()
            return
        kind, called = message.tolist()
        if kind == _ASK:
            self._say(work.result, _ANSWER)
        else:
            with self._changed:
                self._answers[work.result] = called
                self._changed.notify_all()
        self._listen()

    def _say(self, rank: int, kind: int) -> None:
        self._communicator.send(torch.tensor([kind, self._called()]), to=rank, tag=TAG)
