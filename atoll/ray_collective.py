"""The backend `ATOLL` of `ray.util.collective`: importing this module registers it, in the driver and in every actor.

    import atoll.ray_collective
    from ray.util import collective
    collective.init_collective_group(world_size, rank, backend="ATOLL", group_name="default")

Ranks meet through a store on rank 0, whose address goes through Ray's key-value store; the groups are process groups of
`atoll.collectives` and leave the default group of `torch.distributed` alone. It lies beside the components, for it joins
Ray to `atoll.collectives`, which must run without Ray.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.experimental import internal_kv
from ray.util.collective import types
from ray.util.collective.backend_registry import _global_registry, register_collective_backend
from ray.util.collective.collective_group.base_collective_group import BaseGroup
from torch._C._distributed_c10d import TCPStore
from torch.distributed.constants import default_pg_timeout

from atoll.collectives.torch_backend import ProcessGroup, join

BACKEND = "ATOLL"
# How long ranks may come after one another: actors start one by one.
_MEETING = timedelta(seconds=120)
# A try to reach the store of rank 0; the address read may be that of an older group of the same name.
_TRY = timedelta(seconds=5)
_POLL_S = 0.05

Value = torch.Tensor | np.ndarray[Any, Any]

_OPS = {
    types.ReduceOp.SUM: dist.ReduceOp.SUM,
    types.ReduceOp.PRODUCT: dist.ReduceOp.PRODUCT,
    types.ReduceOp.MIN: dist.ReduceOp.MIN,
    types.ReduceOp.MAX: dist.ReduceOp.MAX,
}

__all__ = ["BACKEND", "Group", "register"]


class Group(BaseGroup):
    """One rank of a group. Ray wraps each argument in a list of one; operations return when they are done."""

    def __init__(self, world_size: int, rank: int, group_name: str) -> None:
        super().__init__(world_size, rank, group_name)
        self._key = f"atoll-collective-{group_name}"
        self._store = self._publish() if rank == 0 else self._reach()
        self._group: ProcessGroup = join(self._store, rank, world_size, default_pg_timeout, name=group_name)
        if rank == 0:
            internal_kv._internal_kv_del(self._key)  # noqa: SLF001 - as Ray's own groups use it; all have met

    def destroy_group(self) -> None:
        """Leave; no socket or thread stays."""
        self._group.shutdown()
        del self._store

    @classmethod
    def backend(cls) -> str:
        """The name by which Ray knows it."""
        return BACKEND

    @classmethod
    def check_backend_availability(cls) -> bool:
        """It needs no device."""
        return True

    # -- operations, as Ray names them -------------------------------------------------------------------------------

    def allreduce(self, tensor: Sequence[Value], allreduce_options: Any = None) -> None:
        """The sum over all ranks, in place."""
        opts = dist.AllreduceOptions()
        opts.reduceOp = _op(allreduce_options)
        self._group.allreduce(_tensors(tensor), opts).wait()

    def barrier(self, barrier_options: Any = None) -> None:
        """Until all ranks are here."""
        del barrier_options
        self._group.barrier().wait()

    def reduce(self, tensor: Sequence[Value], reduce_options: Any = None) -> None:
        """The sum on one rank; others keep their values."""
        opts = dist.ReduceOptions()
        opts.rootRank, opts.reduceOp = reduce_options.root_rank if reduce_options else 0, _op(reduce_options)
        self._group.reduce(_tensors(tensor), opts).wait()

    def broadcast(self, tensor: Sequence[Value], broadcast_options: Any = None) -> None:
        """The values of one rank, to all."""
        opts = dist.BroadcastOptions()
        opts.rootRank = broadcast_options.root_rank if broadcast_options else 0
        self._group.broadcast(_tensors(tensor), opts).wait()

    def allgather(
        self, tensor_list: Sequence[Sequence[Value]], tensor: Sequence[Value], allgather_options: Any = None
    ) -> None:
        """The values of all ranks, in rank order."""
        del allgather_options
        self._group.allgather([_tensors(tensor_list[0])], _tensors(tensor)).wait()

    def reducescatter(
        self, tensor: Sequence[Value], tensor_list: Sequence[Sequence[Value]], reducescatter_options: Any = None
    ) -> None:
        """This rank's piece of the sum. Unlike with Ray's Gloo group, the input keeps its values."""
        self._group.reduce_scatter(_tensors(tensor), [_tensors(tensor_list[0])], _op(reducescatter_options)).wait()

    def send(self, tensor: Sequence[Value], send_options: Any) -> None:
        """To one rank."""
        self._group.send(_tensors(tensor), send_options.dst_rank).wait()

    def recv(self, tensor: Sequence[Value], recv_options: Any) -> None:
        """From one rank."""
        self._group.recv(_tensors(tensor), recv_options.src_rank).wait()

    # -- meeting -----------------------------------------------------------------------------------------------------

    def _publish(self) -> TCPStore:
        host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        store = TCPStore(host, 0, self.world_size, True, _MEETING, wait_for_workers=False)  # noqa: FBT003 - torch's form
        internal_kv._internal_kv_put(self._key, json.dumps([host, store.port]))  # noqa: SLF001 - as Ray's own groups
        return store

    def _reach(self) -> TCPStore:
        deadline = time.monotonic() + _MEETING.total_seconds()
        problem = "rank 0 did not tell its address"
        while time.monotonic() < deadline:
            said = internal_kv._internal_kv_get(self._key)  # noqa: SLF001 - as Ray's own groups use it
            if said is not None:
                host, port = json.loads(said)
                try:
                    return TCPStore(host, port, self.world_size, False, _TRY, wait_for_workers=False)  # noqa: FBT003
                except RuntimeError as error:
                    problem = f"rank 0 does not answer at {host}:{port}: {error}"
            time.sleep(_POLL_S)
        raise dist.DistBackendError(
            f"rank {self.rank} cannot join group {self.group_name!r} of {self.world_size} within "
            f"{_MEETING.total_seconds():g} s: {problem}"
        )


def register() -> None:
    """Make the name known to Ray in this process; more than once does no harm."""
    if not _global_registry.is_registered(BACKEND):
        register_collective_backend(BACKEND, Group)


def _tensors(values: Sequence[Value]) -> list[torch.Tensor]:
    """Arrays share their memory with their tensors."""
    return [v if isinstance(v, torch.Tensor) else torch.from_numpy(v) for v in values]


def _op(options: Any) -> Any:  # torch's stubs know two types of it
    return _OPS[options.reduceOp if options is not None else types.ReduceOp.SUM]


register()
