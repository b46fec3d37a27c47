"""What a tick decided, in words and values: predictions for who starts, place in line and estimate for who waits.

The estimate of who has nothing kept is the time at which the expected ends of all grants will have given back what those
before it and itself ask for, in GPUs, or CPUs where it asks for none. It is None where too few ends are known.
"""

from __future__ import annotations

import bisect
import itertools

from atoll.control_plane.arbiter import speed
from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.decisions import Decisions, Hold, Share, Start
from atoll.control_plane.arbiter.holding import nodes_of
from atoll.control_plane.arbiter.model import Ask, Claim
from atoll.control_plane.arbiter.ordering import priority
from atoll.control_plane.arbiter.packing import crossed, side_by_side
from atoll.control_plane.arbiter.reasons import Held, Placed
from atoll.control_plane.arbiter.state import State
from atoll.control_plane.arbiter.turn import Started, Turn


def decisions_of(turn: Turn) -> Decisions:
    """All of it."""
    return Decisions(
        at=turn.now,
        starts=tuple(_start(turn, started) for started in turn.starts.values()),
        grows=tuple(turn.grows),
        shrinks=tuple(turn.shrinks),
        suspends=tuple(turn.suspends),
        moves=tuple(turn.moves),
        holds=_holds(turn),
        refusals=tuple(turn.refusals),
        shares=shares_of(turn.state, turn.now),
        kept=claims(turn.state),
    )


def claims(state: State) -> tuple[Claim, ...]:
    """What is kept, as values."""
    return tuple(
        Claim(
            run=kept.run,
            option=kept.option,
            nodes=tuple(kept.places),
            start=kept.start,
            given=kept.claim,
            givers=kept.givers,
        )
        for kept in state.kept.values()
    )


def _start(turn: Turn, started: Started) -> Start:
    state, holding, ask = turn.state, started.holding, started.wish.ask
    nodes = side_by_side(nodes_of(state, holding.nodes))
    holding.nodes = [node.name for node in nodes]
    kinds = state.catalog.kinds
    rate = speed.rate(ask, nodes, kinds) if speed.known(ask) else None
    reason = Placed(
        option=started.plan.choice.name,
        workers=len(nodes),
        wished=started.plan.choice.sizes[-1],
        islands=crossed(nodes),
        nodes=len({node.name for node in nodes}),
        devices=tuple(dict.fromkeys(kinds[node.kind].device for node in nodes)),
        step_s=speed.step_seconds(ask, rate) if rate is not None else None,
        samples_per_s=rate,
        price_per_hour=round(sum(price_of(state, ask, n) for n in nodes + nodes_of(state, holding.spares)), 4),
        waited_s=turn.now - ask.waits_since(),
        overtaken=started.overtaken,
        rejected=started.plan.rejected,
    )
    return Start(
        run=ask.run, option=holding.option, nodes=tuple(holding.nodes), spares=tuple(holding.spares), reason=reason
    )


def price_of(state: State, ask: Ask, node: Node) -> float:
    """A worker's part of its node's price: the larger of its parts of CPUs and GPUs."""
    kind = state.catalog.kinds[node.kind]
    parts = [need / have for need, have in ((ask.each.cpus, kind.total.cpus), (ask.each.gpus, kind.total.gpus)) if have]
    return kind.price_per_hour * min(max(parts, default=0.0), 1.0)


class _Forecast:
    """When how much will be free, by the expected ends of those who hold it."""

    def __init__(self, turn: Turn) -> None:
        ends: list[tuple[float, int, int]] = []
        cpus, gpus = turn.state.cluster.cpus, turn.state.cluster.gpus
        for holding in turn.state.holdings.values():
            each, n = holding.ask.each, len(holding.drawn)
            cpus, gpus = cpus - n * each.cpus, gpus - n * each.gpus
            if (at := holding.ends_at(turn.now)) is not None:
                ends.append((at, n * each.cpus, n * each.gpus))
        ends.sort()
        self._times = [turn.now, *(at for at, _, _ in ends)]
        self._free = (
            list(itertools.accumulate((end[1] for end in ends), initial=cpus)),
            list(itertools.accumulate((end[2] for end in ends), initial=gpus)),
        )
        self._wanted = [0, 0]

    def after(self, ask: Ask) -> float | None:
        """When there is enough for this run behind all those named before it."""
        of = 1 if ask.each.gpus else 0
        least = max(ask.least, 1)
        self._wanted[0] += ask.each.cpus * least
        self._wanted[1] += ask.each.gpus * least
        # Even where enough is free now it does not fit as it lies: something must end first.
        at = bisect.bisect_left(self._free[of], self._wanted[of], lo=min(1, len(self._times) - 1))
        return self._times[at] if 0 < at < len(self._times) else None


def _holds(turn: Turn) -> tuple[Hold, ...]:
    state, now = turn.state, turn.now
    shares = {
        name: (state.accounts.share(name, None, now)[1], state.accounts.fair_share(name)) for name in _names(turn)
    }
    line, waiting = _Forecast(turn), len(turn.blocked)
    holds = []
    for place, blocked in enumerate(turn.blocked, 1):
        ask = blocked.wish.ask
        estimate = line.after(ask)
        kept = state.kept.get(ask.run)
        lately, fair = shares[ask.queue]
        reason = Held(
            position=place,
            waiting=waiting,
            queue=ask.queue,
            share=lately,
            fair_share=fair,
            priority=priority(state, ask),
            starving=blocked.starving,
            rejected=blocked.rejected,
            earliest=kept.start if kept is not None else estimate,
            now=now,
        )
        holds.append(Hold(run=ask.run, reason=reason))
    return tuple(holds)


def _names(turn: Turn) -> dict[str, None]:
    return dict.fromkeys(blocked.wish.ask.queue for blocked in turn.blocked)


def shares_of(state: State, now: float) -> tuple[Share, ...]:
    """What all queues hold, and how many wait in them."""
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for holding in state.holdings.values():
        running[holding.ask.queue] = running.get(holding.ask.queue, 0) + 1
    for wish in state.wishes.values():
        waiting[wish.ask.queue] = waiting.get(wish.ask.queue, 0) + 1
    found = []
    for name in state.accounts.queues:
        present, lately = state.accounts.share(name, None, now)
        found.append(
            Share(
                queue=name,
                now=present,
                lately=lately,
                fair=state.accounts.fair_share(name),
                running=running.get(name, 0),
                waiting=waiting.get(name, 0),
            )
        )
    return tuple(found)
