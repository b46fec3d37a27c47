"""The seam between a training session and the process around it.

The session (main thread) asks a `Host` for its identity, its listener and its mailbox, and tells it facts. The real
host is `trainer_runtime`; tests use one without processes. Memberships arrive on another thread: the mailbox keeps only
the newest and calls its subscribers at once, so that a collective in flight can be aborted within milliseconds while
the main thread is anywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.messages import CopyDecided, Membership, Rewound, StopAtBoundary, TrainerFact
from atoll.schema.spec import JobSpec

if TYPE_CHECKING:
    from atoll.collectives.tcp_transport import Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this trainer is, and what it may use. `secret` is the run's, for handshakes between its peers.

    `rewound`: which of the run's checkpoints are in doubt. `copies`: what is decided on its remote copies.
    """

    run: RunId
    trainer: TrainerId
    node: NodeId
    spec: JobSpec
    run_dir: Path
    secret: bytes
    rewound: Rewound | None = None
    copies: tuple[CopyDecided, ...] = ()


class Host(Protocol):
    """What a session needs from its process."""

    identity: Identity
    mailbox: Mailbox
    listener: Listener

    def tell(self, fact: TrainerFact) -> None:
        """Pass a fact on towards the control plane. Never blocks and never raises."""
        ...

    def heard(self) -> None:
        """Peers were heard: the lifeline holds even while the agent is away."""
        ...


class Mailbox:
    """The newest membership and the wish to stop. Written by the link thread, read by the session."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._membership: Membership | None = None
        self._stop: StopAtBoundary | None = None
        self._copies: dict[int, CopyDecided] = {}
        self._subscribers: list[Callable[[Membership], None]] = []

    def put(self, command: Membership | StopAtBoundary | CopyDecided) -> None:
        """Take a command. A membership older than the newest one is dropped."""
        if isinstance(command, CopyDecided):
            with self._changed:
                self._copies[command.step] = command
                self._changed.notify_all()
            return
        if isinstance(command, StopAtBoundary):
            with self._changed:
                self._stop = command
                self._changed.notify_all()
            return
        with self._changed:
            if self._membership is not None and command.epoch <= self._membership.epoch:
                return
            self._membership = command
            subscribers = list(self._subscribers)
            self._changed.notify_all()
        for call in subscribers:
            call(command)

    def subscribe(self, call: Callable[[Membership], None]) -> None:
        """Have `call` run on the link thread for each new membership. It must be quick and must not raise."""
        with self._changed:
            self._subscribers.append(call)

    def latest(self) -> Membership | None:
        """The newest membership, if any came yet."""
        with self._changed:
            return self._membership

    def wait_newer(self, epoch: int, timeout: float) -> Membership | None:
        """The newest membership of an epoch above `epoch`, waiting up to `timeout` seconds; None if none came."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stop is not None or (self._membership is not None and self._membership.epoch > epoch),
                timeout,
            )
            found = self._membership
            return found if found is not None and found.epoch > epoch else None

    def copy_decided(self, step: int, ask: Callable[[], None], timeout: float) -> CopyDecided | None:
        """What comes on the remote copy of `step` after `ask` was called; None if nothing does in `timeout` seconds."""
        with self._changed:
            self._copies.pop(step, None)
        ask()
        with self._changed:
            self._changed.wait_for(lambda: step in self._copies, timeout)
            return self._copies.pop(step, None)

    @property
    def stop(self) -> StopAtBoundary | None:
        """The wish to stop at a step boundary, once it came."""
        with self._changed:
            return self._stop
