"""The states of one try of a step on one member (law 2: commit in two rounds), as a table.

    computing --CAST--> prepared --PASSED--> committed --ALL_KNOW--> settled
        |                   |                    ^
        |                   +--EPOCH_ENDED--> in-doubt --APPLY--+
        +--EPOCH_ENDED--> aborted <--DISCARD--+

A member in doubt has cast its vote and not learnt the outcome; only the regroup of the next epoch can tell it. A
committed step never goes back: the end of an epoch leaves it committed, and only delays the moment when it is known to
be decided on all members, before which nothing of it may be seen outside.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from atoll.errors import TransitionError


class StepState(enum.StrEnum):
    """Where one try of a step stands."""

    COMPUTING = "computing"
    PREPARED = "prepared"
    IN_DOUBT = "in-doubt"
    COMMITTED = "committed"
    SETTLED = "settled"
    ABORTED = "aborted"


class StepEvent(enum.StrEnum):
    """What happened to it."""

    CAST = "cast"
    PASSED = "passed"
    EPOCH_ENDED = "epoch-ended"
    APPLY = "apply"
    DISCARD = "discard"
    ALL_KNOW = "all-know"


_S, _E = StepState, StepEvent
TABLE: dict[tuple[StepState, StepEvent], StepState] = {
    (_S.COMPUTING, _E.CAST): _S.PREPARED,
    (_S.COMPUTING, _E.EPOCH_ENDED): _S.ABORTED,
    (_S.PREPARED, _E.PASSED): _S.COMMITTED,
    (_S.PREPARED, _E.EPOCH_ENDED): _S.IN_DOUBT,
    (_S.IN_DOUBT, _E.EPOCH_ENDED): _S.IN_DOUBT,
    (_S.IN_DOUBT, _E.APPLY): _S.COMMITTED,
    (_S.IN_DOUBT, _E.DISCARD): _S.ABORTED,
    (_S.COMMITTED, _E.EPOCH_ENDED): _S.COMMITTED,
    (_S.COMMITTED, _E.ALL_KNOW): _S.SETTLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One try of `step` in `epoch`, with the way it came. An epoch ends with its first abort, so it has one try."""

    step: int
    epoch: int
    state: StepState = StepState.COMPUTING
    story: tuple[StepEvent, ...] = ()

    def after(self, event: StepEvent) -> Transaction:
        """The transaction after `event`. A pair without a row is a bug, told with the way it came."""
        found = TABLE.get((self.state, event))
        if found is None:
            way = " -> ".join(self.story) or "nothing"
            raise TransitionError(
                f"step {self.step} of epoch {self.epoch} is {self.state} (after {way}) and has no row for {event}"
            )
        return replace(self, state=found, story=(*self.story, event))

    @property
    def committed(self) -> bool:
        """True once the step may never be undone."""
        return self.state in {StepState.COMMITTED, StepState.SETTLED}
