"""Keys and values of the tokens already computed, in slots; and the attention over them.

A model that is served calls `cache.attend(layer, q, k, v)` where it would call scaled_dot_product_attention, and takes
its positions from `cache.positions`. That is all it needs to know: which slots a batch means and how long they are is
set by the engine before each forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention


class SlotCache:
    """One slot a request, each with room for `context` tokens; memory for a layer is taken when it is first used."""

    def __init__(self, *, slots: int, context: int) -> None:
        self._slots, self._context = slots, context
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows = torch.zeros(0, dtype=torch.int64)
        self._seen: torch.Tensor | slice = slice(0)
        self._fresh = torch.zeros(0, dtype=torch.int64)
        self._span = 0
        self._mask = torch.zeros(0, dtype=torch.bool)
        self.positions = torch.zeros(0, 0, dtype=torch.int64)

    def aim(self, slots: Sequence[int], positions: torch.Tensor) -> None:
        """The next forward computes `positions` [batch, length] of `slots`, as many as the batch."""
        self._rows = torch.tensor(slots, device=positions.device)
        # Slots in a row are a view of the memory; a copy of them costs more than the attention over them.
        in_a_row = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        self._seen = slice(slots[0], slots[0] + len(slots)) if in_a_row else self._rows
        # A new request's slot is wiped: what is masked counts as zero times its value, and a NaN left there would show.
        self._fresh = self._rows[positions[:, 0] == 0]
        self.positions = positions
        self._span = int(positions.max()) + 1
        keys = torch.arange(self._span, device=positions.device)
        # [batch, 1, length, span]: a token sees itself and what came before it.
        self._mask = (keys[None, None, :] <= positions[:, :, None])[:, None]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of `q` [batch, heads, length, head_dim] over all earlier keys and these.

        `k` and `v` are [batch, kv_heads, length, head_dim]; `heads` is a multiple of `kv_heads`.
        """
        keys, values = self._memory(layer, k, v)
        if self._fresh.numel():
            keys[self._fresh], values[self._fresh] = 0, 0
        rows = self._rows[:, None]
        # Indexed by [batch, length] on the slot and place dimensions: the heads come last.
        keys[rows, self.positions] = k.transpose(1, 2)
        values[rows, self.positions] = v.transpose(1, 2)
        seen_k = keys[self._seen, : self._span].transpose(1, 2)
        seen_v = values[self._seen, : self._span].transpose(1, 2)
        return scaled_dot_product_attention(
            q, seen_k, seen_v, attn_mask=self._mask, enable_gqa=q.shape[1] != k.shape[1]
        )

    def _memory(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._layers.get(layer)
        if found is None:
            # Heads last but one, so that a token's keys lie together: slots by context by kv_heads by head_dim.
            shapes = [(self._slots, self._context, t.shape[1], t.shape[3]) for t in (k, v)]
            found = (k.new_zeros(shapes[0]), v.new_zeros(shapes[1]))
            self._layers[layer] = found
        return found
