"""Operations that pile up behind slow links, in more windows than are told before they begin."""

from __future__ import annotations

import threading

import pytest
import torch
from declared_network import MBIT, declared, island_nodes

COUNT, OPERATIONS = 70_000, 60


@pytest.mark.parametrize("flow", [None, 4 * MBIT], ids=["one connection", "three connections"])
def test_operations_of_many_windows_at_once_end_right_and_alike(place, flow):
    told = {} if flow is None else {"flow": flow}
    comms = place.on(declared(island_nodes(3), lambda *_: 10 * MBIT, **told))
    found = [[torch.full((COUNT,), float(rank + n)) for n in range(OPERATIONS)] for rank in range(3)]

    def reduced(rank):
        for work in [comms[rank].all_reduce(buffer, in_place=True) for buffer in found[rank]]:
            work.wait(30)

    threads = [threading.Thread(target=reduced, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [comm.poisoned for comm in comms] == [None] * 3
    assert all(len({float(buffer[-1]) for buffer in buffers}) == 1 for buffers in zip(*found, strict=True))
    assert [float(buffer[0]) for buffer in found[0]] == [3.0 * n + 3 for n in range(OPERATIONS)]
