"""Where a shard that comes from others goes: straight into the model that waits for it, or into new memory.

Pages of 2 MiB for what is new did not pay where this was measured: they come from memory that the machine has never used,
and cost up to four times as much as small ones that it has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from atoll.workers.buddies import Place
from atoll.workers.torch_shards import Shards, Spec


def memory_for(specs: Mapping[str, Spec], place: Place, into: Shards | None) -> dict[str, torch.Tensor]:
    """The tensors of the shard at `place`, with any values: those of `into` where it has them, others are new."""
    shapes = {n: s.box(place.size, place.index).shape for n, s in specs.items()}
    ready = {} if into is None else {n: t for n, t in into.flat.tensors.items() if into.specs[n] == specs.get(n)}
    found = {n: t for n, t in ready.items() if tuple(t.shape) == shapes[n] and t.is_contiguous()}
    return found | {n: torch.empty(shapes[n], dtype=s.torch_dtype) for n, s in specs.items() if n not in found}
