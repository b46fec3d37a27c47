"""What the recovery benchmark trains, and the hand that its faults have inside a trainer.

`emulated`: compute is a calibrated sleep for each micro-batch and gradients are real, so that two cores can stand for
four hosts: for figures in seconds. `text`: a small GPT on the source of Python's standard library: for exactness.

Each trainer stamps every step it commits with the monotonic clock, which all processes of one machine share, on
returning from the managed `optimizer.step`: a try that was given up never returns from there. SIGUSR1 has it read an
order from a file: faults that no signal can make from outside, such as a GIL that is never given back.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sysconfig
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import atoll
from atoll.fault.inject import arm

ROWS = 4096
WINDOW = 64
# Rare enough that whoever has the turn meanwhile does not feel it.
_GATE_LOOK_S = 0.05


class Stamps:
    """Appends lines to a file of this process's own; whole lines or none survive a SIGKILL."""

    def __init__(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = os.open(f"{folder}/{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, what, value=0):
        line = json.dumps([what, value, time.monotonic(), time.process_time()])
        os.write(self._file, f"{line}\n".encode())


class Orders:
    """Faults from inside. `pace` is what compute is stretched by."""

    def __init__(self, folder, stamps):
        self.pace = 1.0
        self.weights = None
        self._folder, self._stamps = Path(folder), stamps
        self._folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGUSR1, lambda *_: self._take(self._folder / str(os.getpid())))
        # For whoever takes a seat next: there is no process yet that could be signalled.
        self._take(self._folder / "next")

    def _take(self, file):
        try:
            word, _, value = file.read_text().partition(" ")
            file.unlink()
        except FileNotFoundError:
            return
        if word == "gil":
            self._stamps.add("fault")
            while True:  # a call through PyDLL keeps the GIL
                ctypes.PyDLL(None).sleep(1 << 20)
        if word == "pace":
            self.pace = float(value)
        if word == "die":
            arm(value, self._die)
        if word == "flip":
            arm("before-vote", self._flip)

    def _die(self):
        self._stamps.add("fault")
        os.kill(os.getpid(), signal.SIGKILL)

    def _flip(self):
        self._stamps.add("fault")
        self.weights.detach().view(-1).view(torch.int32)[0] ^= 1 << 20


class Numbered(torch.utils.data.Dataset):
    """Rows that are told apart by their number, which is all that an emulated model needs."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return torch.tensor([index % 7 - 3.0])


def emulated(ctx):
    torch.set_num_threads(1)
    stamps = Stamps(ctx.config["stamps"])
    orders = Orders(ctx.config["orders"], stamps)
    model = nn.Linear(1, ctx.config.get("elements", 65536), bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    ctx.manage(model, optimizer)
    orders.weights = model.weight
    grains, grain_s = ctx.config.get("grains", 12), ctx.config.get("grain_s", 0.04)
    for step in ctx.steps(Numbered(), global_batch=grains, micro_batch=1, steps=ctx.config.get("steps", 10**6)):
        with step:
            for batch in step:
                time.sleep(grain_s * orders.pace)
                loss = model(batch).mean()
                step.backward(loss)
                step.report(loss=loss)
            optimizer.step()
        stamps.add("commit", step.index)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):  # [batch, length, width]
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class SmallGPT(nn.Module):
    """About 0.1M parameters over bytes."""

    def __init__(self, width=64, depth=2, heads=4, context=WINDOW):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.layers, self.norm = nn.Sequential(*(Layer(width, heads) for _ in range(depth))), nn.LayerNorm(width)

    def forward(self, tokens):  # [batch, length] -> [batch, length, 256]
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.norm(self.layers(x)) @ self.tokens.weight.T


def corpus(size):
    """The first `size` bytes of the standard library's source, in the order of names."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= size:
            break
    return bytes(text[:size])


def _let_through(gate, step):
    """Wait until the gate's file names this step or a later one: how a run takes turns with a peer's."""
    while int(Path(gate).read_text() or 0) < step:
        time.sleep(_GATE_LOOK_S)


def text(ctx):
    torch.set_num_threads(1)
    stamps = Stamps(ctx.config["stamps"])
    orders = Orders(ctx.config["orders"], stamps)
    model = SmallGPT(**ctx.config.get("shape", {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ctx.manage(model, optimizer)
    data = atoll.TokenFile(corpus(1 << 20), window=WINDOW)
    batch, micro = ctx.config.get("batches", (24, 2))
    gate = ctx.config.get("gate")
    for step in ctx.steps(data, global_batch=batch, micro_batch=micro, steps=ctx.config["steps"]):
        if gate:
            _let_through(gate, step.index)
        with step:
            for batch in step:
                if orders.pace > 1:
                    time.sleep(0.01 * (orders.pace - 1))
                loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
                step.backward(loss)
                step.report(loss=loss)
            optimizer.step()
        stamps.add("commit", step.index)
