"""What codecs lost so far, to be sent the next time (error feedback: Seide et al., 2014; 1-bit Adam, Tang et al., 2021).

One memory of float32 for each bucket, named by its caller. It changes with the step and no sooner: an operation's losses
are *pending* until `commit`, and `rollback` forgets them, so that a step that is tried again starts from the same memory.

A residual stays with the rank that lost it. When a new plan gives the range to another rank, the old owner adds what it
holds to its own contribution, before any code: the sum gets it all the same, and nothing has to be sent after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from atoll.collectives.torch_codecs import Floats
from atoll.errors import InternalError


class Feedback:
    """The memory of one bucket during one operation."""

    def __init__(self, held: Floats | None, count: int) -> None:
        self._held = held
        self.losses: Floats = np.zeros(count, np.float32)

    def stranded(self, coded: Iterable[tuple[int, int]]) -> Floats | None:
        """[count]: what is held of ranges that this rank does not encode this time; None where there is none."""
        if self._held is None:
            return None
        left = self._held.copy()
        for start, end in coded:
            left[start:end] = 0
        return left if left.any() else None

    def corrected(self, values: Floats, start: int, end: int) -> Floats:
        """`values` of [start, end) with what was lost of them before."""
        return values if self._held is None else values + self._held[start:end]

    def keep(self, start: int, end: int, values: Floats, decoded: Floats) -> None:
        """`values` of [start, end) were sent and read as `decoded`."""
        np.subtract(values, decoded, out=self.losses[start:end])


class Residuals:
    """The memories of one rank's buckets. Used by one step at a time."""

    def __init__(self) -> None:
        self._committed: dict[str, Floats] = {}
        self._pending: dict[str, Floats] = {}

    def feedback(self, key: str, count: int) -> Feedback:
        """The memory of bucket `key` for an operation over `count` elements. Raises `InternalError` for another size."""
        held = self._committed.get(key)
        if held is not None and held.size != count:
            raise InternalError(
                f"bucket {key!r} has residuals of {held.size} elements and is reduced with {count}: a bucket that changes "
                "its size needs a new key"
            )
        return Feedback(held, count)

    def told(self, key: str, feedback: Feedback) -> None:
        """The operation of `feedback` is done; its losses count from the next commit on."""
        self._pending[key] = feedback.losses

    def commit(self) -> None:
        """The step is decided: what it lost is sent with the next."""
        self._committed |= self._pending
        self._pending = {}

    def rollback(self) -> None:
        """The step is tried again: its losses never happened."""
        self._pending = {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The committed memories [elements] by bucket."""
        return {key: torch.from_numpy(held.copy()) for key, held in self._committed.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; raises `InternalError`, and changes nothing, if anything in it is not that."""
        self._committed = {key: _memory(key, held) for key, held in state.items()}
        self._pending = {}


def _memory(key: str, held: Any) -> Floats:
    if not isinstance(held, torch.Tensor) or held.dim() != 1 or not held.is_floating_point():
        what = f"{held.dtype} {list(held.shape)}" if isinstance(held, torch.Tensor) else type(held).__name__
        raise InternalError(
            f"residuals of bucket {key!r} are {what}, not flat floats: load what `Residuals.state_dict` gave"
        )
    memory: Floats = held.detach().cpu().float().numpy().copy()
    return memory
