"""Backup workers of a run: who has come is told to rank 0, which tells the rest when the others suffice.

Beside the collectives go messages of one number, the step: from a member to rank 0 once it has given all that it has to
the step's sums, and from rank 0 to those who are still on their way once the fastest n - b have come (`fault.backup`
chooses b before each step). A member that was told stops where Atoll owns the stack: before its next micro-batch, if it
has had one, or before the backward of the one in hand. What it gives then has its true weight, so the sums agree on all
members as in every step, whoever was told what and when: a message that is late or lost changes how long a step takes,
and nothing else.

Messages are received by callbacks on the communicator's thread, so that rank 0 hears of others while it computes. They
are receives from anybody: nobody is accused of keeping them waiting. What rank 0 measured ends with the epoch.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from atoll.fault.backup import WINDOW, Arrival, Backup, Choice, Noise, Part, Play, Told, choose, play
from atoll.workers.peers import Comm, Pending

_TAG = 2
# A message of the step before may still come when the next one begins, and takes a receive.
_POSTED = 2


@dataclass(slots=True, eq=False)
class _Book:
    """What rank 0 knows of an epoch. `counts`: micro-batches by rank."""

    counts: tuple[int, ...]
    rows: deque[tuple[Play, ...]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    noise: Noise = field(default_factory=Noise)
    came: dict[int, dict[int, float]] = field(default_factory=dict)
    step: int = 0
    began: float = 0.0
    told: bool = False
    first: bool = True

    @property
    def owners(self) -> list[int]:
        """Who has micro-batches: nobody waits for the others."""
        return [rank for rank, count in enumerate(self.counts) if count]


class Backups:
    """One member's part in it. Used by the main thread, and by the communicator's through callbacks."""

    def __init__(self, setting: Backup = 0) -> None:
        self.setting = setting
        self.choice: Choice | None = None
        self._lock = threading.Lock()
        self._comm: Comm | None = None
        self._posted = self._enough = 0
        self._book = _Book(())
        self._said = 0

    @property
    def measures(self) -> bool:
        """Whether gradients of single members are to be measured."""
        return self.setting == "auto" and self._on

    @property
    def _on(self) -> bool:
        return self.setting != 0 and self._comm is not None and self._comm.size > 1

    # -- between steps -----------------------------------------------------------------------------------------------

    def regrouped(self, comm: Comm, counts: Sequence[int], step: int) -> None:
        """The members are these from now on, each with so many micro-batches; `step` is the last committed."""
        with self._lock:
            if comm is not self._comm:
                self._posted = self._enough = 0
            # Where a learner becomes a member within an epoch, others may have come to the next step already.
            came = self._book.came if comm is self._comm else {}
            self._comm, self._book = comm, _Book(tuple(counts), came=came)
            self.choice = self.choice if comm.rank == 0 else None
        self._await(step + 1)

    def heard(self, step: int, ballots: Sequence[Mapping[str, Any]], norm: float) -> None:
        """The vote on `step` passed: rank 0 learns from it, and chooses for the next one."""
        if not self._on:
            return
        if self.measures and self._comm is not None and self._comm.rank == 0:
            self._learn(step, [b.get("given", {}) for b in ballots], norm)
        self._await(step + 1)

    def _learn(self, step: int, given: Sequence[Mapping[str, float]], norm: float) -> None:
        now, book = time.monotonic(), self._book
        with self._lock:
            came = book.came.get(step, {})
        arrivals = [
            Arrival(owned=book.counts[r], done=int(given[r]["done"]), at_s=max(came.get(r, now) - book.began, 1e-6))
            for r in book.owners
            if "done" in given[r]
        ]
        # The first step of an epoch may compile, or warm caches.
        if not book.first and arrivals and len(arrivals) == len(book.owners):
            book.rows.append(play(arrivals, now - book.began))
        book.first = False
        book.noise.took([Part(grains=int(g["done"]), square=g["square"]) for g in given if "square" in g], norm * norm)

    def _await(self, step: int) -> None:
        """The members go on to `step`."""
        if not self._on or self._comm is None:
            return
        comm, book = self._comm, self._book
        if comm.rank == 0:
            before = self.choice.backup if self.choice is not None else 0
            self.choice = choose(
                self.setting, list(book.rows), members=len(book.owners), noise=book.noise.grains, before=before
            )
            with self._lock:
                book.step, book.began, book.told = step, time.monotonic(), False
                book.came = {s: ranks for s, ranks in book.came.items() if s >= step}
            self._tell(comm)
        self._post(comm, comm.size - 1 if comm.rank == 0 else _POSTED)

    # -- within a step -----------------------------------------------------------------------------------------------

    def suffices(self, step: int) -> bool:
        """Whether this member was told that the others suffice for `step`."""
        return self._enough >= step

    def arrived(self, step: int) -> None:
        """This member has given all that it has."""
        comm = self._comm
        if not self._on or comm is None:
            return
        if comm.rank == 0:
            self._note(comm, step, 0)
        else:
            comm.send(torch.tensor([step]), to=0, tag=_TAG)

    def given(self, done: int, weight: float, square: float) -> dict[str, float]:
        """For the ballot, where it is of use: micro-batches that count here, and the square of their mean gradient."""
        if not self.measures:
            return {}
        mean = square / weight**2 if weight > 0 else math.nan
        return {"done": done} | ({"square": mean} if done and math.isfinite(mean) else {})

    def told(self, left_out: int) -> Told | None:
        """Rank 0: what the step in hand tells of it. The words of a choice come once, until it is another."""
        choice = self.choice
        if choice is None:
            return None
        changed, self._said = choice.backup != self._said, choice.backup
        return Told(backup=choice.backup, left_out=left_out, words=str(choice) if changed else "")

    # -- messages ----------------------------------------------------------------------------------------------------

    def _post(self, comm: Comm, wanted: int) -> None:
        with self._lock:
            missing, self._posted = max(0, wanted - self._posted), max(wanted, self._posted)
        for _ in range(missing):
            buffer = torch.zeros(1, dtype=torch.int64)
            comm.recv(buffer, source=None, tag=_TAG).add_done_callback(functools.partial(self._came, comm, buffer))

    def _came(self, comm: Comm, buffer: torch.Tensor, work: Pending) -> None:
        """A message, or the end of the epoch (any thread)."""
        if work.poison is not None:
            return
        step = int(buffer.item())
        with self._lock:
            if comm is not self._comm:
                return
            self._posted -= 1
            if comm.rank:
                self._enough = max(self._enough, step)
        if comm.rank == 0:
            self._note(comm, step, work.result)

    def _note(self, comm: Comm, step: int, rank: int) -> None:
        """Rank 0: somebody has come."""
        with self._lock:
            self._book.came.setdefault(step, {})[rank] = time.monotonic()
        self._tell(comm)

    def _tell(self, comm: Comm) -> None:
        """Rank 0: tell those who are on their way, if those who have come suffice."""
        with self._lock:
            book, choice, step = self._book, self.choice, self._book.step
            came = book.came.get(step, {})
            late = [r for r in book.owners if r not in came]
            if comm is not self._comm or choice is None or book.told or not late or len(late) > choice.backup:
                return
            book.told = True
            if 0 in late:
                self._enough = step
        for other in late:
            if other:
                comm.send(torch.tensor([step]), to=other, tag=_TAG)
