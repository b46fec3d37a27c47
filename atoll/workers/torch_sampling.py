"""Choosing a token: it follows from the logits, the request's seed and the token's place, and from nothing else.

So a request that moves to another replica, or is computed beside other requests, goes on with the same tokens.
"""

from __future__ import annotations

import torch

from atoll.workers.engine import Sampling

# Keeps the streams of neighbouring places apart (the 64-bit golden ratio).
_SPREAD = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1


def choose(logits: torch.Tensor, sampling: Sampling, place: int) -> int:
    """The token after `place` tokens, from `logits` [vocab]."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    weights = _narrow(torch.softmax(logits.float() / sampling.temperature, dim=-1), sampling)
    generator = torch.Generator().manual_seed((sampling.seed * _SPREAD + place) & _MASK)
    return int(torch.multinomial(weights.cpu(), 1, generator=generator))


def _narrow(weights: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [vocab] with all but the top_k and top_p ones set to zero."""
    ordered, index = weights.sort(descending=True)
    if sampling.top_k > 0:
        ordered[sampling.top_k :] = 0
    # Keep the smallest set that reaches top_p: all those before which less than top_p has been summed.
    ordered[(ordered.cumsum(0) - ordered) >= sampling.top_p] = 0
    ordered[0] = max(float(ordered[0]), torch.finfo(ordered.dtype).tiny)
    return torch.zeros_like(weights).scatter_(0, index, ordered)
