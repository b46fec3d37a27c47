"""How long the arbiter's core takes: one tick over a large cluster, cold and warm, and how many events it takes a second.

The cluster is imagined, the core is the one that the control plane runs. Islands of 32 nodes; classes differ in device, NIC,
zone, size and price, several to an island. Most of it is held by grants of 1 to 128 workers, half of them elastic, a third
without a known end; those who wait are of eight queues, some with quotas in two cohorts, of all sizes, with one to three
alternatives, half of them with declared speeds on several devices.

*Cold* is from a snapshot: the index built and one tick. *Warm* is a tick after a second's worth of events on an arbiter that
ticked before. Times are processor time of the one process, garbage collection included: the core waits for nothing, so on a
machine of its own that is the time that passes, and what other programs take meanwhile is not counted.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from dataclasses import replace

from atoll.control_plane.arbiter.core import Arbiter
from atoll.control_plane.arbiter.events import AskAdded, AskWithdrawn, GrantChanged, GrantEnded, NodeCameOrChanged
from atoll.control_plane.arbiter.model import (
    Amount,
    Ask,
    Flavor,
    Grant,
    IslandState,
    NodeClass,
    NodeState,
    Option,
    QueueSpec,
    Quota,
    Snapshot,
)
from atoll.control_plane.arbiter.state import grant_of

GPU, CPU = 10_000, 10_000
DEVICES = ("T4", "V100", "A10", "A100", "H100", "H200", "L40S", "MI300")
ISLAND = 32
SIZES = (1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 32, 64, 128)
WARM_TICKS = 10
EVENTS_BETWEEN = 100


def cluster(nodes: int, classes: int, seed: int) -> Snapshot:
    """Empty nodes of so many classes, flavors by device, queues."""
    rng = random.Random(seed)
    kinds = [
        NodeClass(
            name=f"class-{n}",
            device=DEVICES[n % len(DEVICES)],
            total=Amount(cpus=CPU * rng.choice((32, 64, 96, 128)), gpus=GPU * rng.choice((4, 8, 8))),
            labels={"nic": rng.choice(("100G", "200G", "400G")), "zone": f"z{n % 5}", "batch": str(n)},
            price_per_hour=round(rng.uniform(2, 40), 2),
            spot=rng.random() < 0.2,
        )
        for n in range(classes)
    ]
    states, islands = [], []
    for n in range(nodes):
        island = n // ISLAND
        if n % ISLAND == 0:
            here = [kinds[(island * 3 + k) % classes] for k in range(3)]
            islands.append(IslandState(name=f"island-{island}", inside=rng.choice((1e10, 2.5e10)), across=2.5e9))
        kind = here[n % ISLAND * 3 // ISLAND]
        states.append(NodeState(node=f"n{n:05d}", kind=kind, island=f"island-{island}", domain=f"rack-{n // 8}"))
    flavors = tuple(Flavor(name=d.lower(), selector={"device": (d,)}) for d in DEVICES)
    most = Amount(cpus=CPU * nodes * 16, gpus=GPU * nodes)
    queues = tuple(
        QueueSpec(
            name=f"queue-{q}",
            weight=1.0 + q % 3,
            cohort=f"cohort-{q % 2}" if q < 6 else "",
            quotas=tuple(
                Quota(flavor=f.name, own=Amount(cpus=most.cpus // 24, gpus=most.gpus // 12), lend=None) for f in flavors
            )
            if q < 6
            else (),
        )
        for q in range(8)
    )
    return Snapshot(now=0.0, nodes=tuple(states), islands=tuple(islands), flavors=flavors, queues=queues, obtainable=())


def ask(run: str, rng: random.Random, at: float) -> Ask:
    """One run of the mix."""
    least = rng.choice(SIZES)
    elastic = rng.random() < 0.5
    device = rng.choice(DEVICES)
    options = [Option(name=f"one island of {device}", flavors=(device.lower(),), islands=1)]
    if rng.random() < 0.6:
        options.append(Option(name="two islands", flavors=(rng.choice(DEVICES).lower(),), islands=2))
    if rng.random() < 0.4:
        options.append(Option(name="anywhere"))
    known = rng.random() < 0.5
    return Ask(
        run=run,
        queue=f"queue-{rng.randrange(8)}",
        user=f"user-{rng.randrange(40)}",
        priority=rng.choice((30, 50, 50, 50, 70)),
        submitted_at=at,
        each=Amount(cpus=CPU * rng.choice((1, 2, 4)), gpus=GPU),
        least=least,
        most=least * 4 if elastic else least,
        spares=rng.choice((0, 0, 1)),
        options=tuple(options),
        expected_s=rng.uniform(600, 20_000) if rng.random() < 0.66 else None,
        declared={d: rng.uniform(5, 50) for d in rng.sample(DEVICES, 4)} if known else {},
        batch=1024.0 if known else 0.0,
        sync_bytes=1e9 if known else 0.0,
    )


def filled(empty: Snapshot, seed: int, *, part: float = 0.97) -> Snapshot:
    """Most of the GPUs held by grants that stand as a scheduler would have put them: gangs in islands."""
    rng = random.Random(seed + 1)
    grants, at, run = [], 0, 0
    free = [(node.node, node.kind.total.gpus // GPU) for node in empty.nodes]
    total = sum(n for _, n in free)
    held = 0
    while at < len(free) and held < part * total:
        wanted = ask(f"run-{run}", rng, -rng.uniform(0, 5_000))
        places: list[str] = []
        size = rng.randint(wanted.least, wanted.most)
        while len(places) < size and at < len(free):
            name, room = free[at]
            take = min(room, size - len(places))
            places += [name] * take
            free[at] = (name, room - take)
            if room == take:
                at += 1
        if len(places) == size:
            wanted = replace(wanted, each=Amount(cpus=CPU, gpus=GPU), spares=0, options=(Option(),))
            grants.append(Grant(ask=wanted, nodes=tuple(places), since=wanted.submitted_at))
            held += len(places)
            run += 1
    return replace(empty, grants=tuple(grants))


def world(nodes: int, queued: int, classes: int, seed: int) -> Snapshot:
    """A full cluster and those who wait."""
    full = filled(cluster(nodes, classes, seed), seed)
    rng = random.Random(seed + 2)
    return replace(full, asks=tuple(ask(f"wait-{n}", rng, -rng.uniform(0, 3_000)) for n in range(queued)))


def disturb(arbiter: Arbiter, rng: random.Random, queued: int, now: float, count: int = EVENTS_BETWEEN) -> None:
    """A second's worth of events: runs end and come, shells confirm, nodes change; as many wait as before."""
    state = arbiter.state
    for holding in [h for h in state.holdings.values() if not h.steady()]:
        grant = grant_of(holding)
        if grant.suspending:
            arbiter.handle(GrantEnded(run=grant.ask.run, again=grant.ask), now=now)
            continue
        left = list(grant.nodes)
        for name in grant.leaving:
            if name in left:
                left.remove(name)
        arbiter.handle(GrantChanged(grant=replace(grant, nodes=tuple(left), leaving=())), now=now)
    for run in rng.sample(sorted(state.holdings), count // 4):
        arbiter.handle(GrantEnded(run=run), now=now)
    for name in rng.sample(sorted(state.known), count // 4):
        known = state.known[name]
        arbiter.handle(NodeCameOrChanged(node=replace(known, drained=not known.drained)), now=now)
    for run in rng.sample(sorted(state.wishes), min(count // 4, len(state.wishes))):
        arbiter.handle(AskWithdrawn(run=run), now=now)
    while len(state.wishes) < queued:
        run = f"late-{now:.0f}-{len(state.wishes)}"
        arbiter.handle(AskAdded(ask=ask(run, rng, now)), now=now)


def tick_ms(nodes: int = 10_000, queued: int = 1_000, classes: int = 500, seed: int = 0) -> dict[str, float]:
    """Milliseconds of one tick: cold, warm (median and worst), and of a cold one on an empty cluster."""
    snapshot = world(nodes, queued, classes, seed)
    kinds = len({node.kind.name for node in snapshot.nodes})
    began = time.process_time()
    arbiter = Arbiter.of(snapshot)
    built = time.process_time()
    first = arbiter.tick(0.0)
    cold = time.process_time()
    rng, warm, started = random.Random(seed + 3), [], len(first.starts)
    for n in range(1, WARM_TICKS + 1):
        now = float(n)
        disturb(arbiter, rng, queued, now)
        waits = len(arbiter.state.wishes)
        at = time.process_time()
        decisions = arbiter.tick(now)
        warm.append((time.process_time() - at) * 1e3)
        started += len(decisions.starts)
        assert waits >= queued, waits
    empty = Arbiter.of(replace(snapshot, grants=()))
    at = time.process_time()
    filled_up = empty.tick(0.0)
    emptied = (time.process_time() - at) * 1e3
    return {
        "nodes": nodes,
        "classes": kinds,
        "queued": queued,
        "grants": len(snapshot.grants),
        "build_ms": round((built - began) * 1e3, 1),
        "cold_ms": round((cold - began) * 1e3, 1),
        "warm_ms": round(statistics.median(warm), 1),
        "warm_worst_ms": round(max(warm), 1),
        "empty_cluster_ms": round(emptied, 1),
        "empty_cluster_starts": len(filled_up.starts),
        "starts": started,
        "holds": len(first.holds),
        "shrinks": len(first.shrinks),
        "suspends": len(first.suspends),
    }


def core_events_per_s(seconds: float = 2.0, nodes: int = 2_000, seed: int = 0) -> dict[str, float]:
    """Events a second that the core folds into its index, one after another, without ticks: the mix of a busy cluster."""
    snapshot = filled(cluster(nodes, 200, seed), seed, part=0.6)
    arbiter = Arbiter.of(snapshot)
    rng = random.Random(seed + 4)
    events: list[object] = []
    states = list(snapshot.nodes)
    for n in range(4_000):
        one = ask(f"e{n}", rng, float(n))
        events += [AskAdded(ask=one), AskWithdrawn(run=one.run)]
        grant = rng.choice(snapshot.grants)
        again = replace(grant, ask=replace(grant.ask, run=f"g{n}"), nodes=grant.nodes[:8])
        events += [GrantChanged(grant=again), GrantEnded(run=f"g{n}")]
        state = rng.choice(states)
        events += [NodeCameOrChanged(node=replace(state, drained=True)), NodeCameOrChanged(node=state)]
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for event in events:
            arbiter.handle(event, now=1.0)
        done += len(events)
    took = time.process_time() - began
    return {"events": done, "seconds": round(took, 3), "events_per_s": round(done / took)}


if __name__ == "__main__":
    print(json.dumps({"tick": tick_ms(), "events": core_events_per_s()}))
