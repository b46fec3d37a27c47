"""Carries out lessons: the shares of a snapshot on their way, updates withheld and replayed, digests compared.

What a learner does next is decided by `learning.Lesson`. A thread for each pair of teacher and learner moves the
snapshot in pieces small enough not to stand in the way of gradients on the same connection; it touches nothing but its
own buffer, so tensors are only ever changed by the main thread.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from atoll.checkpoint.layout import shares
from atoll.checkpoint.torch_state import Flat, size_of, tensor_digest
from atoll.fault.inject import failpoint
from atoll.workers.busy_runtime import Announcements
from atoll.workers.learning import (
    AwaitSnapshot,
    BodyFailed,
    Lesson,
    LoadSnapshot,
    ReplayUpdate,
    SnapshotArrived,
    TakeStep,
    UpdateReplayed,
    UpdateWithheld,
    weights,
)
from atoll.workers.peers import Comm, completed
from atoll.workers.regroup import Decision
from atoll.workers.torch_managed import Managed
from atoll.workers.torch_regroup import Entry, bytes_of_entries, entries_of, pack, receive_state, send_state, unpack

# Large enough for the speed of the link, small enough that a bucket of gradients waits behind it for milliseconds.
_PIECE_BYTES = 1 << 20
_TAG = 1
# Replaying takes this share of the time for which the learner waited for the others in the step before.
_REPLAY_SHARE = 0.8
_LEAST_REPLAY_S = 0.02
# While the others wait for a learner without room: as long as a large state may take over a slow link.
_LEARNING = "receiving the run's state"
_LEARNING_S = 600.0


@dataclass(slots=True, eq=False)
class _Update:
    """One update that was withheld: what the optimizer would have seen."""

    optimizer: Optimizer
    gradients: list[torch.Tensor | None]
    groups: list[dict[str, Any]]


@dataclass(slots=True, eq=False)
class _Studies:
    """What a learner has in hand. `parts` are the buffers of each teacher's share, `entries` what lies in them."""

    lesson: Lesson
    meta: dict[str, Any]
    entries: list[list[Entry]]
    parts: list[torch.Tensor]
    threads: list[threading.Thread]
    failed: threading.Event
    updates: deque[_Update] = field(default_factory=deque)


