"""What torch hands to a process group, checked and brought into one form. Errors are `ValueError`s naming the place."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from atoll.collectives.tcp_exchanges import Pieces
from atoll.collectives.tcp_operations import dtype_name as name

_OPS = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.PRODUCT: "product",
    dist.ReduceOp.MIN: "min",
    dist.ReduceOp.MAX: "max",
    dist.ReduceOp.BAND: "band",
    dist.ReduceOp.BOR: "bor",
    dist.ReduceOp.BXOR: "bxor",
}
_BITS = frozenset({"band", "bor", "bxor"})
_ORDER = frozenset({"min", "max"})
# numpy has no arithmetic of these.
_UNKNOWN = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)

__all__ = [
    "check_alike", "check_pieces", "check_reducible", "check_tag", "equal_parts", "listed", "name", "op_of", "rows", "split_into",
]  # fmt: skip


def listed(tensors: Sequence[torch.Tensor] | torch.Tensor) -> Sequence[torch.Tensor]:
    """Torch's short overloads take one tensor for a list of one."""
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors


def op_of(opts: Any) -> str:
    """The word of a `ReduceOp`, given itself or in an option struct; sum if neither."""
    op = getattr(opts, "reduceOp", opts)
    if op is None:
        return "sum"
    for known, word in _OPS.items():
        if op == known:
            return word
    return str(op)


def check_reducible(place: str, op: str, tensors: Pieces) -> None:
    """`op` must be defined for the one type of `tensors`."""
    dtype = tensors[0].dtype
    if any(t.dtype is not dtype for t in tensors):
        raise ValueError(
            f"{place}: tensors of {sorted({str(t.dtype) for t in tensors})} in one operation; give one type"
        )
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if op not in _OPS.values() or dtype in _UNKNOWN:
        raise ValueError(f"{place}: {op} of {dtype} is not known; it takes {', '.join(_OPS.values())}")
    if (op in _BITS and not whole) or (op == "avg" and whole) or (op in _ORDER and dtype.is_complex):
        raise ValueError(f"{place}: {op} of {dtype} is not defined")


def equal_parts(place: str, whole: torch.Tensor, part: torch.Tensor, size: int) -> list[torch.Tensor]:
    """`whole` as `size` flat views, each as large as `part`."""
    if whole.numel() != size * part.numel() or whole.dtype is not part.dtype:
        raise ValueError(
            f"{place}: {whole.dtype}[{whole.numel()}] for {size} ranks with {part.dtype}[{part.numel()}] each; it must be "
            f"{size} times as large and of one type"
        )
    return cut(flat(place, whole), [part.numel()] * size)


def rows(place: str, tensor: torch.Tensor, splits: Sequence[int], size: int) -> list[torch.Tensor]:
    """Flat views of the rows for each rank: `splits` rows, or equally many."""
    count = tensor.shape[0] if tensor.dim() else 1
    if not splits:
        if count % size:
            raise ValueError(f"{place}: {count} rows cannot be split equally over {size} ranks; give split sizes")
        splits = [count // size] * size
    if len(splits) != size or sum(splits) != count:
        raise ValueError(f"{place}: split sizes {list(splits)} for {count} rows and {size} ranks")
    width = tensor.numel() // count if count else 0
    return cut(flat(place, tensor), [s * width for s in splits])


def check_tag(place: str, tag: int, end: int) -> None:
    """Tags go from 0 to `end` - 1."""
    if not 0 <= tag < end:
        raise ValueError(f"{place}: tag {tag}; tags go from 0 to {end - 1}")


def check_pieces(place: str, pieces: Mapping[int, Pieces], mine: Pieces, size: int, rank: int) -> None:
    """There is a list for each rank, and this rank's is like `mine`."""
    if len(pieces) != size:
        raise ValueError(f"{place}: tensors for {len(pieces)} ranks in a group of {size}")
    here, there = (_described(ts) for ts in (pieces[rank], mine))
    if here != there:
        raise ValueError(f"{place}: {', '.join(here)} for rank {rank} itself, which has {', '.join(there)}")


def check_alike(place: str, one: torch.Tensor, others: Pieces) -> None:
    """All have the size and type of `one`."""
    for rank, other in enumerate(others):
        if _described([other]) != _described([one]):
            [here], [there] = _described([one]), _described([other])
            raise ValueError(f"{place}: {there} for rank {rank} beside {here}; they must be alike")


def flat(place: str, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` [elements], sharing its memory."""
    if not tensor.is_contiguous():
        raise ValueError(f"{place}: the tensor with strides {tensor.stride()} is not contiguous; call .contiguous()")
    return tensor.detach().view(-1)


def cut(values: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Views of [elements], one after the other."""
    edges = itertools.accumulate(sizes, initial=0)
    return [values[start:end] for start, end in itertools.pairwise(edges)]


def split_into(flat_values: torch.Tensor, tensors: Pieces) -> None:
    """Copy [elements] into `tensors`, one after the other."""
    for tensor, values in zip(tensors, cut(flat_values, [t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(values.view(tensor.shape))


def _described(tensors: Pieces) -> list[str]:
    return [f"{name(t)}[{t.numel()}]" for t in tensors]
