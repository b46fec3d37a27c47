"""What the detector can conclude, each with its evidence. A verdict names who, why and by whose word; it does nothing.

`evidence` is the sentence that people read in the story, in `atoll why` and on the fenced process; the other fields are
the same as values. Nothing here is ever inferred from a duration alone (law 10).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atoll.schema.ids import NodeId, RunId, TrainerId


class Why(enum.StrEnum):
    """What shows that a trainer makes no progress."""

    STOPPED = "stopped"
    GIL = "no thread of its interpreter gets a turn"
    IDLE = "its processor time stands still"
    ABSENT = "it works and does not arrive"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkBroken:
    """Both ends live, their connection does not: connect anew."""

    run: RunId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HungLink:
    """All have entered an operation, and `silent` sends `waiting` nothing though both live: connect anew."""

    run: RunId
    waiting: TrainerId
    silent: TrainerId
    operation: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerLost:
    """The trainer has no part any more. `proof` is True where its process is known to be gone."""

    run: RunId
    trainer: TrainerId
    evidence: str
    proof: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hung:
    """The process is there and does nothing that others wait for. `named_by`: who waits; empty where nobody needs to."""

    run: RunId
    trainer: TrainerId
    why: Why
    named_by: tuple[TrainerId, ...]
    operation: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """The node and all on it are out of reach."""

    node: NodeId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioned:
    """Two groups of nodes that do not hear each other: `kept` goes on, `cut` has no part until it is heard again.

    `reached`: the control plane still reaches `cut`, and only `run` is concerned; else it is as silent as if lost.
    """

    kept: tuple[NodeId, ...]
    cut: tuple[NodeId, ...]
    run: RunId | None
    reached: bool
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desync:
    """Members call different operations where they should call the same: a bug of the program."""

    run: RunId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """After `step` these trainers hold other values than the majority of their numeric class.

    `agreed`: the last step after which all held the same, 0 if none is known.
    """

    run: RunId
    step: int
    agreed: int
    trainers: tuple[TrainerId, ...]
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """After `step` replicas differ, and no value has a majority that could tell who is wrong. `agreed` as in `Corrupt`."""

    run: RunId
    step: int
    agreed: int
    evidence: str


Verdict = LinkBroken | HungLink | TrainerLost | Hung | NodeLost | Partitioned | Desync | Corrupt | Divided
