"""What a rank sees when others are lost, late, or of another opinion; and what a group leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import backend_ranks  # noqa: F401 - registers the backend and imports what ranks need
import torch
import torch.distributed as dist
from torch import nn


def joined(rank, size, folder, timeout_s=20.0, name="store"):
    dist.init_process_group(
        "atoll",
        init_method=f"file://{folder}/{name}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )


def raised(call):
    """(type, words, seconds) of what `call` raises."""
    begun = time.monotonic()
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is, the test judges it
        return [type(error).__name__, str(error), round(time.monotonic() - begun, 3)]
    return ["", "", round(time.monotonic() - begun, 3)]


def lost(rank, size, folder, ddp):
    """Rank 2 dies while the others wait for it in their second all-reduce."""
    joined(rank, size, folder)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4)) if ddp else None
    tensor = torch.ones(1000)
    dist.all_reduce(tensor)
    dist.barrier()
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    again = torch.ones(1000)
    if model is not None:
        found = raised(lambda: model(torch.ones(2, 4)).sum().backward())
    else:
        found = raised(lambda: dist.all_reduce(again))
    later = raised(dist.barrier)
    dist.destroy_process_group()
    return {"first": found, "later": later, "intact": bool((again == 1).all())}


def late(rank, size, folder, how):
    """Rank 1 does not come to the third operation."""
    joined(rank, size, folder, timeout_s=0.5)
    dist.all_reduce(torch.ones(3))
    if rank == 1:
        if how == "stopped":
            # Woken by a child, for it cannot wake itself.
            child = os.fork()
            if child == 0:
                time.sleep(2.2)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.waitpid(child, 0)
        else:
            time.sleep(1.2)
        found = raised(lambda: dist.all_reduce(torch.ones(3)))
        dist.destroy_process_group()
        return {"first": found}
    if how == "future":
        found = raised(lambda: dist.all_reduce(torch.ones(3), async_op=True).get_future().wait())
    elif how == "message":
        if rank == 2:
            time.sleep(1.0)
            found = None
        else:
            found = raised(lambda: dist.recv(torch.ones(3), 1))
    elif how == "handle":
        work = dist.all_reduce(torch.ones(3), async_op=True)
        found = raised(lambda: work.wait(timedelta(seconds=0.2)))
    else:
        found = raised(lambda: dist.all_reduce(torch.ones(3)))
    if how == "handle":
        again = raised(work.wait)
        found += again
    dist.destroy_process_group()
    return {"first": found}


OPINIONS = {
    "size": lambda rank: dist.all_reduce(torch.ones(4 + (rank == 1))),
    "dtype": lambda rank: dist.all_reduce(torch.ones(4, dtype=torch.float64 if rank == 1 else torch.float32)),
    "op": lambda rank: dist.all_reduce(torch.ones(4), op=dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM),
    "kind": lambda rank: dist.barrier() if rank == 1 else dist.all_reduce(torch.ones(4)),
    "product": lambda rank: dist.all_reduce(torch.ones(4 + (rank == 1)), op=dist.ReduceOp.PRODUCT),
    "gather": lambda rank: dist.all_gather_single(torch.ones(3 * (4 + (rank == 1))), torch.ones(4 + (rank == 1))),
    "scatter": lambda rank: dist.reduce_scatter_single(torch.ones(4 + (rank == 1)), torch.ones(3 * (4 + (rank == 1)))),
    "splits": lambda rank: dist.all_to_all_single(
        torch.ones(3 + (rank == 1)), torch.ones(3), [1, 1, 1 + (rank == 1)], [1, 1, 1]
    ),
}


def opinions(rank, size, folder):
    found = {}
    for name, call in OPINIONS.items():
        joined(rank, size, folder, name=name)
        found[name] = raised(lambda call=call: call(rank))
        dist.destroy_process_group()
    joined(rank, size, folder, name="message")
    if rank == 0:
        found["message"] = raised(lambda: (dist.send(torch.ones(3), 1), dist.barrier()))
    else:
        found["message"] = raised(lambda: (dist.recv(torch.ones(5), 0) if rank == 1 else None, dist.barrier()))
    dist.destroy_process_group()
    return found


def refused(rank, size, folder):
    """Arguments that no rank can make sense of: nothing is sent, and the group goes on."""
    joined(rank, size, folder)
    ones = torch.ones(4)
    calls = [
        lambda: dist.all_reduce(ones, op=dist.ReduceOp.BAND),
        lambda: dist.all_reduce(torch.ones(4, dtype=torch.int64), op=dist.ReduceOp.AVG),
        lambda: dist.all_reduce(torch.ones(4, dtype=torch.complex64), op=dist.ReduceOp.MAX),
        lambda: dist.all_gather([torch.ones(3)] * size, ones),
        lambda: dist.all_gather_single(torch.ones(3), ones),
        lambda: dist.reduce_scatter_single(torch.ones(3), ones),
        lambda: dist.all_to_all_single(torch.ones(size), torch.ones(size), [1] * size, [2] * size),
        lambda: dist.all_to_all_single(torch.ones(size + 1), torch.ones(size + 1)),
        lambda: dist.all_gather_single(torch.ones(size, 4).t(), ones),
        lambda: dist.send(ones, (rank + 1) % size, tag=70_000),
    ]
    found = [raised(call)[:2] for call in calls]
    dist.all_reduce(ones)
    dist.destroy_process_group()
    return {"refused": found, "sum": ones.tolist()}


def monitored(rank, size, folder):
    joined(rank, size, folder)
    group = dist.group.WORLD
    group.monitored_barrier(timedelta(seconds=5))
    if rank in (1, 3):
        time.sleep(1.5)
        dist.destroy_process_group()
        return None
    found = raised(lambda: group.monitored_barrier(timedelta(seconds=0.5)))
    dist.destroy_process_group()
    return found


def twice(rank, size, folder):
    """The ranks 0, 1 and 1 of three."""
    claimed = min(rank, 1)
    return raised(lambda: joined(claimed, size, folder, timeout_s=2.0))


def absent(rank, size, folder):
    """Rank 1 of two does not come."""
    return raised(lambda: joined(0, 2, folder, timeout_s=1.0))


def unreachable(rank, size, folder):
    """Rank 0 tells an address where nothing listens."""
    from atoll.collectives import torch_rendezvous

    class Elsewhere(torch_rendezvous.Listener):
        def __init__(self, *args):
            super().__init__(*args)
            if rank == 0:
                with socket.create_server(("127.0.0.1", 0)) as gone:
                    self.port = gone.getsockname()[1]

    torch_rendezvous.Listener = Elsewhere
    return raised(lambda: joined(rank, size, folder, timeout_s=1.5))


def life(rank, size, folder, port):
    """A group made and destroyed several times on one store, and what is left of it."""
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0, timeout=timedelta(seconds=20))
    before = left()
    found = []
    for _ in range(3):
        dist.init_process_group("atoll", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=20))
        other = dist.new_group(list(range(size)))
        tensor = torch.ones(2)
        dist.all_reduce(tensor, group=other)
        found.append(tensor.tolist())
        inside = left()
        dist.destroy_process_group()
    after = raised(lambda: other.allreduce([tensor]))
    del store
    return {"sums": found, "before": before, "inside": inside, "left": left(), "after": after}


def left():
    """Sockets and threads of this process."""
    sockets = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            sockets += str(fd.readlink()).startswith("socket:")
    return [sockets, sorted(t.name for t in threading.enumerate() if t is not threading.main_thread())]


def child_of_rank(rank, size, folder):
    """A forked child (of a data loader, say) holds no socket, cannot use the group, and does not hide its parent's end."""
    joined(rank, size, folder)
    dist.all_reduce(torch.ones(2))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        words = raised(lambda: dist.all_reduce(torch.ones(2)))
        os.write(write_end, f"{left()[0]} {words[0]}: {words[1]}".encode())
        time.sleep(2.0)
        os._exit(0)
    said = os.read(read_end, 4096).decode()
    dist.all_reduce(torch.ones(2))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ended = raised(lambda: dist.all_reduce(torch.ones(2)))
    dist.destroy_process_group()
    return {"child": said, "ended": ended}


