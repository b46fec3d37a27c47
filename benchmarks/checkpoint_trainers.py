"""Trainers of a sharded model as processes, and who tells them of their epochs: the session's own code without a cluster.

Each trainer runs `run_function` as it would under an agent, over a line to this process instead. The parent plays the
control plane: it appoints members and notes the moment of each fact that comes back.
"""

from __future__ import annotations

import functools
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import atoll.workers.torch_sharded  # noqa: F401 - once here, not in every trainer
from atoll.collectives.tcp_transport import Listener
from atoll.schema.codec import Registry, encode
from atoll.schema.ids import Epoch, NodeId, RunId, TrainerId
from atoll.schema.ids import Rank as Place
from atoll.schema.messages import (
    TRAINER_COMMANDS,
    TRAINER_FACTS,
    EpochJoined,
    Member,
    Membership,
    StepCommitted,
    TrainerFact,
    TrainerFailed,
    TrainerReady,
)
from atoll.schema.spec import JobSpec
from atoll.workers.context import run_function
from atoll.workers.host import Identity, Mailbox
from benchmarks.checkpoint_state import Shape, shallow, with_moments
from benchmarks.ranks import Crew, Rank, RankFailed

_RUN = RunId("benchmark")
_SECRET = b"s" * 32
_FACTS, _COMMANDS = Registry(TRAINER_FACTS), Registry(TRAINER_COMMANDS)
# More steps than are ever taken: the benchmark ends the trainers.
_STEPS = 1_000_000
# A row of data each: the exchange of weights is the step, and that ends as soon as an epoch does.
_SAMPLES = 4
WITHIN_S = 300.0


class Line:
    """A trainer's host: facts go up the line, memberships come down."""

    def __init__(self, identity: Identity, line: socket.socket) -> None:
        self.identity, self.mailbox = identity, Mailbox()
        self.listener = Listener("127.0.0.1", identity.secret, identity.run)
        self._line = line
        threading.Thread(target=self._read, daemon=True, name="atoll-link").start()

    def tell(self, fact: TrainerFact) -> None:
        """To the parent."""
        self._line.sendall(encode(fact) + b"\n")

    def heard(self) -> None:
        """Nobody asks here."""

    def _read(self) -> None:
        for text in self._line.makefile("rb"):
            self.mailbox.put(_COMMANDS.decode(text))  # type: ignore[arg-type]


def trainer(rank: Rank, *, folder: str, line: str, shape: dict[str, int]) -> int:
    """A command of `ranks.Crew` that lasts as long as the trainer."""
    name = TrainerId(f"trainer-{rank.number}")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(line)
    spec = JobSpec(name="benchmark", working_dir=folder, file="none.py", seed=1, config=dict(shape))
    identity = Identity(
        run=_RUN, trainer=name, node=NodeId(f"node-{rank.number}"), spec=spec, run_dir=Path(folder), secret=_SECRET
    )
    return run_function(Line(identity, connection), _train)


def _train(ctx: Any) -> None:
    shape = Shape(**ctx.config)
    rows = torch.randn(_SAMPLES * 64, shape.width, generator=torch.Generator().manual_seed(1))
    parts = ctx.manage(functools.partial(shallow, shape))
    for step in ctx.steps((rows,), global_batch=_SAMPLES, micro_batch=1, steps=_STEPS):
        with_moments(parts.optimizer)  # the first time; from then on they come with the state
        with step:
            for (x,) in step:
                step.backward(parts.model(x).square().mean())
            parts.optimizer.step()


