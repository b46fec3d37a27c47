"""A driver with actors that use `ray.util.collective` over ATOLL: `ray_collective_driver.py ADDRESS TOKEN_FILE`; prints JSON.

All operations, then the group destroyed and made anew under its name, then an actor killed while the others wait for it.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from atoll.control_plane import ray_api

SIZE = 3


class Worker:
    """Runs in an actor."""

    def join(self, rank, group):
        import torch

        import atoll.ray_collective

        torch.set_num_threads(1)
        from ray.util import collective

        self.rank, self.group = rank, group
        collective.init_collective_group(SIZE, rank, backend=atoll.ray_collective.BACKEND, group_name=group)

    def everything(self):
        import torch
        from ray.util import collective
        from ray.util.collective.types import ReduceOp

        mine, group = self.rank + 1.0, self.group
        summed, largest = torch.full((4,), mine), np.full(4, mine, np.float32)
        collective.allreduce(summed, group)
        collective.allreduce(largest, group, ReduceOp.MAX)
        rooted = np.full(2, mine)
        collective.reduce(rooted, 1, group, ReduceOp.PRODUCT)
        told = torch.full((2,), mine)
        collective.broadcast(told, 2, group)
        lists = [np.zeros(2, np.int64) for _ in range(SIZE)]
        collective.allgather(lists, np.full(2, self.rank), group)
        piece, pieces = torch.zeros(2), [torch.full((2,), mine * (r + 1)) for r in range(SIZE)]
        collective.reducescatter(piece, pieces, group)
        got = torch.zeros(3)
        if self.rank == 0:
            collective.send(torch.arange(3.0), 1, group)
        elif self.rank == 1:
            collective.recv(got, 0, group)
        collective.barrier(group)
        found = {"sum": summed, "max": largest, "reduce": rooted, "told": told, "piece": piece, "got": got}
        return {k: v.tolist() for k, v in found.items()} | {"lists": [v.tolist() for v in lists]}

    def leave(self):
        import threading

        from ray.util import collective

        collective.destroy_collective_group(self.group)
        return [t.name for t in threading.enumerate() if t.name.startswith("atoll-")]

    def wait(self):
        import torch
        from ray.util import collective

        try:
            collective.allreduce(torch.ones(2), self.group)
        except RuntimeError as error:
            return str(error)
        return ""


def main(address, token_file):
    ray = ray_api.connect(address, token_file)
    actors = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(SIZE)]

    def joined():
        ray.get([a.join.remote(rank, "mixed") for rank, a in enumerate(actors)], timeout=90)

    joined()
    found = ray.get([a.everything.remote() for a in actors], timeout=30)
    left = ray.get([a.leave.remote() for a in actors], timeout=30)
    joined()
    waiting = [a.wait.remote() for a in actors[:2]]
    ray.kill(actors[2])
    lost = ray.get(waiting, timeout=30)
    for actor in actors[:2]:
        ray.kill(actor)
    sys.stdout.write(json.dumps({"found": found, "left": left, "lost": lost}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
