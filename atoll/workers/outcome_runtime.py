"""Committed steps whose effects wait until every member is known to have committed (law 2, second round).

After commit each member sends an acknowledgement in the background, with what its user code reported since the vote.
When all have come, the step is settled: the account line is written, the step is told, `on_commit` calls run. If the
epoch ends first, the regroup decides the step for all members of the new epoch, and the acknowledgement that closes the
regroup settles it. Effects run on the main thread, in step order, at the next moment when the session owns the stack.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from atoll.clock import SystemClock
from atoll.fault.backup import Told
from atoll.schema.ids import Epoch, Step
from atoll.schema.messages import LinksObserved, StepCommitted
from atoll.workers.account import committed_line
from atoll.workers.fs_account import AccountFile
from atoll.workers.host import Host
from atoll.workers.peers import Comm, Pending, completed, is_done
from atoll.workers.reports import Sums, means, merge


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a committed step will show once it is settled. `voted` came with the vote, `late` is this rank's own since."""

    step: int
    epoch: int
    attempt: int
    seconds: float
    samples: int
    grains: int
    compute_s: float
    wait_s: float
    voted: Sums
    late: Sums
    grad_norm: float = 0.0
    calls: list[Callable[[], None]] = field(default_factory=list)
    foreign: bool = False
    again: bool = False
    backup: Told | None = None
    sync_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Round:
    """One acknowledgement round. Its leaders tell the measurements: rank 0, but after a regroup everyone who has them."""

    work: Pending
    leader: bool


def _begin(comm: Comm, late: dict[int, Sums], *, leader: bool) -> _Round:
    return _Round(work=comm.all_gather(_encode(late)), leader=leader)


def _foreign(step: int, epoch: int, attempt: int) -> Outcome:
    """A step that others committed: this member only puts it into the account, in case they cannot."""
    return Outcome(
        step=step,
        epoch=epoch,
        attempt=attempt,
        seconds=0.0,
        samples=0,
        grains=0,
        compute_s=0.0,
        wait_s=0.0,
        voted={},
        late={},
        foreign=True,
    )


class Outcomes:
    """The committed and not yet settled steps of this trainer, oldest first."""

    def __init__(self, host: Host, account: AccountFile) -> None:
        self._host = host
        self._account = account
        self._clock = SystemClock()
        self._waiting: deque[tuple[Outcome, _Round]] = deque()
        self._regrouped: _Round | None = None
        self._regrouped_at = 0
        # Of data that is text: steps then tell their tokens, for rates.
        self.tokens_per_row = 0
        # A rank 0 tells of step s at the latest when it begins s + 2, which nobody commits without it.
        self._shown: deque[StepCommitted] = deque(maxlen=2)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, outcome: Outcome, comm: Comm) -> None:
        """The step's body has ended. A step that a regroup decided is settled by the regroup's own round."""
        self._tell_links(comm)
        if self._regrouped is not None and outcome.step <= self._regrouped_at:
            self._waiting.append((outcome, self._regrouped))
            return
        self._waiting.append((outcome, _begin(comm, {outcome.step: outcome.late}, leader=comm.rank == 0)))

    @property
    def unsettled(self) -> tuple[tuple[int, int, int], ...]:
        """(step, epoch, attempt) of each."""
        return tuple((o.step, o.epoch, o.attempt) for o, _ in self._waiting)

    def regrouped(self, comm: Comm, step: int, unsettled: Iterable[tuple[int, int, int]]) -> None:
        """All members of a new epoch stand at `step`: one round settles whatever any of them had `unsettled`."""
        # A learner may have seen a step's vote pass that the holders of the state did not, and gave up; or the state was
        # lost, and all go back.
        self._waiting = deque((o, around) for o, around in self._waiting if o.step <= step)
        known = {outcome.step for outcome, _ in self._waiting}
        foreign = [_foreign(*one) for one in unsettled if one[0] not in known and one[0] <= step]
        own = {outcome.step: outcome.late for outcome, _ in self._waiting}
        around = _begin(comm, own, leader=True)
        self._regrouped, self._regrouped_at = around, step
        self._waiting = deque((outcome, around) for outcome in [*foreign, *(o for o, _ in self._waiting)])
        # The rank 0 that was to tell these may be the one that was lost. Facts are idempotent: by step, the first counts.
        for fact in self._shown:
            self._host.tell(fact)

    def settle(self, *, within_s: float = 0.0) -> None:
        """Show what is known to be decided by now, or will be `within_s` seconds."""
        while self._waiting and is_done(self._waiting[0][1].work, within_s):
            self._show(*self._waiting.popleft())

    def drain(self) -> bool:
        """Wait until every step is settled. False when the epoch ended first."""
        while self._waiting:
            if not completed(self._waiting[0][1].work):
                return False
            self._show(*self._waiting.popleft())
        return True

    def _show(self, outcome: Outcome, around: _Round) -> None:
        self._account.write(committed_line(outcome.step, outcome.epoch, outcome.attempt))
        if outcome.foreign:
            return
        late = merge(_decode(payload, outcome.step) for payload in around.work.result)
        # A step decided by a regroup ended its body after the round: then this rank knows its own late values only.
        sums = merge([outcome.voted, late or outcome.late])
        fact = StepCommitted(
            trainer=self._host.identity.trainer,
            epoch=Epoch(outcome.epoch),
            step=Step(outcome.step),
            at=self._clock.now(),
            step_s=outcome.seconds,
            samples=outcome.samples,
            metrics=means(sums) | self._tokens(outcome.samples) | _left_out(outcome.backup),
            grains=outcome.grains,
            compute_s=outcome.compute_s,
            wait_s=outcome.wait_s,
            grad_norm=outcome.grad_norm,
            again=outcome.again,
            backup=outcome.backup.words if outcome.backup is not None else "",
            sync_bytes=outcome.sync_bytes,
        )
        self._shown.append(fact)
        self._host.tell(fact if around.leader else replace(fact, metrics={}))
        for call in outcome.calls:
            call()

    def _tell_links(self, comm: Comm) -> None:
        observations = comm.observations()
        if observations:
            trainer, epoch = self._host.identity.trainer, Epoch(comm.epoch)
            self._host.tell(LinksObserved(trainer=trainer, epoch=epoch, observations=observations))

    def _tokens(self, samples: int) -> dict[str, float]:
        return {"tokens": float(samples * self.tokens_per_row)} if self.tokens_per_row else {}


def _left_out(told: Told | None) -> dict[str, float]:
    return {} if told is None else {"backup": float(told.backup), "left_out": float(told.left_out)}


def _encode(late: dict[int, Sums]) -> bytes:
    """Nothing, where nothing was reported: the usual case, kept small."""
    return json.dumps(late).encode() if any(late.values()) else b""


def _decode(payload: bytes, step: int) -> Sums:
    found: Sums = json.loads(payload).get(str(step), {}) if payload else {}
    return found
