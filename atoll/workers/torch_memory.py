"""Where a shard that comes from others goes: straight into the model that waits for it, or into memory of its own.

The kernel clears memory page by page as it is first written, which for pages of 4 KiB costs as much as several copies of
what goes there. So all of a shard's own memory is one range in pages of 2 MiB, where the kernel has them. Each tensor
keeps all of it, and they end together.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Mapping
from contextlib import suppress

import torch

from atoll.workers.buddies import Place
from atoll.workers.torch_shards import Shards, Spec

# Tensors begin at whole lines of the processor's cache.
_LINE = 64
# Less than some large pages is not worth them.
_LEAST_BYTES = 8 << 20


def memory_for(specs: Mapping[str, Spec], place: Place, into: Shards | None) -> dict[str, torch.Tensor]:
    """The tensors of the shard at `place`, with any values: those of `into` where it has them, others are new."""
    found: dict[str, torch.Tensor] = {}
    if into is not None:
        ready = {n: t for n, t in into.flat.tensors.items() if into.specs[n] == specs.get(n) and t.is_contiguous()}
        found = {n: t for n, t in ready.items() if tuple(t.shape) == specs[n].box(place.size, place.index).shape}
    missing = {n: s.box(place.size, place.index).shape for n, s in specs.items() if n not in found}
    return found | _made({n: (shape, specs[n].torch_dtype) for n, shape in missing.items()})


def _made(wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, torch.Tensor]:
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted.values()]
    *begins, total = itertools.accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0)
    if total < _LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return {n: torch.empty(shape, dtype=dtype) for n, (shape, dtype) in wanted.items()}
    memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    found = {}
    for (name, (shape, dtype)), begin, size in zip(wanted.items(), begins, sizes, strict=True):
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=begin) if size else torch.empty(0)
        found[name] = (flat.view(dtype) if size else flat.to(dtype)).view(shape)
    return found
