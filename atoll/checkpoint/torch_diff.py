"""Two steps compared: from their records alone, or with the values of what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.differing import Difference, Unlike, tensor_differences, tree_differences
from atoll.checkpoint.digests import tensor_digest
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import CommitRecord, TensorRecord
from atoll.checkpoint.torch_digests import digest_box
from atoll.checkpoint.torch_steps import Step, open_step


def compare(
    first: Path, second: Path, *, values: bool = False, told: Callable[[int, int], None] = lambda _, __: None
) -> list[Difference]:
    """What is unlike in two steps; with `values` also by how much. Of format 1, which has no digests, all is read.

    `told` gets the number of another tensor's bytes that were compared, and those of all.
    """
    with open_step(first) as one, open_step(second) as other:
        found = tensor_differences(_records(one), _records(other))
        if values:
            unlike = [d.name for d in found if d.how is Unlike.VALUES]
            total = sum(one.logicals[name].size_bytes for name in unlike)
            measured = {}
            for name in unlike:
                measured[name] = _measured(one, other, one.logicals[name])
                told(one.logicals[name].size_bytes, total)
            found = [replace(d, detail=measured.get(d.name, d.detail)) for d in found]
        return [*found, *tree_differences(one.tree, other.tree)]


def _records(step: Step) -> Mapping[str, TensorRecord]:
    if isinstance(step.record, CommitRecord):
        return {one.name: one for one in step.record.tensors}
    return {name: _record(step, logical) for name, logical in step.logicals.items()}


def _record(step: Step, logical: Logical) -> TensorRecord:
    tensor = step.tensor(logical)
    digest = tensor_digest(logical, [digest_box(tensor, logical, whole(logical.shape))])
    return TensorRecord(name=logical.name, dtype=logical.dtype, shape=logical.shape, digest=f"{digest:016x}")


def _measured(one: Step, other: Step, logical: Logical) -> str:
    mine, theirs = one.tensor(logical), other.tensor(logical)
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[mine.element_size()]
    unlike = mine.view(size) != theirs.view(size)
    count = int(unlike.sum())
    gap = (mine.double() - theirs.double()).abs()[unlike]
    return f"{count} of {logical.count} elements, by {float(gap.nan_to_num(nan=float('inf')).max()):.6g} at most"
