"""What an agent and its zygote say to one another: one JSON line each over a socket pair."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import NodeId, TrainerId
from atoll.schema.messages import StartTrainer
from atoll.schema.topology import Nic


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkTrainer:
    """Agent -> zygote: fork a trainer. `state_dir` holds the agent's socket.

    Its listener binds `address`, and each of `nics` where the node has several.
    """

    start: StartTrainer
    node: NodeId
    address: str
    state_dir: str
    nics: tuple[Nic, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteWarm:
    """Zygote -> agent: torch is imported. `threads` other than 1 means that an import started some."""

    pid: int
    torch: str
    cuda: str
    threads: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerForked:
    """Zygote -> agent: the process exists."""

    trainer: TrainerId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRefused:
    """Zygote -> agent: the system would not fork."""

    trainer: TrainerId
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded:
    """Zygote -> agent: a child was reaped. `exit_status` is the exit code, or minus the signal number."""

    pid: int
    exit_status: int


ZYGOTE_REQUESTS = (ForkTrainer,)
ZYGOTE_REPORTS = (ZygoteWarm, TrainerForked, ForkRefused, ChildEnded)
ZygoteReport = ZygoteWarm | TrainerForked | ForkRefused | ChildEnded
