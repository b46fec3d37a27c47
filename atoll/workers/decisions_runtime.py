"""Which remote copy of a step counts: decided by the control plane, in a row of its journal that is unique for each step.

Whoever uploads proposes and waits for the answer; without one nothing counts, training goes on, and the copy of the next
checkpoint tries anew. The answer is kept in the run's folder as well, for those who read it without a control plane; where
the two differ nothing is written. A withdrawal waits for nobody: until it is known everywhere, the worst is that a copy
which is damaged or gone is tried and passed over.
"""

from __future__ import annotations

from collections import defaultdict

from atoll.checkpoint.fs_decisions import Decisions
from atoll.errors import CheckpointError
from atoll.schema.ids import Step
from atoll.schema.messages import CopyProposed, CopyWithdrawn
from atoll.workers.host import Host

# An answer takes two hops and a write to the journal. It may be lost with an agent or a control plane, so it is asked again.
_ASK_EVERY_S = 2.0
_ASKS = 15


class JournalDecisions:
    """The decisions of one run, for one of its trainers; `kept` are those in the run's folder."""

    def __init__(self, host: Host, kept: Decisions, *, ask_every_s: float = _ASK_EVERY_S) -> None:
        self._host, self._kept, self._ask_every_s = host, kept, ask_every_s
        self._known = {int(one.step): one.record for one in host.identity.copies if one.record}
        self._withdrawn: defaultdict[int, frozenset[str]] = defaultdict(frozenset)
        for one in host.identity.copies:
            self._withdrawn[one.step] |= frozenset(one.withdrawn)

    def decide(self, step: int, record: str) -> str:
        """As `Decisions`. Raises `CheckpointError` where nobody decides."""
        if record in self.withdrawn(step):
            return self.decided(step)
        answer = None
        for _ in range(_ASKS):
            answer = self._host.mailbox.copy_decided(step, lambda: self._propose(step, record), self._ask_every_s)
            if answer is not None:
                break
        if answer is None:
            waited = _ASKS * self._ask_every_s
            raise CheckpointError(f"the control plane decided nothing on step {step} within {waited:.0f} s")
        self._withdrawn[step] |= frozenset(answer.withdrawn)
        if not answer.record:
            return ""
        self._known[step] = answer.record
        kept = self._kept.decide(step, answer.record)
        if kept != answer.record:
            raise CheckpointError(
                f"of step {step} the journal holds {answer.record}, and the run's folder {kept or 'that it is withdrawn'}"
            )
        return answer.record

    def decided(self, step: int) -> str:
        """As `Decisions`. The journal's word comes first."""
        known = self._known.get(step) or self._kept.decided(step)
        return "" if known in self.withdrawn(step) else known

    def steps(self) -> frozenset[int]:
        """As `Decisions`."""
        return frozenset(self._known) | self._kept.steps()

    def withdrawn(self, step: int) -> frozenset[str]:
        """As `Decisions`."""
        return self._withdrawn[step] | self._kept.withdrawn(step)

    def withdraw(self, step: int, record: str) -> None:
        """As `Decisions`."""
        self._kept.withdraw(step, record)
        self._withdrawn[step] |= {record}
        self._host.tell(CopyWithdrawn(trainer=self._host.identity.trainer, step=Step(step), record=record))

    def _propose(self, step: int, record: str) -> None:
        self._host.tell(CopyProposed(trainer=self._host.identity.trainer, step=Step(step), record=record))
