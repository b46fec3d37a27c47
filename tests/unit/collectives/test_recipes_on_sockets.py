"""Every shape of plan, over real connections: the sums of torch, the same bits on all ranks."""

from __future__ import annotations

import pytest
import torch
from declared_network import MBIT, declared, island_nodes, two_nics

from atoll.collectives.plan_shapes import Recipe

GROUPS = {2: (0, 1), 3: ((0, 1), 2), 4: ((0, 1), (2, 3)), 5: (((0, 3), 1), (4, 2))}
KINDS = {
    "direct": {"shape": "direct"},
    "doubling": {"shape": "doubling"},
    "ring": {"shape": "ring", "slices": 3},
    "islands that meet": {"shape": "islands", "slices": 2},
    "islands in stars": {"shape": "islands", "star": True},
    "islands that climb": {"shape": "islands", "meet": False, "slices": 5},
}


def wait_all(works):
    assert [work.wait(10) or work.poison for work in works] == [True] * len(works)


def normal(size, count):
    return [torch.randn(count, generator=torch.Generator().manual_seed(r)) * 10.0**r for r in range(size)]


@pytest.mark.parametrize("together", [True, False], ids=["one host", "a host each"])
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_recipe_gives_the_sums_of_torch_and_the_same_bits_to_all(place, size, together):
    comms = place.epoch(size) if together else place.on(declared(island_nodes(size), lambda *_: 100 * MBIT))
    for words in KINDS.values():
        for weights in ((1.0,) * size, tuple(float(r % 2) for r in range(size))):
            recipe = Recipe(groups=GROUPS[size], weights=weights, **words)
            for count in (0, 1, size, 10_007):
                buffers, numbers = normal(size, count), [torch.arange(count) * (r + 1) for r in range(size)]
                exact = torch.stack(buffers).double().sum(0)
                works = [c.all_reduce(b, recipe=recipe) for c, b in zip(comms, buffers, strict=True)]
                works += [c.all_reduce(b, recipe=recipe, op="max") for c, b in zip(comms, numbers, strict=True)]
                wait_all(works)
                assert all(torch.equal(b.view(torch.int32), buffers[0].view(torch.int32)) for b in buffers), recipe
                assert torch.allclose(buffers[0].double(), exact, rtol=1e-5, atol=10.0**size * 1e-6), recipe
                assert all(torch.equal(n, torch.arange(count) * size) for n in numbers), recipe


@pytest.mark.parametrize("together", [True, False], ids=["one host", "a host each"])
@pytest.mark.parametrize("size", [2, 4, 5])
def test_sums_in_place_have_the_bits_of_others(place, size, together):
    comms = place.epoch(size) if together else place.on(declared(island_nodes(size), lambda *_: 100 * MBIT))
    for words in KINDS.values():
        recipe = Recipe(groups=GROUPS[size], weights=(1.0,) * size, **words)
        for count in (0, 1, 10_007):
            kept, used = normal(size, count), normal(size, count)
            views = [torch.stack([b, b])[1] for b in used]
            works = [c.all_reduce(b, recipe=recipe) for c, b in zip(comms, kept, strict=True)]
            works += [c.all_reduce(b, recipe=recipe, in_place=True) for c, b in zip(comms, used, strict=True)]
            works += [c.all_reduce(b, recipe=recipe, in_place=True) for c, b in zip(comms, views, strict=True)]
            wait_all(works)
            assert all(torch.equal(b.view(torch.int32), kept[0].view(torch.int32)) for b in used + views), recipe


def test_operations_of_all_shapes_in_flight_at_once_end_right(place):
    comms = place.on(two_nics(2, 2))
    recipes = [Recipe(groups=GROUPS[4], weights=(1.0,) * 4, **words) for words in KINDS.values()]
    buffers = [[torch.full((40_000 * (i % 3) + 1,), float(i + r)) for i in range(24)] for r in range(4)]
    works = [
        c.all_reduce(b, recipe=recipes[i % len(recipes)])
        for c, bs in zip(comms, buffers, strict=True)
        for i, b in enumerate(bs)
    ]
    wait_all([*works, *[c.barrier() for c in comms]])
    assert all(bool((b == 4.0 * i + 6).all()) for bs in buffers for i, b in enumerate(bs))


