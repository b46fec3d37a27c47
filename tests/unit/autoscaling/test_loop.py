"""The loop around the core, with a provider and a cluster in memory: threads, failures as facts, what is said."""

import threading

import pytest

from atoll.control_plane.arbiter.model import Amount, Ask
from atoll.control_plane.autoscaling.core import Autoscaler
from atoll.control_plane.autoscaling.facts import Machine, Standing
from atoll.control_plane.autoscaling.loop_runtime import Loop
from atoll.control_plane.autoscaling.provider import ProviderFailed, Sight, SoldOut
from atoll.control_plane.autoscaling.spec_toml import parse
from atoll.errors import ConnectError

FILE = """
cluster = "c"
provider = "command"
patience_s = 0
[types.a]
cpus = 4
max = 2
idle_s = 10
labels = { pool = "x" }
"""


class Clock:
    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    monotonic = now


class Rack:
    """Machines join the door's cluster when `join` is called. `wrong`: what the next order raises."""

    def __init__(self):
        self.orders, self.wrong, self.deaf = {}, None, False
        self.asked = threading.Semaphore(0)

    def machines(self):
        if self.deaf:
            raise ProviderFailed("the rack is away")
        return tuple(Machine(instance=o.instance, kind=o.kind) for o in self.orders.values())

    def launch(self, order):
        try:
            if self.wrong is not None:
                raise self.wrong
            self.orders[order.instance] = order
        finally:
            self.asked.release()

    def terminate(self, instance):
        self.asked.release()
        if self.wrong is not None:
            raise self.wrong
        self.orders.pop(instance, None)


class Door:
    def __init__(self):
        self.asks, self.nodes, self.drained, self.away = (), {}, {}, False

    def look(self):
        if self.away:
            raise ConnectError("nobody answers")
        return Sight(nodes=tuple(self.nodes.values()), asks=self.asks)

    def drain(self, node, within_s, reason):
        self.drained[node] = reason

    def undrain(self, node):
        del self.drained[node]


@pytest.fixture
def world():
    rack, door, clock, said = Rack(), Door(), Clock(), []
    loop = Loop(Autoscaler(parse(FILE, "f"), tag="t"), rack, door, clock, said.append)

    def turn(seconds=1.0, orders=0):
        loop.turn()
        for _ in range(orders):
            assert rack.asked.acquire(timeout=5)
        settled(loop)
        clock.time += seconds

    return rack, door, turn, said


def settled(loop):
    for thread in threading.enumerate():
        if thread.name.startswith("atoll-machine-"):
            thread.join(5)
    assert loop


def gang(workers=4):
    return (Ask(run="r", submitted_at=0.0, each=Amount(cpus=10_000), least=workers, most=workers),)


def test_order_carries_name_labels_and_resources(world):
    rack, door, turn, said = world
    door.asks = gang()
    turn(orders=1)
    order = rack.orders["a-t1"]
    assert order.labels == {
        "atoll-node-type": "a",
        "device": "cpu",
        "market": "on-demand",
        "pool": "x",
        "atoll-instance": "a-t1",
    }
    assert order.resources == {"CPU": 4.0}
    assert said == ["start a-t1: r waits for 4 workers: with 1 machine more (0 an hour) all fit"]


def test_sold_out_comes_back_as_a_fact_and_is_said(world):
    rack, door, turn, said = world
    door.asks, rack.wrong = gang(), SoldOut("none left")
    turn(orders=1)
    turn()
    assert "a: none left; not asked for in the next 60 s (failure 1 in a row)" in said
    assert rack.orders == {}


def test_provider_or_cluster_that_does_not_answer_is_said_once_and_nothing_is_done(world):
    rack, door, turn, said = world
    door.asks, rack.deaf = gang(), True
    for _ in range(3):
        turn()
    rack.deaf, door.away = False, True
    for _ in range(3):
        turn()
    assert said == [
        "the provider does not answer: the rack is away",
        "r waits for 4 workers and nothing is started: a: its provider does not answer, so that nobody knows what stands",
        "the cluster does not answer: nobody answers",
    ]
    door.away = False
    turn(orders=1)
    assert list(rack.orders) == ["a-t1"]


def test_machine_that_nobody_needs_is_drained_and_ended_also_when_the_first_try_fails(world):
    rack, door, turn, said = world
    door.asks = gang()
    turn(orders=1)
    full = Amount(cpus=40_000)
    node = Standing(node="n", labels={"atoll-instance": "a-t1"}, total=full, free=full)
    door.asks, door.nodes = (), {"n": node}
    for _ in range(13):
        turn()
    assert door.drained == {"n": "the autoscaler: nobody needed it for 10 s"}
    door.nodes = {"n": Standing(node="n", labels=node.labels, total=full, free=full, leaving_at=999.0, left=True)}
    rack.wrong = ProviderFailed("hangs")
    turn(orders=1)
    turn(40)
    assert "a-t1: hangs" in said
    rack.wrong = None
    turn(orders=1)
    assert rack.orders == {}


def test_run_ends_when_it_is_told(world):
    rack, door, _, said = world
    loop = Loop(Autoscaler(parse(FILE, "f"), tag="u"), rack, door, Clock(), said.append)
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,), daemon=True)
    thread.start()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
