"""Exact weighted averaging of gradients over all ranks, bucket by bucket while backward runs.

Every rank adds up weight * gradient over its grains in `.grad`; the last grain's backward arms the hooks. A header goes
first: [total weight, losses that are not finite, members that left the loop, micro-batches that do not count, one flag
for each module buffer that changed]. Then buckets follow in
reverse order of registration, which is about the order in which backward finishes them. A bucket is sent once it is full
and all before it were sent, so every rank submits the same operations in the same order whatever its graph did; what
backward did not reach is filled in at the end (zeros where no grain used the parameter). Dividing by the summed weight
comes last: then the result does not depend on how grains were shared out.

Buckets are CPU buffers of at least float32. Where a gradient has the bucket's type and device it becomes a view into it,
so nothing is copied back. Sums are added up in the bucket itself: when the epoch ends, operations end at once, and `.grad`
holds numbers of no meaning for the program to go on with until the session may raise its retry (law 3). What the program
makes of them, an error included, goes with the step.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from atoll.errors import UserError
from atoll.fault.inject import failpoint
from atoll.workers.peers import Comm, Pending, completed

# Large enough to fill a link for milliseconds, small enough that the last one adds little after backward ends.
BUCKET_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """The outcome of a step's reductions, the same on every rank. `norm` of the averaged gradient, 0 where unknown.

    `left_out`: micro-batches of the step that do not count.
    """

    weight: float
    bad_losses: int
    flags: tuple[float, ...]
    finite: bool
    norm: float = 0.0
    left_out: int = 0


# A header's numbers before the flags.
_FIXED = 4
_LEAVERS = 2


@dataclass(slots=True, eq=False)
class _Bucket:
    flat: torch.Tensor
    params: list[nn.Parameter]
    views: list[torch.Tensor]
    waiting: int = 0
    work: Pending | None = None
    arrived: set[int] = field(default_factory=set)


class Reducer:
    """Gradients of `params`, which are in order of registration. `open` at step entry, `arm`, then `finish`."""

    def __init__(self, params: Sequence[nn.Parameter], *, bucket_bytes: int | None = None) -> None:
        self._params = list(params)
        self._buckets = list(_fill(reversed(self._params), bucket_bytes or BUCKET_BYTES))
        self._where = {id(p): (b, i) for b in self._buckets for i, p in enumerate(b.params)}
        self._handles = [_on_gradient(p, self._ready) for p in self._params]
        self.entered_s = 0.0  # monotonic: when this rank had given all that it has to the step's sums
        self.waited_s = 0.0  # since then, for the others
        self.measures = False  # whether `square` is wanted
        self.square = 0.0  # of this rank's own weighted sum of gradients
        self._comm: Comm | None = None
        self._armed = False
        self._repeated = False
        self._sent = 0
        self._probe: tuple[nn.Parameter, torch.Tensor, int] | None = None
        self._header: torch.Tensor | None = None
        self._header_work: Pending | None = None

    @property
    def sync_bytes(self) -> int:
        """Of gradients that a step adds up over the ranks, as they are sent without a codec."""
        return sum(bucket.flat.nbytes for bucket in self._buckets)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def open(self, comm: Comm) -> None:
        """A step begins in this epoch: gradients are cleared, nothing is sent yet."""
        self._comm = comm
        self._armed = self._repeated = False
        self._header = self._header_work = None
        self.entered_s, self.waited_s, self.square = 0.0, 0.0, 0.0
        self.clear()

    def clear(self) -> None:
        """Drop all gradients."""
        self._probe = None
        for param in self._params:
            param.grad = None

    def note(self) -> None:
        """A backward that is not the last has returned: remember where its sums lie."""
        found = next((p for p in self._params if p.grad is not None), None)
        if found is not None and found.grad is not None:
            self._probe = found, found.grad, found.grad._version  # noqa: SLF001 - torch's change counter

    @property
    def touched(self) -> bool:
        """Whether the program changed or dropped gradients since `note`."""
        if self._probe is None:
            return False
        param, grad, version = self._probe
        return param.grad is not grad or grad._version != version  # noqa: SLF001 - as above

    def leave(self, flags: int) -> int | None:
        """Say in a header's place that no step follows here. How many said so; None when the epoch ended."""
        header = torch.zeros(_FIXED + flags, dtype=torch.float64)
        header[_LEAVERS] = 1.0
        if self._comm is None or not completed(self._comm.all_reduce(header)):
            return None
        return round(header[_LEAVERS].item())

    def arm(self, *, weight: float, bad_losses: int, flags: Sequence[float], left_out: int = 0) -> None:
        """The next backward is this rank's last in the step: send as it goes. `weight` is of all its grains that count."""
        if self._comm is None:
            raise RuntimeError("arm before open")
        for bucket in self._buckets:
            bucket.waiting, bucket.work = len(bucket.params), None
            bucket.arrived.clear()
        self._sent = 0
        self._header = torch.tensor([weight, float(bad_losses), 0.0, float(left_out), *flags], dtype=torch.float64)
        if self._comm.size > 1:
            self._header_work = self._comm.all_reduce(self._header)
            self._armed = True

    def _ready(self, param: torch.Tensor) -> None:
        """A gradient is final on this rank (called by backward, which must not raise)."""
        if not self._armed:
            return
        bucket, index = self._where[id(param)]
        if bucket.work is not None or index in bucket.arrived:
            self._repeated = True
            return
        self._take(bucket, index)
        if bucket.waiting == 0:
            self._send_full()

    def _take(self, bucket: _Bucket, index: int) -> None:
        grad = bucket.params[index].grad
        view = bucket.views[index]
        if grad is None:
            view.zero_()
        else:
            view.copy_(grad.to_dense() if grad.is_sparse else grad)
            if self.measures:
                self.square += _square(view)
        bucket.arrived.add(index)
        bucket.waiting -= 1

    def _send_full(self) -> None:
        comm = self._comm
        while comm is not None and self._sent < len(self._buckets) and self._buckets[self._sent].waiting == 0:
            bucket = self._buckets[self._sent]
            failpoint("in-bucket")
            bucket.work = comm.all_reduce(bucket.flat, in_place=True)
            self._sent += 1

    def finish(self) -> Reduced | None:
        """Send what is left and wait for all; `.grad` is final. None when the epoch ended meanwhile."""
        self._armed = False
        if self._repeated:
            raise UserError(
                "a gradient arrived twice in one backward; with activation checkpointing, use use_reentrant=False"
            )
        with torch.no_grad():
            if self._comm is not None and self._comm.size == 1:
                self.entered_s = time.monotonic()
                return self._alone(self._comm)
            for bucket in self._buckets:
                for index in range(len(bucket.params)):
                    if index not in bucket.arrived:
                        self._take(bucket, index)
            self._send_full()
            self.entered_s = time.monotonic()
            return self._collect()

    def _alone(self, comm: Comm) -> Reduced | None:
        """Without peers the sums are complete where they are."""
        if self._header is None or comm.poisoned is not None:
            return None
        header = self._header.tolist()
        weight = header[0]
        scale = 1.0 / weight if weight else 0.0
        for param in self._params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        grads = [param.grad for param in self._params if param.grad is not None]
        for grad in grads:
            grad.mul_(scale)
        squares = [_square(grad) for grad in grads]
        finite = math.isfinite(scale) and all(map(_is_finite, squares, grads))
        return _reduced(header, finite=finite, squares=sum(squares))

    def _collect(self) -> Reduced | None:
        header, work = self._header, self._header_work
        if header is None or work is None or not self.awaited(work):
            return None
        told = header.tolist()
        weight, _, left = told[:3]
        if left:
            raise UserError(told_of_leavers(round(left), self._comm.size if self._comm is not None else 0))
        # All weights 0: every gradient is 0 too, and stays so.
        scale = 1.0 / weight if weight else 0.0
        finite, squares = math.isfinite(scale), 0.0
        for bucket in self._buckets:
            if bucket.work is None or not self.awaited(bucket.work):
                return None
            bucket.flat.mul_(scale)
            square = _square(bucket.flat)
            finite, squares = finite and _is_finite(square, bucket.flat), squares + square
        for bucket in self._buckets:
            _give(bucket)
        return _reduced(told, finite=finite, squares=squares)

    def sum(self, flats: Sequence[torch.Tensor]) -> bool:
        """Sum small tensors over ranks, in place. False when the epoch ended."""
        comm = self._comm
        if comm is None:
            return False
        works = [comm.all_reduce(flat) for flat in flats]
        return all(self.awaited(work) for work in works)

    def awaited(self, work: Pending) -> bool:
        """As `completed`, with its time counted as waiting."""
        began = time.monotonic()
        done = completed(work)
        self.waited_s += time.monotonic() - began
        return done


