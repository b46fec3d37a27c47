"""What a peer's workers train in `benchmarks.recovery_peers`: Atoll's emulated job, and stamps of the steps they commit.

The same figures as the job of `recovery_job`: a step's compute is a sleep, so that two cores can stand for four hosts,
and its gradients are real and go through the peer's own data parallelism. Imports nothing of Atoll: peers start as
fast as they can.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import torch
from torch import nn

ELEMENTS = 65536
# Of 12 grains of 0.04 s, as four workers share them.
COMPUTE_S = 0.12
# Of those peers that go back to a checkpoint: about two seconds of work.
CHECKPOINT_EVERY = 10


class Stamps:
    """A line for each committed step: which, when, since when its membership stands (monotonic seconds), and its name.

    All processes of one machine share that clock. The file is named by pid and start, which name a process beyond doubt.
    """

    def __init__(self, folder):
        self.regrouped(os.getpid())
        Path(folder).mkdir(parents=True, exist_ok=True)
        stat = Path("/proc/self/stat").read_text()
        ticks = stat.rpartition(")")[2].split()[19]
        name = f"{folder}/{socket.gethostname()}-{os.getpid()}-{ticks}.jsonl"
        self._file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def regrouped(self, group):
        """From now on it is another membership."""
        self._began, self._group = time.monotonic(), group

    def add(self, step):
        line = json.dumps([step, time.monotonic(), self._began, self._group])
        os.write(self._file, f"{line}\n".encode())


def model():
    torch.set_num_threads(1)
    torch.manual_seed(11)
    return nn.Linear(1, ELEMENTS, bias=False)


def optimizer_of(module):
    return torch.optim.SGD(module.parameters(), lr=1e-6)


def loss_of(module):
    """Compute, then the forward pass. The backward pass is where peers reduce."""
    time.sleep(COMPUTE_S)
    return module(torch.ones(1, 1)).mean()
