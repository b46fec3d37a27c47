"""What an agent holds of each trainer, and how a trainer's own words change it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import assert_never

from atoll.schema.ids import RunId, SeatId, TrainerId
from atoll.schema.messages import (
    AgentFact,
    Busy,
    CheckpointCommitted,
    CheckpointCopied,
    CheckpointFailed,
    CheckpointIntervalChosen,
    CopyProposed,
    CopyWithdrawn,
    EpochJoined,
    FoundTrainer,
    LinksObserved,
    Membership,
    PeerDown,
    ReplicaDigested,
    ServerReady,
    StepCommitted,
    StopAtBoundary,
    TrainerExited,
    TrainerFact,
    TrainerFailed,
    TrainerFinished,
    TrainerHello,
    TrainerReady,
    TrainerSaid,
    Waiting,
)

# The status of a trainer whose end is proven and whose parent is gone too, so that nobody was told how it ended.
EXIT_UNKNOWN = 255


@dataclass(slots=True, kw_only=True)
class Record:
    """One trainer. `wanted` is False once it was fenced or disowned: it is killed wherever it shows up."""

    found: FoundTrainer
    run_dir: str
    wanted: bool = True
    kept: bool = True
    connected: bool = False
    membership: Membership | None = None
    stop: StopAtBoundary | None = None

    @property
    def ended(self) -> bool:
        """Its end is proven."""
        return self.found.exit_status is not None

    @property
    def forked(self) -> bool:
        """It is, or was, a process."""
        return self.found.pid > 0

    @property
    def under_way(self) -> bool:
        """Its fork was asked for, and nothing came of it yet."""
        return not self.forked and not self.ended


def noted(found: FoundTrainer, fact: TrainerFact) -> tuple[FoundTrainer, str | None]:
    """What is known of the trainer after its word, and the name under which the word stands; None for what passes."""
    match fact:
        case TrainerReady():
            found = dataclasses.replace(found, ready=True, host=fact.host, port=fact.port, doors=fact.doors)
        case EpochJoined():
            found = dataclasses.replace(found, epoch=max(found.epoch, fact.epoch))
        case TrainerFinished() | TrainerFailed():
            found = dataclasses.replace(found, outcome=fact)
        case TrainerHello() | ServerReady() | Busy():
            pass
        case PeerDown() | StepCommitted() | ReplicaDigested() | Waiting() | LinksObserved():
            return found, None
        case CheckpointCommitted() | CheckpointFailed() | CheckpointCopied() | CheckpointIntervalChosen():
            return found, None
        case CopyProposed() | CopyWithdrawn():
            return found, None
        case _:
            assert_never(fact)
    return found, type(fact).__name__


def found_by(hello: TrainerHello) -> FoundTrainer:
    """A trainer that no record tells of, by its own word."""
    return FoundTrainer(
        trainer=hello.trainer,
        run=hello.run,
        seat=SeatId(""),
        pid=0,
        start_ticks=0,
        epoch=hello.epoch,
        ready=hello.ready,
    )


def exited(trainer: TrainerId, run: RunId, pid: int, status: int | None, tail: str = "") -> TrainerExited:
    """The proof of its end, as the control plane is told."""
    known = EXIT_UNKNOWN if status is None else status
    return TrainerExited(trainer=trainer, run=run, pid=pid, exit_status=known, log_tail=tail)


def status_of(found: FoundTrainer, seen: int | None) -> int:
    """The exit status that was seen, or the one that its last words imply."""
    if seen is not None:
        return seen
    match found.outcome:
        case TrainerFinished():
            return 0
        case TrainerFailed():
            return 1
        case None:
            return EXIT_UNKNOWN
        case _:
            assert_never(found.outcome)


def is_measurement(fact: AgentFact) -> bool:
    """Whether it may be lost: another of its kind comes soon."""
    return isinstance(fact, TrainerSaid) and isinstance(
        fact.fact, StepCommitted | ReplicaDigested | Waiting | LinksObserved
    )
