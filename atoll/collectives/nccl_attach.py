"""What an epoch's communicator asks for once it is connected: NCCL inside its islands, if every rank has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from atoll.collectives.nccl_crossing import Peers
from atoll.collectives.nccl_cuda import CudaDevice, usable
from atoll.collectives.nccl_island import NcclIsland, open_island
from atoll.collectives.staging import layout_of
from atoll.schema.ids import NodeId
from atoll.schema.topology import Topology


def attach(
    peers: Peers,
    nodes: Sequence[NodeId],
    topology: Topology,
    *,
    deadline_s: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[NcclIsland | None, str]:
    """(this rank's island on its current CUDA device, "") or, the same on all ranks, (None, why not).

    Every rank of the epoch calls it, those without a GPU too: they are why the others then go over the host. `nodes` are
    the ranks' nodes in rank order. Raises `PeerLost` when the epoch ends or `deadline_s` passes meanwhile.
    """
    missing = usable()
    device = CudaDevice(torch.device("cuda")) if missing is None else None
    return open_island(
        peers, layout_of(nodes, topology), device, deadline_s=deadline_s, cancelled=cancelled, missing=missing or ""
    )
