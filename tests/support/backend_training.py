"""What torch builds on process groups, as functions of (rank, size) that return what must be the same on Gloo."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from backend_values import near, quiet
from torch import nn
from torch.distributed.device_mesh import init_device_mesh


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, 16), nn.Linear(16, 4), nn.BatchNorm1d(16)

    def forward(self, x):
        return self.second(self.norm(torch.relu(self.first(x))))


def made(kind=Net):
    torch.manual_seed(7)
    return kind()


def batch(rank, step):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(8, 8, generator=generator), torch.randn(8, 4, generator=generator)


def trained(model, rank, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        x, y = batch(rank, step)
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def ddp(rank, size):
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(made(), bucket_cap_mb=0.0005)
    losses = trained(model, rank)
    with model.no_sync():
        model(batch(rank, 9)[0]).sum().backward()
    model(batch(rank, 10)[0]).sum().backward()
    return near([*losses, *model.parameters(), *(p.grad for p in model.parameters()), *model.buffers()])


def ddp_hooks(rank, size):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.nn.parallel import DistributedDataParallel

    found = []
    for hook in (default_hooks.allreduce_hook, default_hooks.fp16_compress_hook):
        model = DistributedDataParallel(made())
        model.register_comm_hook(None, hook)
        trained(model, rank)
        found += list(model.parameters())
    with dist.algorithms.join.Join([model]):
        for step in range(rank + 1):
            model(batch(rank, step)[0]).sum().backward()
    return near(found, 2e-2)


def fsdp(rank, size):
    from torch.distributed.fsdp import fully_shard

    found = []
    for shape, names in (((size,), None), ((2, size // 2), ("replicate", "shard"))):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        model = made(partial(nn.Sequential, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        found += trained(model, rank)
        found += [p.full_tensor() for p in model.parameters()]
    return near(found)


def tensor_parallel(rank, size):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (size,))
    model = made(partial(nn.Sequential, nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)))
    plan = {
        "0": ColwiseParallel(output_layouts=Shard(0)),
        "1": SequenceParallel(sequence_dim=0),
        "2": RowwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    }
    with quiet():
        model = parallelize_module(model, mesh, plan)
        losses = trained(model, 0)
    whole = distribute_tensor(torch.arange(4.0 * size * size).view(2 * size, 2 * size), mesh, [Shard(0)])
    moved = whole.redistribute(mesh, [Shard(1)])
    summed = DTensor.from_local(torch.full((2,), float(rank)), mesh, [dist.tensor.Partial()]).full_tensor()
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [*near([*losses, *weights]), moved.to_local(), whole.full_tensor(), summed]


def pipelines(rank, size):
    from torch.distributed.pipelining import PipelineStage, schedules

    found = []
    for name, per_rank, style in (
        ("ScheduleGPipe", 1, "loop"),
        ("Schedule1F1B", 1, "loop"),
        ("ScheduleInterleaved1F1B", 2, "loop"),
        ("ScheduleLoopedBFS", 2, "loop"),
        ("ScheduleInterleavedZeroBubble", 2, "loop"),
        ("ScheduleZBVZeroBubble", 2, "v"),
        ("ScheduleDualPipeV", 2, "v"),
    ):
        count = size * per_rank
        mine = [rank + i * size for i in range(per_rank)] if style == "loop" else [rank, count - 1 - rank]
        torch.manual_seed(3)
        layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(count)]
        stages = [PipelineStage(layers[i], i, count, torch.device("cpu")) for i in mine]
        kind = getattr(schedules, name)
        loss = nn.functional.mse_loss
        schedule = kind(stages[0] if per_rank == 1 else stages, 2 * size, loss_fn=loss)
        x, y = torch.arange(24.0 * size).view(4 * size, 6) / 50, torch.ones(4 * size, 6)
        first, last = 0 in mine, count - 1 in mine
        losses = []
        for _ in range(2):
            schedule.step(*([x] if first else []), **({"target": y, "losses": losses} if last else {}))
        found += [p.grad for i in mine for p in layers[i].parameters()] + losses
    return near(found)


def checkpoints(rank, size, folder=""):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    whole = torch.arange(6.0 * size).view(2 * size, 3)
    found = []
    for name, save in (("now", dcp.save), ("later", dcp.async_save)):
        state = {"w": distribute_tensor(whole, mesh, [Shard(0)]), "step": 5}
        where = f"{folder}/{dist.get_backend()}-{name}"
        with quiet():
            saved = save(state, checkpoint_id=where)
            if name == "later":
                saved.result()
            state = {"w": distribute_tensor(torch.zeros_like(whole), mesh, [Shard(0)]), "step": 0}
            dcp.load(state, checkpoint_id=where)
        found += [state["w"].to_local(), state["step"]]
    return found


SCENARIOS = {f.__name__: f for f in (ddp, ddp_hooks, fsdp, tensor_parallel, pipelines, checkpoints)}
