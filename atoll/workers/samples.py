"""Which samples a step holds, and which rank computes them.

Two pure functions that never meet. `Plan.samples` says which rows of the data set make up step s: position
`(s - 1) * global_batch + i` of an endless stream of passes, each pass a permutation of all rows keyed by (seed, pass).
`share` says which grains (micro-batches) a rank owns, by weight. So a step's samples do not depend on who computes them,
and a step tried again by other members sees the same rows.

The permutation is a Feistel network on the next power of two above the number of rows, walked until the image falls
inside: O(1) memory for any data set, any position computed alone. Steps count from 1: step s is the s-th commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.errors import BatchError, DataError

_MASK = (1 << 64) - 1
# Six rounds: four already pass for a random permutation when the round function is good; two more cost 1 us.
_ROUNDS = 6


def mix(*parts: int) -> int:
    """64 well-mixed bits that depend on every part and its place (splitmix64, Steele, Lea and Flood 2014)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = _finalise((state ^ (part & _MASK)) + 0x9E3779B97F4A7C15)
    return state


def _finalise(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Permutation:
    """A keyed permutation of range(size)."""

    __slots__ = ("_keys", "_low_bits", "_low_mask", "_high_mask", "_size")  # noqa: RUF023 - in the order of the maths

    def __init__(self, size: int, key: int) -> None:
        bits = max(2, (size - 1).bit_length())
        self._size = size
        self._low_bits = bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits - self._low_bits)) - 1
        self._keys = [mix(key, i) for i in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """The image of `index`. Fewer than two walks are expected: the domain is below twice the size."""
        if self._size == 1:
            return 0
        image = self._walk(index)
        while image >= self._size:
            image = self._walk(image)
        return image

    def _walk(self, value: int) -> int:
        high, low = value >> self._low_bits, value & self._low_mask
        for i in range(0, _ROUNDS, 2):
            high ^= _finalise(low + self._keys[i]) & self._high_mask
            low ^= _finalise(high + self._keys[i + 1]) & self._low_mask
        return high << self._low_bits | low


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run walks its data: all that the samples of a step depend on."""

    seed: int
    size: int
    global_batch: int
    micro_batch: int
    steps: int

    @property
    def grains(self) -> int:
        """Micro-batches in a step."""
        return self.global_batch // self.micro_batch

    def samples(self, step: int, first: int = 0, last: int | None = None) -> tuple[int, ...]:
        """Rows `[first, last)` of step `step` (all of them by default), in order."""
        start = (step - 1) * self.global_batch
        positions = range(start + first, start + (self.global_batch if last is None else last))
        permutations: dict[int, Permutation] = {}
        rows = []
        for position in positions:
            turn, offset = divmod(position, self.size)
            if turn not in permutations:
                permutations[turn] = Permutation(self.size, mix(self.seed, turn))
            rows.append(permutations[turn](offset))
        return tuple(rows)

    def grain(self, step: int, grain: int) -> tuple[int, ...]:
        """The rows of one micro-batch."""
        return self.samples(step, grain * self.micro_batch, (grain + 1) * self.micro_batch)


def make_plan(*, seed: int, size: int, global_batch: int, micro_batch: int | None, steps: int | None) -> Plan:
    """The plan for these numbers. `steps=None` is one pass; `micro_batch=None` is the global batch as one grain.

    Raises `DataError` or `BatchError` with what to change.
    """
    micro = global_batch if micro_batch is None else micro_batch
    if size < 1:
        raise DataError("the data set has no samples; give one with at least 1")
    if global_batch < 1 or micro < 1:
        raise BatchError(f"global_batch={global_batch}, micro_batch={micro}: both must be at least 1")
    if global_batch % micro:
        below, above = global_batch - global_batch % micro, global_batch + micro - global_batch % micro
        near = f"{below} or {above}" if below else f"{above}"
        raise BatchError(
            f"global_batch={global_batch} is no multiple of micro_batch={micro}, so the workers cannot share it; "
            f"use global_batch={near}"
        )
    if steps is not None and steps < 1:
        raise BatchError(f"steps={steps}: at least 1, or None for one pass over the data")
    whole = steps if steps is not None else size // global_batch
    if whole < 1:
        raise BatchError(
            f"one pass over {size} samples holds no batch of global_batch={global_batch}; "
            f"use a global_batch of at most {size}, or give steps="
        )
    return Plan(seed=seed, size=size, global_batch=global_batch, micro_batch=micro, steps=whole)


def share(grains: int, weights: Sequence[float]) -> tuple[range, ...]:
    """Each rank's grains, in rank order: consecutive, whole, in proportion to weight by largest remainder.

    Ties go to the lower rank. A rank may own none, when there are fewer grains than ranks.
    """
    total = sum(weights)
    if not weights or total <= 0 or min(weights) < 0:
        raise BatchError(f"weights {tuple(weights)}: each 0 or more, and not all 0")
    exact = [grains * weight / total for weight in weights]
    counts = [int(e) for e in exact]
    order = sorted(range(len(weights)), key=lambda r: (counts[r] - exact[r], r))
    for rank in order[: grains - sum(counts)]:
        counts[rank] += 1
    edges = [sum(counts[:r]) for r in range(len(counts) + 1)]
    return tuple(range(edges[r], edges[r + 1]) for r in range(len(counts)))