class Appointed:
    """The parent's side. `told` are the facts of each trainer with their moments."""

    def __init__(self, crew: Crew, folder: Path, shape: Shape) -> None:
        self.crew, self.epoch, self.members = crew, 0, ()
        self.told: dict[str, list[tuple[float, Any]]] = {}
        self._heard: dict[str, bytes] = {}
        self._lines: dict[str, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        path = folder / "line"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen(len(crew.hosts))
            server.settimeout(WITHIN_S)
            everyone = range(len(crew.hosts))
            for number in everyone:
                crew.begin(trainer, [number], folder=str(folder), line=str(path), shape=shape.plain())
                line, _ = server.accept()
                name = f"trainer-{number}"
                self._lines[name], self._heard[name], self.told[name] = line, b"", []
                self._selector.register(line, selectors.EVENT_READ, name)

    def appoint(self, members: Sequence[str], reason: str) -> float:
        """Raise the epoch: these are its members. The moment of it."""
        self.epoch, self.members = self.epoch + 1, tuple(members)
        ready = {name: self._last(name, TrainerReady) for name in members}
        membership = Membership(
            run=_RUN,
            epoch=Epoch(self.epoch),
            reason=reason,
            members=tuple(
                Member(
                    trainer=TrainerId(name),
                    rank=Place(place),
                    node=NodeId(name.replace("trainer", "node")),
                    host=ready[name].host,
                    port=ready[name].port,
                )
                for place, name in enumerate(members)
            ),
        )
        at = time.monotonic()
        for name in members:
            self._lines[name].sendall(encode(membership) + b"\n")
        return at

    def joined(self) -> float:
        """When the last member stood in the epoch in hand. Raises `RankFailed`."""
        self.wait(lambda: all(self._joined(name) for name in self.members), f"epoch {self.epoch} to stand")
        return max(at for name in self.members for at, fact in self.told[name] if self._is_joined(fact))

    def committed(self, steps: int) -> None:
        """Until all members have committed so many steps of the epoch in hand."""

        def enough(name: str) -> bool:
            mine = [f for _, f in self.told[name] if isinstance(f, StepCommitted) and f.epoch == self.epoch]
            return len(mine) >= steps

        self.wait(lambda: all(enough(name) for name in self.members), f"{steps} steps of epoch {self.epoch}")

    def ready(self) -> None:
        """Until all trainers are."""
        self.wait(lambda: all(self._last(name, TrainerReady) for name in self.told), "all trainers to be ready")

    def step(self) -> int:
        """At which step the members went on in the epoch in hand."""
        return next(int(f.step) for _, f in self.told[self.members[0]] if self._is_joined(f))

    def kill(self, name: str) -> None:
        """End a trainer as a lost host would."""
        self._selector.unregister(self._lines[name])
        self.crew.kill(self.number(name), signal.SIGKILL)

    def number(self, name: str) -> int:
        """The rank of the crew that it is."""
        return int(name.rpartition("-")[2])

    def close(self) -> None:
        """End all."""
        for name, line in self._lines.items():
            self.crew.kill(self.number(name), signal.SIGKILL)
            line.close()
        self._selector.close()

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Take facts until `done`. Raises `RankFailed` for a trainer that failed, or after `WITHIN_S`."""
        deadline = time.monotonic() + WITHIN_S
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise RankFailed(f"waited {WITHIN_S:.0f} s for {what}")
            for key, _ in self._selector.select(min(left, 1.0)):
                self._take(key.data)

    def _take(self, name: str) -> None:
        data = self._lines[name].recv(1 << 16)
        if not data:
            self._selector.unregister(self._lines[name])
            raise RankFailed(f"{name} ended: {[f for _, f in self.told[name]][-3:]}")
        *lines, self._heard[name] = (self._heard[name] + data).split(b"\n")
        for text in lines:
            fact = _FACTS.decode(text)
            if isinstance(fact, TrainerFailed):
                raise RankFailed(f"{name}: {fact.problem}")
            self.told[name].append((time.monotonic(), fact))

    def _last(self, name: str, kind: type[Any]) -> Any:
        return next((f for _, f in reversed(self.told[name]) if isinstance(f, kind)), None)

    def _joined(self, name: str) -> bool:
        return any(self._is_joined(fact) for _, fact in self.told[name])

    def _is_joined(self, fact: Any) -> bool:
        return isinstance(fact, EpochJoined) and fact.epoch == self.epoch
