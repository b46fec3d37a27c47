"""The arbiter under random clusters, queues, runs and losses: its laws hold at each tick, and a replay decides alike.

The laws themselves are asserted by `imagined_arbiter.Shell`, which counts anew what is held from decisions alone.
"""

from __future__ import annotations

import random
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings
from imagined_arbiter import Flavor, Shell, amount, ask, node, replayed

from atoll.control_plane.arbiter.model import Option, QueueSpec, Quota, Settings

FLAVORS = (Flavor(name="a", selector={"device": ("A",)}), Flavor(name="b", selector={"device": ("B",)}))
SETTINGS = Settings(calm_s=20.0, disturbances_per_hour=3, grow_after_s=5.0, starve_s=500.0, horizon_s=300.0)

seeds = st.integers(0, 2**32 - 1)


def make_nodes(rng):
    return [
        node(f"n{at}", island=rng.choice("ijk"), gpus=rng.choice([2, 4, 8]), device=rng.choice("AB"))
        for at in range(rng.randint(2, 8))
    ]


def make_queues(rng):
    bound = lambda: rng.choice([None, *(amount(n, n) for n in range(7))])  # noqa: E731
    made = []
    for name in "pqr":
        quotas = []
        for flavor in ("a", "b"):
            own = rng.randint(0, 12)
            quotas.append(Quota(flavor=flavor, own=amount(own, own), borrow=bound(), lend=bound()))
        made.append(
            QueueSpec(
                name=name,
                weight=rng.choice([1.0, 2.0]),
                cohort=rng.choice(["", "c", "c"]),
                quotas=tuple(quotas) if rng.random() < 0.75 else (),
            )
        )
    return made


ALTERNATIVES = [
    (Option(),),
    (Option(name="one a", flavors=("a",), islands=1), Option(name="two b", flavors=("b",), islands=2)),
    (Option(name="one", islands=1), Option(name="small", least=1, most=2)),
]


def make_ask(rng, run, now):
    least = rng.randint(1, 6)
    return ask(
        run,
        at=now,
        gpus=rng.choice([0.5, 1.0, 2.0]),
        queue=rng.choice("pqr"),
        user=rng.choice("xy"),
        priority=rng.choice([10, 50, 50, 90]),
        least=least,
        most=rng.randint(least, 2 * least + 2),
        sizes=rng.choice([(), (1, 2, 4, 8)]),
        spares=rng.randint(0, 2),
        options=rng.choice(ALTERNATIVES),
        ordered=rng.random() < 0.5,
        preemptible=rng.random() < 0.6,
        expected_s=rng.choice([None, rng.uniform(10, 200)]),
        declared=rng.choice([{}, {"A": 10.0, "B": 3.0}, {"A": 2.0, "B": 5.0}]),
    )


def play(shell, rng, states, steps):
    for n in range(steps):
        shell.now += rng.choice([0.5, 3.0, 11.0, 40.0])
        match rng.choice(["ask", "ask", "ask", "end", "lose", "drain", "queue", "tick"]):
            case "ask":
                shell.submit(make_ask(rng, f"r{n}", shell.now))
            case "end" if shell.grants:
                shell.end(rng.choice(sorted(shell.grants)))
            case "lose":
                state = rng.choice(states)
                shell.lose(state.node) if state.node in shell.nodes else shell.put(state)
            case "drain" if shell.nodes:
                old = shell.nodes[rng.choice(sorted(shell.nodes))]
                shell.put(replace(old, drained=not old.drained))
            case "queue":
                name = rng.choice("pqr")
                shell.drop_queue(name) if name in shell.queues else shell.restore_queue(name)
        yield shell.tick()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seeds)
def test_arbiter_under_random_events_breaks_no_law_and_replays_alike(seed):
    rng = random.Random(seed)
    states = make_nodes(rng)
    queues, delay = make_queues(rng), rng.choice([0.0, 2.0])
    shell = Shell(states, queues=queues, flavors=FLAVORS, settings=SETTINGS, delay_s=delay)
    decided = list(play(shell, rng, states, steps=30))
    assert replayed(shell.log, SETTINGS) == decided


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seeds)
def test_no_run_that_fits_an_empty_cluster_waits_longer_than_the_stated_bound(seed):
    """starve_s + (k + 1) D: D is the longest time a run lasts, k the number of older starving ones."""
    rng = random.Random(seed)
    longest, starve = 60.0, 120.0
    states = [node(f"n{at}", island=f"i{at % 2}", gpus=4) for at in range(rng.randint(2, 4))]
    room = 4 * len(states)
    shell = Shell(states, settings=Settings(starve_s=starve, calm_s=10.0))
    ends, began, waited = {}, {}, {}
    for second in range(0, 600, 5):
        shell.now = float(second)
        for run in [run for run, at in ends.items() if at <= second]:
            shell.end(run)
            del ends[run]
        if second < 400:
            # Small ones keep coming that would fit at once; a wide one of lowest priority is among them.
            least = room if second == 20 else (rng.randint(1, 4))
            known = rng.random() < 0.5
            run = f"r{second}"
            began[run] = second
            shell.submit(
                ask(
                    run,
                    at=float(second),
                    least=least,
                    most=least + rng.choice([0, 0, 3]),
                    priority=0 if second == 20 else 50,
                    preemptible=False,
                    expected_s=longest if known else None,
                )
            )
        for one in shell.tick().starts:
            ends[one.run] = second + (rng.choice([20.0, longest]))
            waited[one.run] = second - began[one.run]
    older = len([run for run, at in began.items() if at < 20 and run in waited and waited[run] >= starve])
    # Five seconds lie between two ticks, and runs end only at them.
    assert waited["r20"] <= starve + (older + 1) * (longest + 5) + 5


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seeds)
def test_backfill_never_delays_the_start_that_was_promised_to_the_head(seed):
    """All of one queue and priority, lengths known and kept: who is at the head starts by the time it was first told."""
    rng = random.Random(seed)
    states = [node(f"n{at}", island=f"i{at // 2}", gpus=4) for at in range(4)]
    shell = Shell(states, settings=Settings(starve_s=1e9, half_life_s=1e9))
    ends, promised, head = {}, {}, {}
    for n in range(rng.randint(4, 14)):
        length = rng.choice([10.0, 30.0, 100.0])
        least = rng.randint(1, 16)
        shell.submit(ask(f"r{n:02d}", at=float(n) / 100, least=least, most=least, expected_s=length))
        head[f"r{n:02d}"] = length
    for second in range(1500):
        shell.now = float(second)
        for run in [run for run, at in ends.items() if at <= second]:
            shell.end(run)
            del ends[run]
        decisions = shell.tick()
        for one in decisions.starts:
            ends[one.run] = second + head[one.run]
            assert second <= promised.get(one.run, second), one.run
        first = next((h for h in decisions.holds if h.reason.position == 1), None)
        if first is not None and first.reason.earliest is not None:
            promised.setdefault(first.run, first.reason.earliest)
        if not ends and not decisions.holds:
            break
    assert not shell.asks
