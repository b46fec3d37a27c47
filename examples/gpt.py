"""A decoder-only transformer over bytes, about 5M parameters, in plain PyTorch.

The `cache` is there only when the model is served: it then supplies the positions and the attention over earlier keys.
"""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, CONTEXT = 256, 6, 4, 128


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.norm1, self.norm2 = layer, nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.05))

    def forward(self, x, cache):  # x: [batch, length, width]
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = cache.attend(self.layer, q, k, v) if cache else F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    context = CONTEXT

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks, self.norm = nn.ModuleList(Block(i) for i in range(DEPTH)), nn.LayerNorm(WIDTH)
        self.apply(small_weights)

    def forward(self, tokens, cache=None):  # [batch, length] -> [batch, length, 256]
        positions = cache.positions if cache else torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(positions)
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x) @ self.tokens.weight.T


def small_weights(module):
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