def test_what_was_called_first_is_done_first_though_all_is_queued(place):
    comms, order = place.on(two_nics(1, 1)), []
    recipe = Recipe(shape="direct", groups=(0, 1), weights=(1.0, 1.0))
    sizes = [2_000_000, 2_000_000, 500_000, 10]
    # Rank 1 has queued everything, the last also, before rank 0 begins to answer.
    theirs = [comms[1].all_reduce(torch.ones(n), recipe=recipe) for n in sizes]
    mine = [comms[0].all_reduce(torch.ones(n), recipe=recipe) for n in sizes]
    for number, work in enumerate(mine):
        work.add_done_callback(lambda _, number=number: order.append(number))
    wait_all([*mine, *theirs])
    assert order == [0, 1, 2, 3]


# -- connections -----------------------------------------------------------------------------------------------------


def received(sock):
    """Bytes that this connection has acknowledged to have received (tcpi_bytes_received)."""
    info = sock.getsockopt(6, 11, 136)  # IPPROTO_TCP, TCP_INFO
    return int.from_bytes(info[128:136], "little")


def test_a_link_that_one_connection_does_not_fill_gets_several_and_uses_all(place):
    nodes = island_nodes(2)
    comms = place.on(declared(nodes, lambda *_: 300 * MBIT, flow=100 * MBIT))
    assert [len(c.sockets()[1 - c.rank]) for c in comms] == [3, 3]
    recipe = Recipe(shape="ring", groups=(0, 1), weights=(1.0, 1.0), slices=6)
    buffers = [torch.full((120_000,), float(r + 1)) for r in range(2)]
    wait_all([c.all_reduce(b, recipe=recipe) for c, b in zip(comms, buffers, strict=True)])
    assert all(bool((b == 3.0).all()) for b in buffers)
    assert all(received(s) > 50_000 for c in comms for s in c.sockets()[1 - c.rank])


def test_messages_stay_in_order_though_a_link_has_several_connections(place):
    left, right = place.on(declared(island_nodes(2), lambda *_: 400 * MBIT, flow=100 * MBIT))
    buffers = [torch.zeros(1, dtype=torch.int64) for _ in range(50)]
    works = [right.recv(b, source=0) for b in buffers]
    works += [left.send(torch.tensor([i]), to=1) for i in range(50)]
    wait_all(works)
    assert [b.item() for b in buffers] == list(range(50))


def test_the_loss_of_one_of_several_connections_ends_the_epoch_with_its_rank(place):
    left, right = place.on(declared(island_nodes(2), lambda *_: 200 * MBIT, flow=100 * MBIT))
    works = [left.recv(torch.zeros(1), source=1), right.recv(torch.zeros(1), source=0)]
    right.sockets()[0][1].shutdown(2)
    assert [w.wait(5) for w in works] == [False, False]
    # Each saw the other's connection end, or was told first by the other that it had.
    assert {w.poison.culprit for w in works} <= {"t0", "t1"}


def test_ranks_of_several_nics_meet_by_the_recommended_ones(place):
    comms = place.on(two_nics(2, 2))

    def ends(one, other):
        return {s.getpeername()[0].rsplit(".", 1)[0] for s in comms[one].sockets()[other]}

    assert ends(1, 0) == ends(3, 2) == {"127.0.2"}
    assert ends(2, 0) == ends(3, 1) == {"127.0.3"}
    for comm in comms:
        for peer, socks in comm.sockets().items():  # the own address is the NIC's too, on both sides
            here, there = socks[0].getsockname()[0], socks[0].getpeername()[0]
            assert here.rsplit(".", 1)[0] == there.rsplit(".", 1)[0], (comm.rank, peer)
