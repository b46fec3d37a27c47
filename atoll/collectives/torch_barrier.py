"""A barrier by the store alone, so that it works while the ranks' connections are in doubt, and names who is missing.

Each rank leaves a mark; rank 0 looks for all of them until the limit and leaves its word, which all read: nothing, or who
did not come. So every rank that came raises with the same names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import Store

# How much longer than rank 0 the others wait for its word.
_WORD_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """The `number`th of a group. `names`: ranks as people know them."""

    store: Store
    names: Sequence[int]
    limit_s: float
    number: int
    group: str

    def gather(self) -> str:
        """On rank 0. "" once all have come, else who did not."""
        deadline = time.monotonic() + self.limit_s
        missing = [rank for rank in range(1, len(self.names)) if not self._came(rank, deadline)]
        words = self._absent(missing) if missing else ""
        self.store.set(self._key, words)
        return words

    def come(self, rank: int) -> str:
        """On every other rank. The word of rank 0."""
        self.store.set(f"{self._key}/{rank}", "")
        try:
            self.store.wait([self._key], timedelta(seconds=self.limit_s + _WORD_S))
        except RuntimeError:  # torch's error for a limit that passed
            return self._absent([0])
        return str(self.store.get(self._key).decode())

    @property
    def _key(self) -> str:
        return f"atoll/barrier/{self.number}"

    def _came(self, rank: int, deadline: float) -> bool:
        key, left = f"{self._key}/{rank}", deadline - time.monotonic()
        if left <= 0:
            return self.store.check([key])
        try:
            self.store.wait([key], timedelta(seconds=left))
        except RuntimeError:
            return False
        return True

    def _absent(self, ranks: Sequence[int]) -> str:
        who = ", ".join(str(self.names[r]) for r in ranks)
        return f"monitored_barrier {self.number} of group {self.group!r}: rank {who} did not come within {self.limit_s:g} s"
