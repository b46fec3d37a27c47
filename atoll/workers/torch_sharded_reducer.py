"""The reductions of a step whose model is sharded: what torch's `fully_shard` leaves to do, and the agreement on it.

`fully_shard` adds up gradients within a replica group, micro-batch by micro-batch, and leaves each rank its shard; it is
told to divide by nothing. What is left: the header (total weight, losses that are not finite, members that left, buffers
that changed), the sum over the other replica groups' owners of the same shard, the sum over all ranks of parameters that
are not sharded, the division by the total weight, and one number on which all agree: whether every shard is finite.

Operations of an epoch that ended leave zeros. That is seen here, once, after all of them: then there is no result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from atoll.collectives.call import Call
from atoll.collectives.tcp_exchanges import Move, Reduction
from atoll.collectives.tcp_operations import dtype_name
from atoll.collectives.torch_subset import Subset
from atoll.errors import UserError
from atoll.workers.peers import Comm
from atoll.workers.torch_copies import local
from atoll.workers.torch_reducer import Reduced, Reducer, told_of_leavers


class ShardedReducer(Reducer):
    """Gradients of `params`. `column`: the owners of this rank's shard in all replica groups, where there are several."""

    def __init__(
        self, params: Sequence[nn.Parameter], modules: Iterable[nn.Module], column: Callable[[], Subset | None]
    ) -> None:
        super().__init__([])
        self._all = list(params)
        self._seen: tuple[torch.Tensor, int] | None = None
        self._sharded = [m for root in modules for m in root.modules() if isinstance(m, FSDPModule)]
        self._column = column
        for module in self._sharded:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    @property
    def sync_bytes(self) -> int:
        """Of gradients that a step adds up over the ranks, whole tensors whoever holds which shard."""
        return sum(p.numel() * p.element_size() for p in self._all if p.requires_grad)

    def clear(self) -> None:
        """Drop all gradients."""
        super().clear()
        self._seen = None
        for param in self._all:
            param.grad = None

    def note(self) -> None:
        """A backward that is not the last has returned: remember where its sums lie."""
        found = next((p.grad for p in self._all if p.grad is not None), None)
        self._seen = (found, _version(found)) if found is not None else None

    @property
    def touched(self) -> bool:
        """Whether the program changed or dropped gradients since `note`."""
        seen, self._seen = self._seen, None
        return seen is not None and (not any(p.grad is seen[0] for p in self._all) or _version(seen[0]) != seen[1])

    def arm(self, *, weight: float, bad_losses: int, flags: Sequence[float], left_out: int = 0) -> None:
        """The next backward is this rank's last in the step."""
        for module in self._sharded:
            module.set_requires_gradient_sync(True)
        self._seen = None
        super().arm(weight=weight, bad_losses=bad_losses, flags=flags, left_out=left_out)

    def finish(self) -> Reduced | None:
        """Wait for all; `.grad` is final. None when the epoch ended meanwhile."""
        self._armed = False
        self.entered_s = time.monotonic()
        with torch.no_grad():
            return self._summed()

    def _summed(self) -> Reduced | None:
        comm, header, work = self._comm, self._header, self._header_work
        if comm is None or header is None or (work is not None and not self.awaited(work)):
            return None
        weight, bad_losses, left, _, *flags = header.tolist()
        if left:
            raise UserError(told_of_leavers(round(left), comm.size))
        for param in self._all:
            if param.grad is None and param.requires_grad:
                param.grad = torch.zeros_like(param)
        gradients = [param.grad for param in self._all if param.grad is not None]
        if not self._add_up(comm, gradients):
            return None
        scale = 1.0 / weight if weight else 0.0
        for gradient in gradients:
            local(gradient).mul_(scale)
        broken = torch.tensor([0.0 if math.isfinite(scale) and all(map(_finite, gradients)) else 1.0])
        if comm.size > 1 and not self.awaited(comm.all_reduce(broken)):
            return None
        if comm.poisoned is not None:
            return None
        return Reduced(weight=weight, bad_losses=int(bad_losses), flags=tuple(flags), finite=broken.item() == 0.0)

    def _add_up(self, comm: Comm, gradients: Sequence[torch.Tensor]) -> bool:
        """Over the other replica groups, and over all ranks what is not sharded. False when the epoch ended."""
        plain = [g for g in gradients if not isinstance(g, DTensor)]
        if plain and comm.size > 1:
            flat = torch.cat([g.reshape(-1) for g in plain])
            if not self.awaited(comm.all_reduce(flat)):
                return False
            _spread(flat, plain)
        column = self._column()
        if column is None:
            return True
        sharded = [local(g) for g in gradients if isinstance(g, DTensor)]
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for gradient in sharded:
            by_type.setdefault(gradient.dtype, []).append(gradient)
        return all(self._over_groups(column, same) for same in by_type.values())

    def _over_groups(self, column: Subset, gradients: Sequence[torch.Tensor]) -> bool:
        """Each group's owner adds up one part of the shard, and gives the sum to the others."""
        size = sum(g.numel() for g in gradients)
        step = -(-size // column.size)
        flat = torch.zeros(step * column.size, dtype=gradients[0].dtype)
        torch.cat([g.reshape(-1) for g in gradients], out=flat[:size])
        parts = list(torch.split(flat, step))
        kind, total = dtype_name(flat), torch.empty_like(parts[0])
        pieces = {r: [part] for r, part in enumerate(parts)}
        summed = Reduction(call=Call("reduce_scatter", kind, flat.numel(), "sum"), pieces=pieces, into=[total])
        if not self.awaited(column.reduce(summed)):
            return False
        told_to_all = [total]
        gives = dict.fromkeys(range(column.size), told_to_all)
        told = Move(call=Call("all_gather_into", kind, flat.numel()), gives=gives, takes=pieces)
        if not self.awaited(column.move(told)):
            return False
        _spread(flat[:size], gradients)
        return True


def _spread(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    for tensor, values in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view(tensor.shape))


def _finite(gradient: torch.Tensor) -> bool:
    return bool(torch.isfinite(local(gradient)).all())


def _version(tensor: torch.Tensor) -> int:
    return local(tensor)._version  # noqa: SLF001 - torch's change counter
