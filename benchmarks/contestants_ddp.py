"""What a rank does in the race of training steps: the same small GPT under DDP, once over our backend and once over Gloo."""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from atoll.collectives import torch_backend
from benchmarks.contestants import STORE_PORT, digest
from benchmarks.ranks import Rank

# Sums over ranks round differently in another order; over a hundred small steps that stays far below this.
TOLERANCE = 1e-4
_BATCH, _LENGTH = 1, 64
_LIMIT = dt.timedelta(seconds=60)


def _gpt() -> Any:
    place = Path(__file__).parents[1] / "examples" / "gpt.py"
    spec = importlib.util.spec_from_file_location("gpt", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GPT


# Imported once, before the ranks are forked.
GPT = _gpt()


def prepare(rank: Rank, *, store: str) -> None:
    """The default group on Gloo, a second one around the communicator, and a model under DDP for each."""
    os.environ["GLOO_SOCKET_IFNAME"] = _interface(rank.things["primary"])  # noqa: TID251 - Gloo has no other way
    served = dist.TCPStore(store, STORE_PORT, rank.size, rank.number == 0)
    dist.init_process_group("gloo", store=served, rank=rank.number, world_size=rank.size, timeout=_LIMIT)
    options = torch_backend.Options(communicator=rank.things["communicator"])
    ours = dist.new_group(backend=torch_backend.BACKEND, pg_options=options)
    rank.things["models"] = {name: _Model(rank.number, group) for name, group in (("gloo", None), ("atoll", ours))}


class _Model:
    def __init__(self, number: int, group: Any) -> None:
        torch.manual_seed(0)
        self.model = DistributedDataParallel(GPT(), process_group=group)
        self.model.eval()  # no dropout: both models must see the same
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self._chance = torch.Generator().manual_seed(number)

    def batch(self) -> torch.Tensor:
        """[batch, length + 1] tokens."""
        return torch.randint(0, 256, (_BATCH, _LENGTH + 1), generator=self._chance)

    def step(self, tokens: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        scores = self.model(tokens[:, :-1])
        functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        self.optimizer.step()


def steps(rank: Rank, *, order: Sequence[str]) -> dict[str, list[float]]:
    """One training step by each name: starts and ends."""
    found: dict[str, list[float]] = {"starts": [], "ends": []}
    for name in order:
        model = rank.things["models"][name]
        tokens = model.batch()
        rank.gate()
        found["starts"].append(time.monotonic())
        model.step(tokens)
        found["ends"].append(time.monotonic())
    return found


def compare(rank: Rank) -> dict[str, Any]:
    """A digest of each model's weights, and the largest difference between the two."""
    weights = {
        name: torch.cat([p.detach().flatten() for p in m.model.parameters()])
        for name, m in rank.things["models"].items()
    }
    difference = float((weights["atoll"] - weights["gloo"]).abs().max())
    return {name: digest(values) for name, values in weights.items()} | {"difference": difference}


def _interface(address: str) -> str:
    """The NIC that has this address."""
    return next(str(name) for name, has in psutil.net_if_addrs().items() if any(a.address == address for a in has))
