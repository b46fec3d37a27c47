"""What programs do with `torch.distributed`, as functions of (rank, size) that return what must be the same on Gloo.

Values are small whole numbers where the order of additions may differ, so that results are equal bit for bit.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int8, torch.uint8)
COMPLEX = (torch.complex64, torch.complex128)
MOVED = (*FLOATS, *WHOLE, torch.bool, *COMPLEX)
R = dist.ReduceOp
ARITHMETIC = (R.SUM, R.PRODUCT, R.MIN, R.MAX)
BITS = (R.BAND, R.BOR, R.BXOR)
# What Gloo of torch 2.13 takes, by experiment; every pair is run on both.
REDUCIBLE = (
    *((d, op) for d in FLOATS for op in (*ARITHMETIC, R.AVG)),
    *((d, op) for d in (*WHOLE, torch.bool) for op in (*ARITHMETIC, *BITS)),
    *((d, op) for d in COMPLEX for op in (R.SUM, R.AVG)),
)


def values(rank, count, dtype=torch.float32):
    return ((torch.arange(count) * 3 + rank) % 5 + 1).to(dtype)


# -- collectives -----------------------------------------------------------------------------------------------------


def all_reduce(rank, size):
    found = []
    for dtype, op in REDUCIBLE:
        tensor = values(rank, 7, dtype)
        dist.all_reduce(tensor, op=op)
        found.append(tensor)
    for shape in ((), (0,), (3, 4, 5), (100_003,)):
        tensor = values(rank, torch.Size(shape).numel()).view(shape)
        dist.all_reduce(tensor)
        found.append(tensor)
    turned = values(rank, 12).view(3, 4).t()
    dist.all_reduce(turned)
    return [*found, turned]


def reduce(rank, size):
    found = []
    for root, (dtype, op) in enumerate(REDUCIBLE):
        tensor = values(rank, 6, dtype)
        dist.reduce(tensor, root % size, op=op)
        if rank == root % size:  # what others hold then is not defined on Gloo
            found.append(tensor)
    return found


def reduce_scatter(rank, size):
    found = []
    for dtype, op in REDUCIBLE:
        whole = values(rank, 3 * size, dtype)
        one, other = torch.empty(3, dtype=dtype), torch.empty(3, dtype=dtype)
        dist.reduce_scatter(one, list(whole.split(3)), op=op)
        dist.reduce_scatter_single(other, whole, op=op)
        found += [one, other]
    uneven = torch.zeros(rank + 1)
    dist.reduce_scatter(uneven, [values(rank, r + 1) for r in range(size)])
    outs = [torch.zeros(2), torch.zeros(3)]
    dist.group.WORLD.reduce_scatter_tensor_coalesced(outs, [values(rank, 2 * size), values(rank, 3 * size)]).wait()
    return [*found, uneven, *outs]


def all_reduce_of_several(rank, size):
    found = []
    for op in (R.SUM, R.MAX):
        tensors = [values(rank, 5), values(rank, 4).view(2, 2), values(rank, 1)]
        with quiet():
            dist.all_reduce_coalesced(tensors, op=op)
        found += tensors
    for dtype in (torch.float32, torch.float64):
        indices = torch.tensor([[rank, rank + 1], [0, 2]])
        sparse = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 2.0], dtype=dtype), (size + 2, 3))
        dist.all_reduce(sparse)
        found.append(sparse.to_dense())
    return found


def broadcast(rank, size):
    found = []
    for root, dtype in enumerate(MOVED):
        tensor = values(rank, 5, dtype)
        dist.broadcast(tensor, root % size)
        found.append(tensor)
    return found


def all_gather(rank, size):
    found = []
    for dtype in MOVED:
        mine = values(rank, 4, dtype).view(2, 2)
        lists = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(lists, mine)
        whole = torch.empty(2 * size, 2, dtype=dtype)
        dist.all_gather_single(whole, mine)
        found += [*lists, whole]
    nested = [[torch.empty(1), torch.empty(3)] for _ in range(size)]
    with quiet():
        dist.all_gather_coalesced(nested, [values(rank, 1), values(rank, 3)])
    outs = [torch.empty(size), torch.empty(2 * size)]
    dist.group.WORLD.allgather_into_tensor_coalesced(outs, [values(rank, 1), values(rank, 2)]).wait()
    empty = torch.empty(0)
    dist.all_gather_single(empty, torch.empty(0))
    return [*found, *(t for ts in nested for t in ts), *outs, empty]


def gather_and_scatter(rank, size):
    found = []
    for root, dtype in enumerate((*FLOATS, *WHOLE, torch.bool)):
        root %= size
        mine = values(rank, 4, dtype)
        lists = [torch.empty_like(mine) for _ in range(size)] if rank == root else None
        dist.gather(mine, lists, root)
        out = torch.empty_like(mine)
        dist.scatter(out, [values(r, 4, dtype) for r in range(size)] if rank == root else None, root)
        found += [*(lists or []), out]
    return found


def all_to_all(rank, size):
    found = []
    for dtype in MOVED:
        out = torch.empty(2 * size, 3, dtype=dtype)
        dist.all_to_all_single(out, values(rank, 6 * size, dtype).view(2 * size, 3))
        outs = [torch.empty(2, dtype=dtype) for _ in range(size)]
        dist.all_to_all(outs, list(values(rank, 2 * size, dtype).split(2)))
        found += [out, *outs]
    # Row counts that differ by pair, some of them none.
    gives = [(rank + r) % 3 for r in range(size)]
    out = torch.empty(sum(gives), 2)
    dist.all_to_all_single(out, values(rank, 2 * sum(gives)).view(-1, 2), gives, gives)
    return [*found, out]


def messages(rank, size):
    found = []
    right, left = (rank + 1) % size, (rank - 1) % size
    for tag, dtype in enumerate((*MOVED, torch.int16, torch.uint16)):
        out = torch.empty(5, dtype=dtype)
        ops = [
            dist.P2POp(dist.isend, values(rank, 5, dtype), right, tag=tag),
            dist.P2POp(dist.irecv, out, left, tag=tag),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        found.append(out)
    if rank == 0:
        came = []
        for _ in range(size - 1):
            out = torch.empty(2)
            source = dist.recv(out)
            came.append((source, out))
        found += [out for _, out in sorted(came, key=lambda c: c[0])]
    else:
        dist.send(values(rank, 2), 0)
    # Tags keep messages apart whatever the order of the receives.
    if rank == 0:
        dist.isend(values(1, 3), 1, tag=7).wait()
        dist.isend(values(2, 3), 1, tag=9).wait()
    elif rank == 1:
        nine, seven = torch.empty(3), torch.empty(3)
        one, other = dist.irecv(nine, 0, tag=9), dist.irecv(seven, 0, tag=7)
        one.wait(), other.wait()
        found += [nine, seven]
    return found


def objects(rank, size):
    lists = [None] * size
    dist.all_gather_object(lists, {"rank": rank, "text": "x" * (rank * 1000)})
    told = [{"from": rank}, rank * 2]
    dist.broadcast_object_list(told, src=size - 1)
    out = [None]
    dist.scatter_object_list(out, [f"for {r}" for r in range(size)] if rank == 1 else None, src=1)
    gathered = [None] * size if rank == 0 else None
    dist.gather_object(("g", rank), gathered, dst=0)
    return [lists, told, out, gathered]


def handles(rank, size):
    one, other = values(rank, 50_000), values(rank, 3)
    works = [dist.all_reduce(one, async_op=True), dist.all_reduce(other, async_op=True)]
    futures = [w.get_future() for w in works]
    works[1].wait()
    doubled = futures[0].then(lambda f: f.value()[0] * 2)
    chained = doubled.then(lambda f: later(f.value()))
    out = chained.wait()
    works[0].wait()
    lists = [torch.empty(2) for _ in range(size)]
    work = dist.all_gather(lists, values(rank, 2), async_op=True)
    work.wait()
    done = [w.is_completed() for w in (*works, work)]
    with dist._coalescing_manager(async_ops=True) as manager:
        a, b = values(rank, 4), values(rank, 2)
        dist.all_reduce(a)
        dist.all_reduce(b)
    manager.wait()
    dist.barrier()
    return [one, other, out, *lists, done, a, b, works[1].get_future().value()[0]]


def later(tensor):
    """What a communication hook does: another collective, waited for, inside a continuation."""
    dist.all_reduce(tensor)
    return tensor


# -- groups ----------------------------------------------------------------------------------------------------------


def groups(rank, size):
    found = []
    pairs = [dist.new_group([r, (r + 1) % size]) for r in range(size)]
    for pair in pairs:
        if dist.get_rank(pair) >= 0:
            tensor = values(rank, 4)
            dist.all_reduce(tensor, group=pair)
            found += [tensor, torch.tensor([dist.get_rank(pair), dist.get_world_size(pair)])]
    mine = [r for r in range(size) if r % 2 == rank % 2]
    local = dist.new_group(mine, use_local_synchronization=True)
    tensor = values(rank, 3)
    dist.broadcast(tensor, mine[-1], group=local)
    one = dist.new_group([rank], use_local_synchronization=True)
    alone = values(rank, 3)
    dist.all_reduce(alone, group=one)
    gathered = [torch.empty(3)]
    dist.all_gather(gathered, alone, group=one)
    dist.destroy_process_group(local)
    half, _ = dist.new_subgroups(group_size=2)
    within = values(rank, 4)
    dist.all_reduce(within, group=half)
    return [*found, tensor, alone, *gathered, within, dist.get_process_group_ranks(half)]


# -- what is built on it ---------------------------------------------------------------------------------------------


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
    return near([*losses, *(p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())]) + [
        moved.to_local(),
        whole.full_tensor(),
        summed,
    ]


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


def many_at_once(rank, size):
    """Collectives and messages of several groups side by side, waited for in another order."""
    other = dist.new_group(list(range(size)))
    tensors = [values(rank + i, 1000 + i) for i in range(20)]
    works = [dist.all_reduce(t, group=other if i % 2 else None, async_op=True) for i, t in enumerate(tensors)]
    out = torch.empty(50_000)
    works += [dist.isend(values(rank, 50_000), (rank + 1) % size), dist.irecv(out, (rank - 1) % size)]
    for work in reversed(works):
        work.wait()
    return [*tensors, out]


class quiet(warnings.catch_warnings):  # noqa: N801 - used as a context
    """torch's notes on its own deprecations."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")


