"""As `session_ranks`, for a model that is sharded over the trainers. Each writes its shards at the end."""

from __future__ import annotations

import json
import sys

import session_ranks
import torch
from session_ranks import STEPS
from torch import nn
from torch.distributed.fsdp import fully_shard

import atoll.workers.torch_sharded  # noqa: F401 - once here, not in every child


def build() -> nn.Module:
    """As there, but for a bias whose gradient is nothing but rounding, since batch norm takes it off again."""
    model = session_ranks_build()
    model[0] = nn.Linear(8, 32, bias=False)
    return model


def built(mesh):
    model = build()
    fully_shard(model[0], mesh=mesh)
    fully_shard(model[4], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def train(ctx) -> None:
    if ctx.config["plain"]:
        session_ranks_train(ctx)
        return
    inputs = torch.randn(96, 8, generator=torch.Generator().manual_seed(3))
    data = (inputs, inputs.square().sum(1, keepdim=True))
    parts = ctx.manage(built, shard=ctx.config["shard"], copy_every=ctx.config.get("copy_every", 1))
    for step in ctx.steps(data, global_batch=24, micro_batch=4, steps=STEPS):
        if step.index == ctx.config.get("durable_by"):
            session_ranks.wait_for(ctx._host.identity.run_dir / "checkpoints" / "step-00000002" / "commit.json")
        with step:
            for x, y in step:
                loss = nn.functional.mse_loss(parts.model(x), y)
                step.backward(loss)
                step.report(loss=loss.detach())
            nn.utils.clip_grad_norm_(parts.model.parameters(), 5.0)
            parts.optimizer.step()
            parts.scheduler.step()
    write_final(ctx, parts)


def write_final(ctx, parts) -> None:
    tensors = {f"model.{n}": t for n, t in parts.model.state_dict().items()}
    for at, state in parts.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{at}.{key}": t for key, t in state.items()}
    shards = {n: t.to_local() for n, t in tensors.items() if hasattr(t, "to_local")}
    same = {n: t for n, t in tensors.items() if n not in shards}
    mesh = next(iter(t.device_mesh for t in tensors.values() if hasattr(t, "to_local")))
    folder = ctx._host.identity.run_dir / "final"
    folder.mkdir(exist_ok=True)
    value = {
        "index": mesh.get_local_rank(),
        "size": mesh.size(),
        "shards": {n: t.tolist() for n, t in shards.items()},
        "same": {n: t.tolist() for n, t in same.items()},
        "lr": parts.scheduler.get_last_lr()[0],
    }
    (folder / f"{ctx._host.identity.trainer}.json").write_text(json.dumps(value))


session_ranks_train, session_ranks_build = session_ranks.train, session_ranks.build

if __name__ == "__main__":
    session_ranks.train, session_ranks.build = train, build
    for each in json.loads(sys.argv[1]):
        print(json.dumps(session_ranks.outcome(each)), flush=True)  # noqa: T201 - the result