def without_destroying(rank, size, folder):
    joined(rank, size, folder)
    dist.all_reduce(torch.ones(2))
    dist.barrier()
    from atoll.collectives.torch_group_life import _at_exit

    _at_exit()
    return left()


def more(rank, size, folder):
    """What passes here and not on Gloo, or not always."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    joined(rank, size, folder)
    group = dist.group.WORLD
    shapes = [torch.full((r + 1,), -1.0) for r in range(size)]
    dist.all_gather(shapes, torch.full((rank + 1,), float(rank)))
    column = torch.arange(12.0).view(3, 4)[:, 1] * (rank == 0)
    dist.broadcast(column, 0)
    old = torch.empty(2 * size)
    group._allgather_base(old, torch.full((2,), float(rank)), torch._C._distributed_c10d.AllgatherOptions()).wait()
    part = torch.empty(1)
    group._reduce_scatter_base(
        part, torch.arange(float(size)), torch._C._distributed_c10d.ReduceScatterOptions()
    ).wait()
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(32, 32))
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for step in range(4):
        torch.manual_seed(step * 10 + rank)
        model(torch.randn(4, 32)).square().sum().backward()
    digest = [float(p.grad.double().sum()) for p in model.parameters()]
    whole = [t.numel() for t in shapes] == [r + 1 for r in range(size)] and all(
        bool((t == r).all()) for r, t in enumerate(shapes)
    )
    dist.destroy_process_group()
    return {"uneven": whole, "column": column.tolist(), "old": old.tolist(), "part": part.tolist(), "digest": digest}


def adopts(rank, size, folder):
    """Elastic training: the group object lives on while epochs come and go; a lost peer raises nothing in torch."""
    import atoll.collectives.torch_backend as backend
    from atoll.collectives.tcp_transport import Listener
    from atoll.schema.ids import RunId

    store = dist.FileStore(f"{folder}/addresses", size)
    listener = Listener("127.0.0.1", b"s" * 32, RunId("r"))
    store.set(f"port-{rank}", str(listener.port))
    ports = [int(store.get(f"port-{r}")) for r in range(size)]
    one = epoch(listener, ports, list(range(size)), rank, 1)
    group = backend.init(one)
    empty = dist.new_group([0, 1])
    alone = torch.ones(2)
    if rank < 2:
        dist.all_reduce(alone, group=empty)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    model(torch.full((1, 3), float(rank))).sum().backward()
    whole = model.module.weight.grad.tolist()
    dist.barrier()
    if rank == size - 1:
        one.abort("leaves")
        listener.close()
        return None
    model.zero_grad()
    poisoned = raised(lambda: model(torch.ones(1, 3)).sum().backward())
    tensor = torch.ones(4)
    after = raised(lambda: dist.all_reduce(tensor))
    one.close()
    two = epoch(listener, ports, list(range(size - 1)), rank, 2)
    group.adopt(two)
    fewer = [dist.get_world_size(), group.size()]
    model.zero_grad()
    model(torch.full((1, 3), float(rank))).sum().backward()
    again = model.module.weight.grad.tolist()
    group.adopt(None)
    vacant = raised(lambda: dist.all_reduce(tensor))
    dist.destroy_process_group()
    working = two.all_reduce(torch.ones(1)).wait(5)
    two.barrier().wait(5)
    two.close()
    listener.close()
    return {
        "whole": whole, "poisoned": poisoned, "after": after, "tensor": tensor.tolist(), "fewer": fewer, "again": again,
        "vacant": vacant, "alone": alone.tolist(), "working": working, "left": left(),
    }  # fmt: skip


def epoch(listener, ports, ranks, rank, number):
    from atoll.collectives.tcp_communicator import connect
    from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
    from atoll.schema.messages import Member, Membership

    members = tuple(
        Member(trainer=TrainerId(f"t{r}"), rank=Rank(i), node=NodeId("n"), host="127.0.0.1", port=ports[r])
        for i, r in enumerate(ranks)
    )
    membership = Membership(run=RunId("r"), epoch=Epoch(number), members=members)
    return connect(membership, TrainerId(f"t{rank}"), listener, deadline_s=5, cancelled=lambda: False)