def told_of_leavers(left: int, size: int) -> str:
    """What is said on all members where only some left the loop."""
    return (
        f"{left} of {size} workers left the loop over ctx.steps while the others go on; leave it after the same step on "
        "all workers: by a value that is the same on all, or by steps="
    )


def _on_gradient(param: nn.Parameter, call: Callable[[torch.Tensor], None]) -> Any:
    return param.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]


def _reduced(header: Sequence[float], *, finite: bool, squares: float) -> Reduced:
    """The outcome by a summed header; `squares`: the square of the averaged gradient's norm."""
    weight, bad_losses, _, left_out, *flags = header
    return Reduced(
        weight=weight,
        bad_losses=int(bad_losses),
        flags=tuple(flags),
        finite=finite,
        norm=math.sqrt(squares) if finite else math.nan,
        left_out=round(left_out),
    )


def _give(bucket: _Bucket) -> None:
    for param, view in zip(bucket.params, bucket.views, strict=True):
        if view.dtype == param.dtype and view.device == param.device:
            param.grad = view
        elif param.grad is None or param.grad.is_sparse:
            param.grad = view.to(device=param.device, dtype=param.dtype)
        else:
            param.grad.copy_(view)


def _square(grad: torch.Tensor) -> float:
    """The sum of squares, in one pass (as long as a sum takes). It hides no NaN or infinity, but may overflow by itself."""
    values = grad.coalesce().values() if grad.is_sparse else grad
    if values.dtype in {torch.float32, torch.float64} and values.is_contiguous():
        flat = values.view(-1)
        return float(torch.dot(flat, flat))
    wide = None if values.is_complex() else torch.float32
    return float(torch.linalg.vector_norm(values, dtype=wide)) ** 2


def _is_finite(square: float, grad: torch.Tensor) -> bool:
    """Whether all of `grad`, whose sum of squares is `square`, is finite."""
    if math.isfinite(square):
        return True
    return bool(torch.isfinite(grad.coalesce().values() if grad.is_sparse else grad).all())


def _fill(params: Iterable[nn.Parameter], bucket_bytes: int) -> Iterable[_Bucket]:
    for dtype, run in itertools.groupby(params, key=_wire_dtype):
        batch: list[nn.Parameter] = []
        size = 0
        for param in run:
            batch.append(param)
            size += param.numel() * dtype.itemsize
            if size >= bucket_bytes:
                yield _bucket(batch, dtype)
                batch, size = [], 0
        if batch:
            yield _bucket(batch, dtype)


def _wire_dtype(param: nn.Parameter) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _bucket(params: list[nn.Parameter], dtype: torch.dtype) -> _Bucket:
    flat = torch.zeros(sum(p.numel() for p in params), dtype=dtype)
    views, offset = [], 0
    for param in params:
        views.append(flat[offset : offset + param.numel()].view(param.shape))
        offset += param.numel()
    return _Bucket(flat=flat, params=list(params), views=views)