class Near:
    """Values whose additions may be done in another order."""

    def __init__(self, tensors, within):
        self.tensors, self.within = [t.detach().clone() for t in tensors], within


def near(tensors, within=1e-5):
    return [Near(tensors, within)]


SCENARIOS = {
    f.__name__: f
    for f in (
        all_reduce, reduce, reduce_scatter, all_reduce_of_several, broadcast, all_gather, gather_and_scatter, all_to_all,
        messages, objects, handles, groups, ddp, ddp_hooks, fsdp, tensor_parallel, pipelines, checkpoints, many_at_once,
    )
}  # fmt: skip


def difference(one, other):
    """In words; "" where they are the same."""
    if type(one) is not type(other):
        return f"{type(one).__name__} and {type(other).__name__}"
    if isinstance(one, Near):
        for i, (a, b) in enumerate(zip(one.tensors, other.tensors, strict=True)):
            if not torch.allclose(a, b, rtol=one.within, atol=one.within):
                return f"at {i}: {(a - b).abs().max()} apart"
        return ""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
        return "" if same else f"{one.dtype} {one.flatten()[:8].tolist()} and {other.dtype} {other.flatten()[:8].tolist()}"
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{len(one)} and {len(other)} values"
        found = [f"at {i}: {d}" for i, (a, b) in enumerate(zip(one, other, strict=True)) if (d := difference(a, b))]
        return found[0] if found else ""
    return "" if one == other else f"{one!r} and {other!r}"
