"""Choosing a token: it follows from the logits, the request's seed and the token's place, and from nothing else.

So a request that moves to another replica, or is computed beside other requests, goes on with the same tokens.
"""

from __future__ import annotations

import math

import torch

from atoll.errors import NonFiniteError
from atoll.workers.engine import Sampling

# Keeps the streams of neighbouring places apart (the 64-bit golden ratio).
_SPREAD = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1
# Below this the likeliest token has all the weight, and logits divided by it may leave the range of a float.
_COLDEST = 1e-5


def choose(logits: torch.Tensor, sampling: Sampling, place: int) -> int:
    """The token after `place` tokens, from `logits` [vocab]. Raises `NonFiniteError` where nothing can be chosen."""
    # The maximum is NaN if any logit is; -inf is a token that the model rules out.
    if not math.isfinite(highest := float(logits.max())):
        raise NonFiniteError(f"the model's logits after {place} tokens reach {highest}: look at its weights and dtype")
    if sampling.temperature < _COLDEST:
        return int(logits.argmax())
    weights = _narrow(torch.softmax(logits.float() / sampling.temperature, dim=-1), sampling)
    generator = torch.Generator().manual_seed((sampling.seed * _SPREAD + place) & _MASK)
    return int(torch.multinomial(weights.cpu(), 1, generator=generator))


def _narrow(weights: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [vocab] with all but the top_k and top_p ones set to zero."""
    ordered, index = weights.sort(descending=True, stable=True)
    if sampling.top_k > 0:
        ordered[sampling.top_k :] = 0
    if sampling.top_p < 1:
        # Keep the smallest set that reaches top_p: all those before which less than top_p has been summed; always one.
        total = ordered.cumsum(0)
        ordered[1:][total[:-1] >= sampling.top_p * total[-1]] = 0
    return torch.zeros_like(weights).scatter_(0, index, ordered)