class Classroom:
    """The lessons of the epoch in hand, on teachers and learners alike."""

    def __init__(self, managed: Managed, announcements: Announcements) -> None:
        self._managed, self._announcements = managed, announcements
        self._comm: Comm | None = None
        self._teachers: tuple[int, ...] = ()
        self._studies: _Studies | None = None
        self._said: frozenset[int] = frozenset()
        self.learners: frozenset[int] = frozenset()

    # -- the regroup -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The epoch is over, and its lessons with it; its communicator has ended, so its threads end."""
        self._comm, self._studies = None, None
        self.learners = self._said = frozenset()

    def open(self, decision: Decision, comm: Comm) -> None:
        """A regroup found learners."""
        self.close()
        self._comm, self._teachers = comm, decision.teachers
        self.learners = frozenset(decision.receive)
        self._said = frozenset()

    def teach(self, decision: Decision, comm: Comm, flat: Flat) -> bool:
        """Send the small part now and this teacher's share in the background. False when the epoch ended."""
        large = self._managed.large(flat)
        mine = shares({n: size_of(flat.tensors[n]) for n in large}, len(decision.teachers))
        if comm.rank == decision.source and not self._send_outline(decision, comm, flat, mine):
            return False
        names = mine[decision.teachers.index(comm.rank)]
        if names:
            # The copy: what the optimizer changes next is not what was promised.
            whole = pack([flat.tensors[n] for n in names], copy=True)
            for rank in decision.receive:
                _thread(_send_all, comm, whole, rank)
        return True

    def _send_outline(self, decision: Decision, comm: Comm, flat: Flat, mine: Sequence[Sequence[str]]) -> bool:
        large = {n for names in mine for n in names}
        small = {n: t for n, t in flat.tensors.items() if n not in large}
        parts = [entries_of({n: flat.tensors[n] for n in names}) for names in mine]
        outline = {"meta": flat.meta, "parts": parts, "bytes": flat.size_bytes()}
        return send_state(comm, Flat(tensors=small, meta=outline), decision.receive)

    def learn(self, decision: Decision, comm: Comm) -> Flat | None:
        """A state to begin with: the small part true, the large one zeros. None when the epoch ended."""
        outline = receive_state(comm, decision.source)
        if outline is None:
            return None
        entries: list[list[Entry]] = [[(n, d, s) for n, d, s in part] for part in outline.meta["parts"]]
        parts = [torch.zeros(bytes_of_entries(part), dtype=torch.uint8) for part in entries]
        lesson = Lesson(step=decision.step, state_bytes=int(outline.meta["bytes"]))
        failed = threading.Event()
        threads = [
            _thread(functools.partial(_receive_all, failed), comm, part, rank)
            for part, rank in zip(parts, decision.teachers, strict=True)
            if part.numel()
        ]
        self._studies = _Studies(lesson, outline.meta["meta"], entries, parts, threads, failed)
        zeros: dict[str, torch.Tensor] = {}
        for part in entries:
            unpack(torch.zeros(bytes_of_entries(part), dtype=torch.uint8), part, zeros)
        return Flat(tensors={**outline.tensors, **zeros}, meta=outline.meta["meta"])

    # -- within a step -----------------------------------------------------------------------------------------------

    def weights(self, comm: Comm) -> list[float]:
        """By which this epoch's grains are shared out."""
        return weights([m.weight for m in comm.members], self.learners)

    @property
    def learnt(self) -> bool:
        """True on a learner that has caught up and was not examined yet."""
        return self._studies is not None and self._studies.lesson.learnt

    def withholds(self, optimizer: Optimizer, step: int) -> bool:
        """The program asks for an update. True on a learner that cannot make it yet; then it is kept for later."""
        studies = self._studies
        if studies is None or studies.lesson.learnt:
            return False
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        gradients = [None if p.grad is None else p.grad.detach().clone() for p in parameters]
        studies.updates.append(_Update(optimizer, gradients, self._managed.hyperparameters(optimizer)))
        size = sum(size_of(g) for g in gradients if g is not None)
        studies.lesson = studies.lesson.after(UpdateWithheld(step=step, bytes=size))
        return True

    @property
    def studying(self) -> bool:
        """True on a learner that was not examined yet."""
        return self._studies is not None

    def spoil(self) -> None:
        """The program failed on this learner, for want of micro-batches of its own: it will be given the whole state."""
        if self._studies is not None:
            self._studies.lesson = self._studies.lesson.after(BodyFailed())
            self._studies.updates.clear()

    def heard(self, ballots: Sequence[dict[str, Any]]) -> None:
        """All members read the same ballots: who says that it has learnt is examined after this step."""
        self._said = frozenset(rank for rank, b in enumerate(ballots) if b.get("learnt") and rank in self.learners)

    # -- between steps -----------------------------------------------------------------------------------------------

    def catch_up(self, *, waited_s: float, last: bool) -> bool:
        """On a learner, load and replay as far as there is time. False when the epoch ended."""
        studies = self._studies
        if studies is None:
            return True
        until = time.monotonic() + max(_LEAST_REPLAY_S, _REPLAY_SHARE * waited_s)
        while True:
            if not studies.lesson.arrived and not any(t.is_alive() for t in studies.threads):
                if studies.failed.is_set():
                    return False
                studies.lesson = studies.lesson.after(SnapshotArrived())
            match studies.lesson.next(has_time=time.monotonic() < until, last=last):
                case TakeStep():
                    return True
                case AwaitSnapshot():
                    self._wait(studies)
                case LoadSnapshot():
                    self._load(studies)
                case ReplayUpdate():
                    self._replay(studies)

    def _wait(self, studies: _Studies) -> None:
        self._announcements.begin(_LEARNING, _LEARNING_S)
        try:
            for thread in studies.threads:
                thread.join()  # ends with the snapshot or with the epoch
        finally:
            self._announcements.end(_LEARNING)

    def _load(self, studies: _Studies) -> None:
        tensors: dict[str, torch.Tensor] = {}
        while studies.parts:
            unpack(studies.parts.pop(), studies.entries.pop(), tensors)
        self._managed.fill(Flat(tensors=tensors, meta=studies.meta))
        studies.lesson = studies.lesson.load()

    def _replay(self, studies: _Studies) -> None:
        failpoint("in-replay")
        update = studies.updates.popleft()
        self._managed.replay(update.optimizer, update.gradients, update.groups)
        studies.lesson = studies.lesson.after(UpdateReplayed())

    def due(self, *, last: bool) -> frozenset[int]:
        """Whom all members examine now."""
        return self.learners if last else self._said

    def examine(self, comm: Comm, flat: Flat, due: frozenset[int]) -> frozenset[int] | None:
        """Compare digests with those of `due`: who failed, alike on all. None when the epoch ended.

        Each teacher takes its share of the tensors, a learner all of them.
        """
        failpoint("in-examination")
        names = shares({n: size_of(t) for n, t in flat.tensors.items()}, len(self._teachers))
        if self._studies is not None and self._studies.lesson.spoilt:
            mine = []
        elif comm.rank in due:
            mine = [_digest(flat, part) for part in names]
        elif comm.rank in self._teachers:
            mine = [_digest(flat, names[self._teachers.index(comm.rank)])]
        else:
            mine = []
        work = comm.all_gather(json.dumps([mine, flat.meta]).encode())
        if not completed(work):
            return None
        told = [json.loads(payload) for payload in work.result]
        right = [[d for t in self._teachers for d in told[t][0]], told[self._teachers[0]][1]]
        failed = frozenset(rank for rank in due if told[rank] != right)
        self.learners -= due
        self._said = frozenset()
        if comm.rank in due:
            self._studies = None
        return failed

    @property
    def teacher(self) -> int:
        """Who gives the whole state to whoever failed."""
        return self._teachers[0]


def _digest(flat: Flat, names: Sequence[str]) -> int:
    return sum(tensor_digest(n, flat.tensors[n]) for n in names) & ((1 << 64) - 1)


def _thread(body: Any, comm: Comm, buffer: torch.Tensor, peer: int) -> threading.Thread:
    thread = threading.Thread(target=body, args=(comm, buffer, peer), name="atoll-lesson", daemon=True)
    thread.start()
    return thread


def _send_all(comm: Comm, buffer: torch.Tensor, learner: int) -> None:
    for piece in torch.split(buffer, _PIECE_BYTES):
        failpoint("in-lesson")
        if not completed(comm.send(piece, to=learner, tag=_TAG)):
            return


def _receive_all(failed: threading.Event, comm: Comm, buffer: torch.Tensor, teacher: int) -> None:
    for piece in torch.split(buffer, _PIECE_BYTES):
        if not completed(comm.recv(piece, source=teacher, tag=_TAG)):
            failed.set()
            return
