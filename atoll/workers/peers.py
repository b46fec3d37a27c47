"""What the session asks of collectives, as protocols, so that it runs on the TCP communicator and on a fake alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from atoll.schema.ids import TrainerId
from atoll.schema.messages import Member, Membership
from atoll.schema.topology import Detour, Observation

if TYPE_CHECKING:
    import torch

    from atoll.collectives.tcp_transport import Listener


class PoisonLike(Protocol):
    """Why a communicator ended, and through whom."""

    @property
    def reason(self) -> str:
        """Words for people."""
        ...

    @property
    def culprit(self) -> TrainerId | None:
        """The peer at fault, where there is one."""
        ...

    @property
    def differ(self) -> bool:
        """Whether nobody is at fault but the program, whose ranks call different operations."""
        ...


class WaitLike(Protocol):
    """For how long an operation has waited for whom, by rank."""

    @property
    def operation(self) -> str:
        """Its kind."""
        ...

    @property
    def sequence(self) -> int:
        """Its number in the epoch, from 1; 0 where it has none."""
        ...

    @property
    def for_s(self) -> float:
        """Seconds."""
        ...

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that have not entered it."""
        ...

    @property
    def silent(self) -> tuple[int, ...]:
        """Ranks that entered it and send nothing."""
        ...


class Pending(Protocol):
    """An operation under way. It never raises for the fault of a peer."""

    @property
    def result(self) -> Any:
        """What the operation returns, once done."""
        ...

    @property
    def poison(self) -> Any:
        """Set when it will never be done."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """True once done; False when poisoned or not done in time."""
        ...

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        """Run `call` with this when it has ended, on any thread; at once if it has."""
        ...


class Comm(Protocol):
    """The members of one epoch. Operations run in the order in which they are submitted."""

    @property
    def epoch(self) -> int:
        """The membership generation."""
        ...

    @property
    def rank(self) -> int:
        """Mine."""
        ...

    @property
    def size(self) -> int:
        """How many."""
        ...

    @property
    def members(self) -> tuple[Member, ...]:
        """In rank order."""
        ...

    def detours(self) -> tuple[Detour, ...]:
        """Where this rank reached others by other NICs than the best known: those did not answer."""
        ...

    def observations(self) -> tuple[Observation, ...]:
        """What this rank's links carried when that was not as expected, each told once."""
        ...

    @property
    def poisoned(self) -> Any:
        """Set once this epoch ended here."""
        ...

    def on_poison(self, call: Callable[[Any], None]) -> None:
        """Have `call` run once when the epoch ends here."""
        ...

    def all_reduce(
        self, buffer: torch.Tensor, *, op: Literal["sum", "min", "max"] = "sum", in_place: bool = False
    ) -> Pending:
        """`buffer` becomes the same bits on every rank; `in_place`: where that fails, it holds anything."""
        ...

    def all_gather(self, payload: bytes) -> Pending:
        """Every member's payload, in rank order."""
        ...

    def send(self, buffer: torch.Tensor, *, to: int, tag: int = 0, in_place: bool = False) -> Pending:
        """To one member; `in_place`: out of `buffer` itself, which must not change before this ends."""
        ...

    def recv(self, buffer: torch.Tensor, *, source: int | None, tag: int = 0, in_place: bool = False) -> Pending:
        """From one member, or from any, into `buffer`; the result is whose it was.

        `in_place`: where that fails, `buffer` holds anything.
        """
        ...

    def abort(self, reason: str, culprit: TrainerId | None = None) -> None:
        """End this epoch here; every waiter returns."""
        ...

    def close(self) -> None:
        """Let go of sockets and threads."""
        ...


class Connect(Protocol):
    """Opens the communicator of a membership. Raises `PeerError`."""

    def __call__(
        self,
        membership: Membership,
        me: TrainerId,
        listener: Listener,
        *,
        deadline_s: float,
        cancelled: Callable[[], bool],
        on_wait: Callable[[WaitLike], None] | None = None,
    ) -> Comm:
        """The communicator, once every member is connected. `on_wait` hears of waits, then and later, on any thread."""
        ...


# One slice of a wait. Waits end by completion, poison or the end of the process (the host's lifeline), never by the
# clock: a peer may compute for minutes. A slice lets signals through.
_SLICE_S = 0.5


def completed(work: Pending) -> bool:
    """Wait for `work`: True when done, False when its epoch ended."""
    while not work.wait(_SLICE_S):
        if work.poison is not None:
            return False
    return True


def is_done(work: Pending, within_s: float = 0.0) -> bool:
    """True when `work` is done already, or `within_s` seconds."""
    return work.poison is None and work.wait(within_s)
