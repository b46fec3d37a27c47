"""Who decides in a simulation: a policy is told what happens and, asked, says what to do.

A policy may look at the world but changes nothing in it; the engine carries its actions out in the order given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from atoll.schema.ids import NodeId, RunId
from atoll.simulate.world import Run, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A waiting run gets these nodes: one for each worker."""

    run: RunId
    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """A running one has these nodes from now on: fewer, more or others. `disturbs`: it was for others."""

    run: RunId
    nodes: tuple[NodeId, ...]
    disturbs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """A running one makes a checkpoint, gives up all its nodes and waits again."""

    run: RunId


Action = Start | Resize | Suspend


class Policy(Protocol):
    """`pause_s`: least time between two decisions. The four that tell come before the decision that follows from them.

    `plain_trainers`: those it starts train as plain Ray's do, not as Atoll's (`progress`).
    """

    name: str
    pause_s: float
    plain_trainers: bool

    def submitted(self, run: Run, world: World) -> None:
        """A job came."""

    def changed(self, run: Run, world: World) -> None:
        """An action was carried out: it holds what it now holds."""

    def suspended(self, run: Run, world: World) -> None:
        """It gave up its nodes and waits again."""

    def ended(self, run: Run, world: World) -> None:
        """It is done."""

    def decide(self, world: World) -> Iterable[Action]:
        """What to do now."""
        ...

    def again_at(self, world: World) -> float | None:
        """When to be asked again though nothing happens."""
        ...


class Untold:
    """A policy that looks at the world alone."""

    pause_s = 0.0
    plain_trainers = True

    def submitted(self, run: Run, world: World) -> None:
        """See `Policy`."""

    def changed(self, run: Run, world: World) -> None:
        """See `Policy`."""

    def suspended(self, run: Run, world: World) -> None:
        """See `Policy`."""

    def ended(self, run: Run, world: World) -> None:
        """See `Policy`."""

    def again_at(self, world: World) -> float | None:
        """Never."""
        del world
        return None
