"""What makes a grain independent of who computes it: its random numbers and its module buffers (law 4).

`seed_all` sets every generator from (seed, step, grain). `Buffers` lets each grain start from the buffers of the step's
entry, collects what each grain changed, and merges after commit: floating buffers become entry + weighted mean of the
changes, integer ones entry + sum of the changes (so a counter counts every grain). Only buffers that some rank changed
take part. A change is seen by torch's version counter, by another tensor standing in the buffer's place and, as batch
norm moves its running statistics past the counter, by comparing what is small enough to be a statistic.
"""

from __future__ import annotations

import enum
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from atoll.workers.samples import mix

# Channels of a normalisation layer are fewer; masks and position tables, which never change, are mostly larger.
_COMPARED = 1 << 16


class Draw(enum.IntEnum):
    """What random numbers are drawn for; keeps their streams apart."""

    COMPUTE = 0
    DATA = 1


# Generators of the code before and after a step's batch loop, the same on all ranks. No grain has such a number.
BEFORE_LOOP = -1
AFTER_LOOP = -2


def seed_all(seed: int, step: int, grain: int, draw: Draw = Draw.COMPUTE) -> None:
    """Seed torch (CPU and CUDA), Python and, where it is loaded, numpy."""
    bits = mix(seed, step, grain, draw)
    torch.default_generator.manual_seed(bits >> 1)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(bits >> 1)
    random.seed(bits)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(bits & 0xFFFFFFFF)


@dataclass(slots=True, eq=False)
class _Slot:
    """One buffer: where it lives, its value at the step's entry, and the weighted sum of this rank's changes."""

    owner: nn.Module
    name: str
    tensor: torch.Tensor
    entry: torch.Tensor
    version: int
    entry_version: int
    change: torch.Tensor | None = None
    merged: torch.Tensor | None = None

    @property
    def current(self) -> torch.Tensor:
        found = self.owner._buffers[self.name]  # noqa: SLF001 - the only place where a replaced buffer can be seen
        return self.tensor if found is None else found

    @property
    def mutated(self) -> bool:
        return self.current is not self.tensor or self.moved_since(self.version)

    def moved_since(self, version: int) -> bool:
        """Whether the tensor changed; its counter had `version` when it was equal to `entry`."""
        if self.tensor._version != version:  # noqa: SLF001 - torch's change counter
            return True
        return self.tensor.numel() <= _COMPARED and not torch.equal(self.tensor, self.entry)

    @property
    def is_float(self) -> bool:
        return self.entry.is_floating_point()

    def put(self, value: torch.Tensor) -> None:
        with torch.no_grad():
            self.tensor.copy_(value)
        self.owner._buffers[self.name] = self.tensor  # noqa: SLF001 - as above
        self.version = self.tensor._version  # noqa: SLF001 - as above


class Buffers:
    """The buffers of all managed modules."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._slots: list[_Slot] = []
        seen: set[int] = set()
        for root in modules:
            for owner in root.modules():
                for name, tensor in owner._buffers.items():  # noqa: SLF001 - named_buffers hides the owner
                    if tensor is not None and id(tensor) not in seen and not tensor.is_complex():
                        seen.add(id(tensor))
                        self._slots.append(_slot(owner, name, tensor))

    def __len__(self) -> int:
        return len(self._slots)

    def record(self) -> None:
        """Step entry: what is now is what an abort returns to."""
        for slot in self._slots:
            slot.tensor = slot.current
            if slot.entry.shape != slot.tensor.shape or slot.moved_since(slot.entry_version):
                slot.entry = slot.tensor.detach().clone()
            slot.version = slot.entry_version = slot.tensor._version  # noqa: SLF001 - torch's change counter
            slot.change = slot.merged = None

    def end_grain(self, weight: float) -> None:
        """Collect what the grain changed, and go back to the entry for the next one."""
        for slot in self._slots:
            if not slot.mutated:
                continue
            change = _wide(slot.current) - _wide(slot.entry)
            change = change * weight if slot.is_float else change
            slot.change = change if slot.change is None else slot.change + change
            slot.put(slot.entry)
            slot.entry_version = slot.version

    def drop_grain(self) -> None:
        """A pass that counts for nothing has ended: back to the entry for the next one."""
        for slot in self._slots:
            if slot.mutated:
                slot.put(slot.entry)
                slot.entry_version = slot.version

    def flags(self) -> list[float]:
        """1.0 for each buffer that this rank changed in this step, the grain in hand included."""
        return [1.0 if slot.change is not None or slot.mutated else 0.0 for slot in self._slots]

    def changes(self, flags: Sequence[float]) -> list[torch.Tensor]:
        """Flat tensors to be summed over ranks: the changes of flagged float buffers, and of integer ones."""
        return [flat for flat in (self._flat(self._chosen(flags, kind)) for kind in (True, False)) if flat.numel()]

    def merge(self, flags: Sequence[float], sums: Sequence[torch.Tensor], total_weight: float) -> None:
        """Work out the buffers after commit from the sums over ranks."""
        rest = list(sums)
        for kind in (True, False):
            chosen = self._chosen(flags, kind)
            if not chosen:
                continue
            flat, offset = rest.pop(0), 0
            for slot in chosen:
                part = flat[offset : offset + slot.entry.numel()].view(slot.entry.shape)
                offset += slot.entry.numel()
                mean = part / (total_weight or 1.0) if kind else part
                slot.merged = (_wide(slot.entry) + mean.to(slot.entry.device)).to(slot.entry.dtype)

    def commit(self) -> None:
        """The step is committed: merged buffers take their place."""
        for slot in self._slots:
            if slot.merged is not None:
                slot.put(slot.merged)
            slot.change = slot.merged = None

    def rollback(self) -> None:
        """The step is aborted: back to the entry."""
        for slot in self._slots:
            if slot.mutated:
                slot.put(slot.entry)
                slot.entry_version = slot.version
            slot.change = slot.merged = None

    def _chosen(self, flags: Sequence[float], kind: bool) -> list[_Slot]:  # noqa: FBT001 - float or integer buffers
        return [s for s, flag in zip(self._slots, flags, strict=True) if flag and s.is_float == kind]

    def _flat(self, slots: list[_Slot]) -> torch.Tensor:
        if not slots:
            return torch.empty(0)
        parts = [_wide(s.entry).new_zeros(s.entry.numel()) if s.change is None else s.change.reshape(-1) for s in slots]
        return torch.cat([p.cpu() for p in parts])


def _slot(owner: nn.Module, name: str, tensor: torch.Tensor) -> _Slot:
    version = tensor._version  # noqa: SLF001 - torch's change counter
    return _Slot(
        owner=owner, name=name, tensor=tensor, entry=tensor.detach().clone(), version=version, entry_version=version
    )


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Sums are taken in double and long, so that the split over ranks does not show in the buffers."""
    return tensor.detach().to(torch.float64 if tensor.is_floating_point() else torch.int64)
