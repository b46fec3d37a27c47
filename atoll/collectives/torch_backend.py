"""The `torch.distributed` backend `atoll`: importing this module registers it.

    import atoll.collectives.torch_backend
    torch.distributed.init_process_group("atoll")

Any store will do (`env://`, `file://`, a `TCPStore`). Where a communicator is there already, as under elastic training,
`init(communicator)` makes the default group around it without a peer or a store of the network; groups that torch then
makes of it are empty until they `adopt` one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.torch_group_life import BACKEND, Own, install
from atoll.collectives.torch_process_group import ProcessGroup
from atoll.collectives.torch_rendezvous import NOWHERE, Place, meet

__all__ = ["BACKEND", "Options", "Place", "ProcessGroup", "init", "join", "register"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`pg_options` of `init_process_group` and `new_group`.

    `communicator`: carry the group by this one. `adopts`: by one that comes later. Else ranks meet through the store;
    `place` says what is known of the network, which groups made from this one then know too.
    """

    communicator: Communicator | None = None
    adopts: bool = False
    place: Place = NOWHERE


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
    group = _met(store, rank, range(size), timeout, NOWHERE)
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
    chosen = options if isinstance(options, Options) else _as_the_default_group()
    if chosen.adopts or chosen.communicator is not None:
        return ProcessGroup(rank, size, chosen.communicator)
    names = list(place.global_ranks_in_group) or list(range(size))
    return _met(place.store, rank, names, place.timeout, chosen.place)


def _met(store: Store, rank: int, names: Sequence[int], timeout: timedelta, place: Place) -> ProcessGroup:
    communicator = meet(store, rank, names, timeout, place)
    return ProcessGroup(rank, len(names), communicator, Own(store=store, timeout=timeout, names=names, network=place))


def _as_the_default_group() -> Options:
    """If the default group's communicator is somebody else's, so are those of all groups; what it knows, they know."""
    default = dist.group.WORLD if dist.is_initialized() else None
    if not isinstance(default, ProcessGroup):
        return Options()
    if not default.divisible:
        raise ValueError(
            "no groups can be made of the mesh that ctx.manage hands to build: nothing would carry them; use that mesh as it "
            "is, and ctx.manage(build, shard=...) for replica groups"
        )
    return Options(adopts=default.adopted, place=default.place)


register()
