"""The `torch.distributed` backend `atoll`: importing this module registers it.

    import atoll.collectives.torch_backend
    torch.distributed.init_process_group("atoll")

Any store will do (`env://`, `file://`, a `TCPStore`). Where a communicator is there already, as under elastic training,
`init(communicator)` makes the default group around it without a peer or a store of the network; groups that torch then
makes of it are empty until they `adopt` one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.torch_group_life import BACKEND, Own, install
from atoll.collectives.torch_process_group import ProcessGroup
from atoll.collectives.torch_rendezvous import meet

__all__ = ["BACKEND", "Options", "ProcessGroup", "init", "join", "register"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`pg_options` of `init_process_group` and `new_group`. `communicator`: carry the group by this one; None: adopt later."""

    communicator: Communicator | None = None


def init(communicator: Communicator) -> ProcessGroup:
    """Make the default group of `torch.distributed` around `communicator`. `adopt` swaps it at the next epoch."""
    dist.init_process_group(
        BACKEND,
        store=HashStore(),
        rank=communicator.rank,
        world_size=communicator.size,
        pg_options=Options(communicator=communicator),
    )
    return cast("ProcessGroup", dist.group.WORLD)


def join(store: Store, rank: int, size: int, timeout: timedelta, *, name: str = BACKEND) -> ProcessGroup:
    """A group beside those that `torch.distributed` knows; its ranks meet through `store`."""
    names = range(size)
    group = ProcessGroup(rank, size, meet(store, rank, names, timeout), Own(store=store, timeout=timeout, names=names))
    group._set_group_name(name)  # noqa: SLF001 - torch's name for it
    install()
    return group


def register() -> None:
    """Make the name `atoll` known to `torch.distributed`; more than once does no harm."""
    if BACKEND.upper() not in dist.Backend._plugins:  # noqa: SLF001 - torch has no other way to ask
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])
        install()


def _create(place: Any, options: Options | None) -> ProcessGroup:
    rank, size = place.group_rank, place.group_size
    if isinstance(options, Options):
        return ProcessGroup(rank, size, options.communicator)
    if _elastic():
        return ProcessGroup(rank, size, None)
    names = list(place.global_ranks_in_group) or list(range(size))
    timeout: timedelta = place.timeout
    communicator = meet(place.store, rank, names, timeout)
    return ProcessGroup(rank, size, communicator, Own(store=place.store, timeout=timeout, names=names))


def _elastic() -> bool:
    """Whether the default group's communicator is somebody else's: then so are those of all groups."""
    if not dist.is_initialized():
        return False
    default = dist.group.WORLD
    return isinstance(default, ProcessGroup) and default.adopted


register()
