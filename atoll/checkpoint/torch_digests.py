"""Digests of boxes as torch tensors hold them: the law and the fast forms stand in `digests`.

Host memory is read in place, strided as it is. What lies on an accelerator is digested there, in plain torch operations:
the form to check all others by, and only a sum comes to the host.
"""

from __future__ import annotations

import torch

from atoll.checkpoint.boxes import Box, Shape
from atoll.checkpoint.digests import FACTORS, GAMMA, SHIFTS, Array, digest_values, placed, row_major, words
from atoll.checkpoint.logical import Logical

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASK = (1 << 64) - 1
# Elements at once: on the host the temporary tensors fit a cache, on an accelerator they fill it.
_PIECES = {"cpu": 1 << 16}
_PIECE = 1 << 24


def digest_box(view: torch.Tensor, logical: Logical, box: Box) -> int:
    """The digest of `box` of a logical tensor; `view` [box.shape] holds its values."""
    if view.device.type == "cpu":
        return digest_values(elements(view), logical, box)
    return digest_in_torch(view, logical, box)


def elements(view: torch.Tensor) -> Array:
    """A host tensor's bits as unsigned numbers, without a copy; a complex128 has one more dimension of two."""
    numbers = _bits(view).numpy()
    return numbers.view(f"u{numbers.dtype.itemsize}")


def digest_in_torch(view: torch.Tensor, logical: Logical, box: Box) -> int:
    """As `digest_box`, in torch's operations alone, on the device of `view`."""
    bits = _bits(view)
    if bits.shape != words(logical, box.shape):
        raise ValueError(f"{logical.name}{box} has elements {words(logical, box.shape)}, not {tuple(bits.shape)}")
    if not bits.numel():
        return 0
    steps = row_major(words(logical, logical.shape))
    first = sum(at * step for at, step in zip(placed(logical, box), steps, strict=True))
    return _summed(bits, steps, first, _PIECES.get(view.device.type, _PIECE)) & _MASK


def _bits(view: torch.Tensor) -> torch.Tensor:
    plain = view.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.complex128:
        plain = torch.view_as_real(plain)
    return plain.view(_WORDS[plain.element_size()])


def _summed(bits: torch.Tensor, steps: Shape, first: int, piece: int) -> int:
    if bits.numel() > piece:
        dim = max(range(bits.dim()), key=lambda d: bits.shape[d])
        half = bits.shape[dim] // 2
        low, high = bits.narrow(dim, 0, half), bits.narrow(dim, half, bits.shape[dim] - half)
        return _summed(low, steps, first, piece) + _summed(high, steps, first + half * steps[dim], piece)
    keys = torch.full((1,) * bits.dim(), _signed(first + 1), dtype=torch.int64, device=bits.device)
    for dim, (extent, step) in enumerate(zip(bits.shape, steps, strict=True)):
        along = torch.arange(extent, dtype=torch.int64, device=bits.device) * _signed(step)
        keys = keys + along.view(*(-1 if d == dim else 1 for d in range(bits.dim())))
    # torch has signed words only: products wrap alike, shifts need the sign's copies taken away.
    values = bits.to(torch.int64) & _signed((1 << 8 * bits.element_size()) - 1)
    z = values + keys * _signed(GAMMA)
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return int((z ^ _shifted(z, SHIFTS[-1])).sum())


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
