"""What programs do with `torch.distributed`, as functions of (rank, size) that return what must be the same on Gloo.

Values are small whole numbers where the order of additions may differ, so that results are equal bit for bit.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from backend_values import quiet, values

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
    for number, dtype in enumerate((*FLOATS, *WHOLE, torch.bool)):
        root = number % size
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


SCENARIOS = {
    f.__name__: f
    for f in (
        all_reduce, reduce, reduce_scatter, all_reduce_of_several, broadcast, all_gather, gather_and_scatter, all_to_all,
        messages, objects, handles, groups, many_at_once,
    )
}  # fmt: skip
