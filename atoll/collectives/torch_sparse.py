"""Sparse sums: each rank's entries travel as they are, and every rank adds up all of them in rank order."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from atoll.collectives.torch_scratch import bytes_of

_ENTRIES = struct.Struct("!Q")


def packed(tensor: torch.Tensor) -> bytes:
    """The entries of a sparse COO tensor: their number, indices [dimensions, entries] as int64, values."""
    whole = tensor.detach().coalesce()
    indices, values = whole.indices().contiguous(), whole.values().contiguous()
    return b"".join(
        [
            _ENTRIES.pack(indices.shape[1]),
            bytes(bytes_of(indices.view(-1))),
            bytes(bytes_of(values.view(-1))),
        ]
    )


def sum_of(payloads: Sequence[bytes], like: torch.Tensor) -> torch.Tensor:
    """The sum of what `packed` made on each rank, a tensor with the shape and type of `like`."""
    total = torch.zeros_like(like.detach())  # sparse, without entries
    for payload in payloads:
        total = total + _entries(payload, like)
    return total.coalesce()


def _entries(payload: bytes, like: torch.Tensor) -> torch.Tensor:
    (count,) = _ENTRIES.unpack_from(payload)
    if count == 0:
        return torch.zeros_like(like.detach())
    cut = _ENTRIES.size + count * like.sparse_dim() * 8
    indices = torch.frombuffer(bytearray(payload[_ENTRIES.size : cut]), dtype=torch.int64)
    values = torch.frombuffer(bytearray(payload[cut:]), dtype=like.dtype)
    dense = like.shape[like.sparse_dim() :]
    return torch.sparse_coo_tensor(
        indices.view(like.sparse_dim(), count), values.view(count, *dense), like.shape, check_invariants=True
    )
