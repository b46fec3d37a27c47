"""The arbiter: folds what happens into an index of the cluster, and at each tick says who gets, yields and waits, and why.

`decide(snapshot)` is one tick from nothing: what `atoll plan` and tests use. `Arbiter` keeps the index between ticks:

    arbiter = Arbiter.of(snapshot)            # or Arbiter(settings) and events from an empty cluster
    arbiter.handle(AskAdded(ask=...), now=t)  # some microseconds each, nothing is decided
    decisions = arbiter.tick(t)               # one pass over all who wait and all who run

**Who tells whom.** From the tick on a `Start`, `Grow` and the taken half of a `Move` count as carried out: nobody else is
given those nodes. What failed is said by `GrantEnded` or `GrantChanged`. What a `Shrink`, `Suspend` or `Move` frees
stays the run's until `GrantChanged` or `GrantEnded` says that it is free. A refused run is forgotten. The same events
and ticks in the same order give the same decisions: no clock, no chance, no order of hashing.

**A tick**: places that were promised are withheld again (`keeping.py`); all who wait have their turn in order
(`ordering.py`): the first alternative that fits is started (`choosing.py`, `packing.py`), what can never fit is refused
(`refusing.py`), for the first of the others it is asked who yields (`preempting.py`), and places are kept for them;
whoever is behind gets what is left, or what is withheld if it will be gone in time (backfill); at last runs grow and move
(`growing.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import assert_never

from atoll.control_plane.arbiter import events as ev
from atoll.control_plane.arbiter.choosing import worked_out
from atoll.control_plane.arbiter.decisions import Decisions, Share
from atoll.control_plane.arbiter.growing import grow, move
from atoll.control_plane.arbiter.holding import draw, nodes_of, redraw, undraw
from atoll.control_plane.arbiter.keeping import Keeping
from atoll.control_plane.arbiter.model import (
    Ask,
    Claim,
    Flavor,
    Grant,
    IslandState,
    NodeState,
    Settings,
    Snapshot,
    Usage,
)
from atoll.control_plane.arbiter.ordering import in_order
from atoll.control_plane.arbiter.saying import claims, decisions_of, shares_of
from atoll.control_plane.arbiter.serving import serve
from atoll.control_plane.arbiter.state import Holding, Kept, Wish, grant_of, holding_of, new_state
from atoll.control_plane.arbiter.turn import Turn
from atoll.schema.ids import NodeId, RunId

# Shapes that are remembered, each with a number for every island: months of unlike asks would fill the memory.
_SHAPES = 2_000


def decide(snapshot: Snapshot) -> Decisions:
    """What is to be done in this situation. The snapshot stays as it is."""
    return Arbiter.of(snapshot).tick(snapshot.now)


def shares(snapshot: Snapshot) -> tuple[Share, ...]:
    """What the queues hold in this situation, with nothing decided."""
    return shares_of(Arbiter.of(snapshot).state, snapshot.now)


class Arbiter:
    """The cluster as it is known, and its ticks."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.state = new_state(settings or Settings())

    @classmethod
    def of(cls, snapshot: Snapshot) -> Arbiter:
        """An arbiter that knows this."""
        arbiter = cls(snapshot.settings)
        now, state = snapshot.now, arbiter.state
        state.catalog.set_flavors(snapshot.flavors)
        state.obtainable = snapshot.obtainable
        for island in snapshot.islands:
            state.cluster.measured(island)
        for queue in snapshot.queues:
            state.accounts.put_queue(queue)
        for usage in snapshot.usage:
            state.accounts.remember(usage.queue, usage.user, usage.share, usage.at)
        with state.cluster.at_once():
            for node in snapshot.nodes:
                arbiter._node(node, now)
            for grant in snapshot.grants:
                arbiter._changed(grant, now)
        for ask in snapshot.asks:
            state.wishes[ask.run] = Wish(ask=ask)
        for claim in snapshot.kept:
            arbiter._keep(claim)
        return arbiter

    def _keep(self, claim: Claim) -> None:
        """Places that were kept before this arbiter existed, as far as they are still there."""
        state = self.state
        wish, nodes = state.wishes.get(claim.run), nodes_of(state, [*claim.nodes])
        if wish is None or len(nodes) < len(claim.nodes) or wish.ask.queue not in state.accounts.queues:
            return
        kinds = {node.kind for node in nodes}
        for choice in worked_out(state, wish)[claim.option : claim.option + 1]:
            for way in choice.ways:
                if kinds <= way.shape.kinds:
                    state.kept[claim.run] = Kept(
                        run=claim.run,
                        option=claim.option,
                        shape=way.shape,
                        places=[*claim.nodes],
                        start=claim.start,
                        claim=claim.given,
                        givers=claim.givers,
                    )
                    return

    # -- facts -------------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, *, now: float) -> None:
        """Take a fact in."""
        state = self.state
        match event:
            case ev.AskAdded() | ev.AskChanged():
                self._asked(event.ask, now)
            case ev.AskWithdrawn():
                state.wishes.pop(event.run, None)
            case ev.GrantEnded():
                self._ended(event.run, event.again, now)
            case ev.GrantChanged():
                self._changed(event.grant, now)
            case ev.NodeCameOrChanged():
                self._node(event.node, now)
            case ev.NodeGone():
                self._gone(event.node, now)
            case ev.MeasuredSpeed():
                self._measured(event)
            case ev.CheckpointMade():
                if event.run in state.holdings:
                    state.holdings[event.run].checkpoint_at = event.at
            case _:
                self._configured(event, now)

    def _configured(
        self,
        event: ev.IslandMeasured | ev.QueueChanged | ev.QueueGone | ev.FlavorsChanged | ev.ObtainableChanged,
        now: float,
    ) -> None:
        state = self.state
        match event:
            case ev.IslandMeasured():
                state.cluster.measured(event.island)
            case ev.QueueChanged():
                state.accounts.put_queue(event.queue)
                state.queues_version += 1
            case ev.QueueGone():
                state.accounts.drop_queue(event.queue)
                state.queues_version += 1
            case ev.FlavorsChanged():
                self._flavors(event.flavors, now)
            case ev.ObtainableChanged():
                state.obtainable = event.obtainable
            case _:
                assert_never(event)

    def _asked(self, ask: Ask, now: float) -> None:
        state = self.state
        holding = state.holdings.get(ask.run)
        if holding is None:
            known = state.wishes.get(ask.run)
            state.wishes[ask.run] = Wish(ask=ask, judged=known is not None and known.judged)
            return
        self._changed(replace(grant_of(holding), ask=ask), now)

    def _changed(self, grant: Grant, now: float) -> None:
        state, run = self.state, grant.ask.run
        state.wishes.pop(run, None)
        old = state.holdings.get(run)
        new = holding_of(grant)
        if old is not None:
            new.ask = _merged(old.ask, grant.ask)
            new.leaving = new.leaving or _still_leaving(old, new)
            new.suspending = new.suspending or old.suspending
            undraw(state, old, now)
        state.holdings[run] = new
        draw(state, new, now)

    def _ended(self, run: RunId, again: Ask | None, now: float) -> None:
        state = self.state
        holding = state.holdings.pop(run, None)
        if holding is not None:
            undraw(state, holding, now)
        if again is not None:
            ask = again if holding is None else _merged(holding.ask, again)
            state.wishes[run] = Wish(ask=ask, judged=True)

    def _node(self, node: NodeState, now: float) -> None:
        state = self.state
        known = state.cluster.nodes.get(node.node)
        before = (known.kind, known.island) if known is not None else None
        state.known[node.node] = node
        put = state.cluster.put(node)
        if (put.kind, put.island) != before and (put.occupants or node.node in state.missing):
            redraw(state, [node.node], now)
        state.accounts.total = (state.cluster.cpus, state.cluster.gpus)

    def _gone(self, name: NodeId, now: float) -> None:
        state = self.state
        node = state.cluster.nodes.get(name)
        if node is None:
            return
        holders = [state.holdings[run] for run in node.occupants]
        for holding in holders:
            undraw(state, holding, now)
        state.cluster.drop(name)
        del state.known[name]
        for holding in holders:
            draw(state, holding, now)
        state.accounts.total = (state.cluster.cpus, state.cluster.gpus)

    def _flavors(self, flavors: tuple[Flavor, ...], now: float) -> None:
        state = self.state
        for holding in state.holdings.values():
            undraw(state, holding, now)
        state.catalog.set_flavors(flavors)
        state.cluster.forget_shapes()
        for holding in state.holdings.values():
            draw(state, holding, now)

    def _measured(self, event: ev.MeasuredSpeed) -> None:
        holding, wish = self.state.holdings.get(event.run), self.state.wishes.get(event.run)
        if holding is not None:
            holding.ask = _with_speed(holding.ask, event)
        elif wish is not None:
            wish.ask, wish.version = _with_speed(wish.ask, event), (-1, -1)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Decisions:
        """All that is to be done now."""
        state = self.state
        state.accounts.forget_pledges()
        if state.cluster.forget_shapes(beyond=_SHAPES):
            state.ways.clear()
        turn = Turn(state=state, now=now, keeping=Keeping(state, now))
        for run in [run for run in state.kept if run not in state.wishes]:
            del state.kept[run]
        # What others gave up for a run is withheld from all; what is merely foreseen, from those behind it.
        for kept in [kept for kept in state.kept.values() if kept.claim]:
            turn.keeping.keep(kept)
        for position, wish in enumerate(in_order(state, now), 1):
            serve(turn, wish, position)
        grow(turn)
        move(turn)
        turn.keeping.lift_all()
        return decisions_of(turn)

    def snapshot(self, now: float) -> Snapshot:
        """All that is known, as a value: what a dry run begins from."""
        state = self.state
        islands = state.cluster.islands.values()
        return Snapshot(
            now=now,
            nodes=tuple(state.known.values()),
            islands=tuple(IslandState(name=i.name, inside=i.inside, across=i.across, local=i.local) for i in islands),
            flavors=state.catalog.flavors,
            queues=tuple(state.accounts.queues.values()),
            asks=tuple(wish.ask for wish in state.wishes.values()),
            grants=tuple(grant_of(holding) for holding in state.holdings.values()),
            usage=tuple(
                Usage(queue=queue, user=user, share=share, at=now)
                for queue, user, share in state.accounts.remembered(now)
            ),
            obtainable=state.obtainable,
            kept=claims(state),
            settings=state.settings,
        )


def _merged(old: Ask, new: Ask) -> Ask:
    """The ask as the shell has it, with what the arbiter was told apart from it. What the shell says is newer."""
    return replace(
        new,
        measured={**old.measured, **new.measured},
        disturbed=max(old.disturbed, new.disturbed, key=len),
    )


def _with_speed(ask: Ask, event: ev.MeasuredSpeed) -> Ask:
    return replace(ask, measured={**ask.measured, event.device: event.samples_per_s})


def _still_leaving(old: Holding, new: Holding) -> list[NodeId]:
    """Of what the run was told to give up, what it still holds."""
    dropped = Counter([*old.nodes, *old.spares]) - Counter([*new.nodes, *new.spares])
    left = Counter(old.leaving) - dropped
    return [name for name in left.elements() if name in new.nodes or name in new.spares]
