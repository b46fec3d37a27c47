"""Inputs and results of scenarios on process groups, and how two results are compared."""

from __future__ import annotations

import warnings

import torch


def values(rank, count, dtype=torch.float32):
    return ((torch.arange(count) * 3 + rank) % 5 + 1).to(dtype)


class quiet(warnings.catch_warnings):  # noqa: N801 - used as a context
    """torch's notes on its own deprecations."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")


class Near:
    """Values whose additions may be done in another order."""

    def __init__(self, tensors, within):
        self.tensors, self.within = [t.detach().clone() for t in tensors], within


def near(tensors, within=1e-5):
    return [Near(tensors, within)]


def difference(one, other):
    """In words; "" where they are the same."""
    if type(one) is not type(other):
        return f"{type(one).__name__} and {type(other).__name__}"
    if isinstance(one, Near):
        return apart(one.tensors, other.tensors, one.within)
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
        return (
            "" if same else f"{one.dtype} {one.flatten()[:8].tolist()} and {other.dtype} {other.flatten()[:8].tolist()}"
        )
    if isinstance(one, list | tuple) and len(one) == len(other):
        found = [f"at {i}: {d}" for i, (a, b) in enumerate(zip(one, other, strict=True)) if (d := difference(a, b))]
        return found[0] if found else ""
    return "" if one == other else f"{one!r} and {other!r}"


def apart(ones, others, within):
    for i, (one, other) in enumerate(zip(ones, others, strict=True)):
        if not torch.allclose(one, other, rtol=within, atol=within):
            return f"at {i}: {(one - other).abs().max()} apart"
    return ""
