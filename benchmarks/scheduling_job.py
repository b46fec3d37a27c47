"""The job whose first step `scheduling_first_step` waits for, as Atoll runs it; `peer_first_step` has it for Ray Train."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn

ELEMENTS, ROWS, STEPS = 65_536, 64, 3


class Ones(torch.utils.data.Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, _):
        return torch.ones(1)


def model():
    torch.set_num_threads(1)
    torch.manual_seed(11)
    return nn.Linear(1, ELEMENTS, bias=False)


def stamp(folder):
    """The moment of this process's first step: all processes of a machine share that clock."""
    Path(folder, f"{os.getpid()}.stamp").write_text(repr(time.monotonic()))


def train(ctx):
    module = model()
    module, optimizer = ctx.manage(module, torch.optim.SGD(module.parameters(), lr=1e-6))
    first = True
    for step in ctx.steps(Ones(), global_batch=8, micro_batch=4, steps=STEPS):
        with step:
            for batch in step:
                step.backward(module(batch).mean())
            optimizer.step()
        if first:
            stamp(ctx.config["stamps"])
            first = False
