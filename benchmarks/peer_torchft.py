"""One replica group of torchft with one worker, as torchft's README starts it but without a launcher that restarts it.

Timeouts that are not given on the command line are torchft's own defaults.
"""

from __future__ import annotations

import argparse
import socket
from datetime import timedelta

import torch.distributed as dist
from peer_work import Stamps, loss_of, model, optimizer_of
from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo


def main():
    add = (parser := argparse.ArgumentParser()).add_argument
    add("--stamps", required=True)
    add("--lighthouse", required=True)
    add("--replica", required=True)
    add("--timeout", type=float)
    asked = parser.parse_args()
    given = {} if asked.timeout is None else {"timeout": timedelta(seconds=asked.timeout)}
    module = model()
    inner = optimizer_of(module)
    store = dist.TCPStore(socket.gethostname(), 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(**given),
        load_state_dict=lambda state: (module.load_state_dict(state["model"]), inner.load_state_dict(state["inner"])),
        state_dict=lambda: {"model": module.state_dict(), "inner": inner.state_dict()},
        min_replica_size=1,
        replica_id=f"replica_{asked.replica}",
        rank=0,
        world_size=1,
        store_addr=socket.gethostname(),
        store_port=store.port,
        lighthouse_addr=asked.lighthouse,
        **given,
    )
    train(manager, DistributedDataParallel(manager, module), Optimizer(manager, inner), Stamps(asked.stamps))


def train(manager, parallel, optimizer, stamps):
    quorum = None
    while True:
        optimizer.zero_grad()
        loss_of(parallel).backward()
        step = manager.current_step()
        optimizer.step()
        if manager._quorum_id != quorum:  # noqa: SLF001 - it tells its membership nowhere else
            quorum = manager._quorum_id  # noqa: SLF001
            stamps.regrouped(quorum)
        if manager.current_step() > step:
            stamps.add(step)


if __name__ == "__main__":
    main()
