"""What happens to an agent (events, past tense) and what it does about it (effects, imperative).

`AgentCore` folds the former into the latter; `agent_runtime` feeds and executes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import Incarnation, RunId, TrainerId
from atoll.schema.messages import (
    AgentCommand,
    AgentFact,
    Examine,
    FoundTrainer,
    Inject,
    PeerProbed,
    PeersWatched,
    ProbePeer,
    ReadLog,
    StartTrainer,
    TrainerCommand,
    TrainerFact,
    TrainerHello,
    TrainerWatched,
    WatchPeers,
)

# -- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A control plane proved that it knows the cluster secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """The stream to the control plane ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandCame:
    """A frame of the control plane."""

    incarnation: Incarnation
    command: AgentCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """The zygote forked a trainer."""

    trainer: TrainerId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkFailed:
    """No process came of a `Fork`."""

    trainer: TrainerId
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Proof of death: the process was reaped, or its pidfd says so. `exit_status` is None where nobody reaped it."""

    trainer: TrainerId
    exit_status: int | None
    log_tail: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A trainer opened its link; the kernel confirmed pid and user, `/proc` the start time."""

    hello: TrainerHello


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A trainer said something on its link."""

    trainer: TrainerId
    fact: TrainerFact


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A probe that the control plane asked for has ended."""

    fact: PeerProbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the agent saw of its trainers and heard of its peers at `at` (monotonic), as far as it is to be told."""

    facts: tuple[TrainerWatched | PeersWatched, ...]
    at: float


Event = Attached | Detached | CommandCame | Forked | ForkFailed | Ended | Connected | Said | Probed | Watched

# -- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Write the record of trainers down, before what follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Say `fact` to the control plane."""

    fact: AgentFact


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Have the zygote fork a trainer."""

    start: StartTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Look at this process, and report its end."""

    trainer: TrainerId
    run: RunId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL exactly this process and what is left in its session."""

    pid: int
    start_ticks: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hurt:
    """Do this to exactly this process, on purpose."""

    order: Inject
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Hand a command to a trainer's link."""

    trainer: TrainerId
    command: TrainerCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Read a log or examine the node, and send what was found."""

    question: ReadLog | Examine
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Measure the link to a peer; ends as `Probed`."""

    order: ProbePeer


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRing:
    """Beat to and listen for these nodes from now on; what is heard comes as `Watched`."""

    order: WatchPeers


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Close the stream: an older control plane speaks."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """End the agent once the killed trainers are gone."""

    reason: str


Effect = Save | Send | Fork | Watch | Kill | Hurt | Tell | Answer | Probe | WatchRing | Refuse | Leave

# -- what is written down --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTrainer:
    """A trainer as the next agent of this node finds it. pid 0: a fork was asked for, no answer came yet."""

    found: FoundTrainer
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The agent's record on disk."""

    incarnation: Incarnation
    trainers: tuple[SavedTrainer, ...] = ()


def log_path(run_dir: str, trainer: TrainerId) -> str:
    """Where the output of a trainer goes."""
    return f"{run_dir}/logs/{trainer}.log"


def run_dir_of(home: str, run: RunId) -> str:
    """Where a run keeps its files, unless its `StartTrainer` said otherwise."""
    return f"{home}/runs/{run}"
