"""What the autoscaler wants done, each with its reason as a value whose words people see unchanged."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atoll.schema.ids import NodeId, RunId


class Why(enum.StrEnum):
    """Why a type is not started for a gang."""

    NO_ISLAND = "it is on no island, and the gang is to lie on few"
    OTHER_LABELS = "its labels are not those asked for"
    TOO_SMALL = "not one worker fits on such a machine"
    ALL_STAND = "as many as allowed stand already"
    TOO_FEW = "fewer may be started than the gang needs, and a part of a gang is no use"
    PAUSED = "it was sold out or did not join lately"
    AWAY = "its provider does not answer, so that nobody knows what stands"
    BUDGET = "the budget of an hour would be exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """One type, or several together, that was not chosen."""

    kinds: tuple[str, ...]
    why: Why
    detail: str = ""

    def __str__(self) -> str:
        more = f" ({self.detail})" if self.detail else ""
        return f"{' + '.join(self.kinds)}: {self.why}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForGang:
    """These machines complete a gang that waits. `price`: of all that are started for it, an hour."""

    run: RunId
    workers: int
    machines: int
    price: float
    cost: float
    rejected: tuple[Rejected, ...] = ()

    def __str__(self) -> str:
        others = f"; not chosen: {'; '.join(map(str, self.rejected))}" if self.rejected else ""
        return (
            f"{self.run} waits for {self.workers} workers: with {self.machines} machine"
            f"{'s' * (self.machines != 1)} more ({self.price:g} an hour) all fit{others}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceOf:
    """What a machine that leaves will take away is replaced before it goes."""

    node: NodeId
    left_s: float

    def __str__(self) -> str:
        return f"in place of {self.node}, which leaves in {max(self.left_s, 0.0):.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLeast:
    """So many always stand."""

    least: int

    def __str__(self) -> str:
        return f"{self.least} of this type always stand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nobody needed it for so long."""

    idle_s: float

    def __str__(self) -> str:
        return f"nobody needed it for {self.idle_s:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverJoined:
    """It was started and did not become part of the cluster."""

    waited_s: float

    def __str__(self) -> str:
        return f"it has not joined the cluster within {self.waited_s:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """The cluster has not heard of it, or its provider does not list it any more."""

    after_s: float

    def __str__(self) -> str:
        return f"it has been out of the cluster for {self.after_s:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Its provider wants it back, and everybody has left it."""

    def __str__(self) -> str:
        return "its provider wants it back, and everybody has left it"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAgain:
    """A gang came for which it would be started anew."""

    run: RunId

    def __str__(self) -> str:
        return f"{self.run} needs it now"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameFirst:
    """Somebody was placed there in the moment in which it was given up."""

    def __str__(self) -> str:
        return "a run came before it was given up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """A type is left alone for a while."""

    kind: str
    problem: str
    times: int
    for_s: float

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.problem}; not asked for in the next {self.for_s:.0f} s (failure {self.times} in a row)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """Nothing that may be started would complete this gang."""

    run: RunId
    workers: int
    rejected: tuple[Rejected, ...]

    def __str__(self) -> str:
        return (
            f"{self.run} waits for {self.workers} workers and nothing is started: {'; '.join(map(str, self.rejected))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTaken:
    """Room stood long enough for a gang that did not take it, so that no machine is kept or started for it."""

    run: RunId
    stood_s: float
    for_s: float

    def __str__(self) -> str:
        return (
            f"{self.run} did not take the room that stood for it for {self.stood_s:.0f} s;"
            f" nothing is kept or started for it in the next {self.for_s:.0f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that was asked for did not happen."""

    subject: str
    problem: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}"


Reason = (
    ForGang
    | InPlaceOf
    | AtLeast
    | Idle
    | NeverJoined
    | Vanished
    | Left
    | WantedAgain
    | CameFirst
    | Paused
    | Unmet
    | NotTaken
    | Trouble
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Have a machine of this type started, under this name."""

    instance: str
    kind: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Have the node emptied before its machine is ended."""

    node: NodeId
    instance: str
    within_s: float
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrain:
    """Keep the node after all."""

    node: NodeId
    instance: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Have the machine ended."""

    instance: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Nothing to be done, but something to be told."""

    reason: Reason


Command = Launch | Drain | Undrain | End | Tell
