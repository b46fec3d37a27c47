"""The state that all parts of the checkpoint benchmark save: a sharded stack of layers with Adam's moments.

`fully_shard` over all ranks, as users of torch have it, so the very same tensors go to every contestant. Layers are made
without values and filled at once: whoever builds a model to load a state into it does not draw numbers first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo  # optimizers import it when first made: once here, not in every rank
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

# A weight and its two moments in float32.
_BYTES_A_WEIGHT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`blocks` of two layers each, of `width` and four times that."""

    width: int
    blocks: int

    @property
    def state_bytes(self) -> int:
        """Weights and moments."""
        return self.blocks * (8 * self.width * self.width + 5 * self.width) * _BYTES_A_WEIGHT

    def plain(self) -> dict[str, int]:
        """For a command to a rank."""
        return {"width": self.width, "blocks": self.blocks}


# 1.03 GiB, the least that is measured; a quick run is at a fiftieth of it.
FULL = Shape(width=1024, blocks=11)
QUICK = Shape(width=256, blocks=4)


class Block(nn.Module):
    """Two layers and the sum with what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[rows, width]."""
        return values + self.down(nn.functional.gelu(self.up(values)))


class Stack(nn.Sequential):
    """Blocks of which the first `deep` compute (None: all)."""

    deep: int | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[rows, width]."""
        for block in self[: self.deep]:
            values = block(values)
        return values


def stack(shape: Shape, mesh: DeviceMesh) -> tuple[Stack, torch.optim.AdamW]:
    """The model, sharded over `mesh`, and its optimizer, which has no moments yet."""
    with torch.device("meta"):
        model = Stack(*(Block(shape.width) for _ in range(shape.blocks)))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device=mesh.device_type)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01 / shape.width)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)


def shallow(shape: Shape, mesh: DeviceMesh) -> tuple[Stack, torch.optim.AdamW]:
    """As `stack`, of which only the first block computes and learns: its steps cost next to nothing.

    The others are frozen, with the moments that `with_moments` gives them.
    """
    model, optimizer = stack(shape, mesh)
    model.deep = 1
    for block in model[model.deep :]:
        block.requires_grad_(requires_grad=False)
    return model, optimizer


def with_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter that has none yet what Adam keeps of it."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if not optimizer.state.get(parameter):
            moments = {name: torch.full_like(parameter, 0.5) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}


def moved(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update with gradients by chance: the optimizer has its moments, and no two values are alike."""
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        parameter.grad.to_local().normal_()
    optimizer.step()
    optimizer.zero_grad()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What torch's own checkpoints take: references to live tensors."""
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}


def local(value: Any) -> Any:
    """The state with this rank's parts alone, as savers of plain tensors take it."""
    if isinstance(value, dict):
        return {key: local(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [local(item) for item in value]
    return value.to_local() if hasattr(value, "to_local") else value


def tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a state by their paths."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, dict):
        return {
            k: t for key, item in value.items() for k, t in tensors(item, f"{path}.{key}" if path else str(key)).items()
        }
    return {}
