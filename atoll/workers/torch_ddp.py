"""`DistributedDataParallel` as one sees it inside Atoll: a wrapper whose own reduction sleeps.

DDP's reducer cannot be taken through a retry (measured: an exception in its hook breaks the next try), and its buckets
follow the order of one process's backward, which a joiner would not share. So a managed DDP never synchronises: its
gradients go through Atoll's reducer like those of a plain module, whose hooks fire under DDP too. What would need DDP's
own reducer - a communication hook, a static graph - is refused with the remedy.

Its constructor wants a process group. `solo_group` gives this process one of its own, without peers, before the user's
code runs; it outlives every change of members (law 9).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel

from atoll.errors import StateError


@contextlib.contextmanager
def solo_group() -> Iterator[None]:
    """A default process group with this process alone (2 ms), unless there is one already."""
    mine = dist.is_available() and not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if mine and dist.is_initialized():
            dist.destroy_process_group()


def put_to_sleep(module: nn.Module) -> None:
    """Keep a DDP wrapper from reducing and broadcasting by itself."""
    if not isinstance(module, DistributedDataParallel):
        return
    if getattr(module, "_comm_hooks", None):
        raise StateError("DistributedDataParallel has a communication hook; remove it: Atoll reduces the gradients")
    if module.static_graph:
        raise StateError("DistributedDataParallel(static_graph=True) is not supported; leave static_graph out")
    module.require_backward_grad_sync = False
    module.broadcast_buffers = False


def bare(module: nn.Module) -> nn.Module:
    """The user's own module: checkpoints do not know of the wrapper."""
    if isinstance(module, DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return module
