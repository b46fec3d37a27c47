"""The autoscaler's decisions: facts in, commands out.

With each look at cluster and provider: first it is settled what became of the machines that were asked for; then each
gang, in its order, gets room that stands, then room that comes, and only what still lacks is started, and only if with it
all of the gang fits. What no gang needs is drained after its `idle_s`, and ended when it is empty. Where the provider does
not answer nothing is started, since nobody knows what stands.

Laws: no order takes the price of all machines over the budget, or a type over its `max`; no node with a process of a run
on it is ended, unless its time is over; a failed type is paused, each time twice as long, so that no launch is repeated
without end. `tests/properties/test_autoscaling.py` holds them.
"""

from __future__ import annotations

from typing import assert_never

from atoll.control_plane.arbiter.model import Ask
from atoll.control_plane.autoscaling import commands as cmd
from atoll.control_plane.autoscaling import facts
from atoll.control_plane.autoscaling.choosing import Choice, Nothing, choose, rooms_for
from atoll.control_plane.autoscaling.demand import Demand, replaced, replacements
from atoll.control_plane.autoscaling.machines import Fleet, Held, Phase
from atoll.control_plane.autoscaling.room import Room, reserve, room_of
from atoll.control_plane.autoscaling.settling import Settling
from atoll.control_plane.autoscaling.spec import NodeType, Scaling
from atoll.schema.ids import RunId

# Standing nodes are used first, then those that are about to be given up, then machines that come.
_STANDS, _WAS_IDLE, _COMES = 0, 1, 2


class Autoscaler:
    """`tag` makes names of machines differ from those that an earlier autoscaler gave; a few letters of chance."""

    def __init__(self, scaling: Scaling, *, tag: str) -> None:
        self.scaling = scaling
        self.fleet = Fleet()
        self._demand = Demand(patience_s=scaling.patience_s, room_s=scaling.room_s)
        self._settling = Settling(scaling, self.fleet)
        self._tag = tag
        self._count = 0
        self._told: dict[str, cmd.Reason] = {}
        self._in_place: dict[RunId, set[str]] = {}
        self._commands: list[cmd.Command] = []
        self._now = 0.0

    def handle(self, fact: facts.Fact, *, now: float) -> list[cmd.Command]:
        """What follows from `fact`."""
        self._now, self._commands = now, []
        match fact:
            case facts.Looked():
                self._looked(fact)
            case facts.Launched() | facts.LaunchFailed() | facts.Ended() | facts.EndFailed() | facts.DrainFailed():
                self._commands += self._settling.answered(fact, now)
            case _:
                assert_never(fact)
        return self._commands

    def _looked(self, look: facts.Looked) -> None:
        self._commands += self._settling.looked(look, self._now)
        rooms = self._rooms(look)
        needed: set[str] = set()
        told: dict[str, cmd.Reason] = {}
        leaving = replacements(look.nodes, self._now)
        self._in_place = {run: keys for run, keys in self._in_place.items() if run in {ask.run for ask in leaving}}
        for ask in leaving:
            needed |= self._replace(ask, look, rooms, told)
        for ask in self._demand.served(look.asks, self._now):
            needed |= self._serve(ask, look, rooms, told)
        self._least(look)
        self._told_anew(told)
        for machine in list(self.fleet.held.values()):
            self._judge(machine, look, needed=machine.instance in needed)

    # -- gangs -------------------------------------------------------------------------------------------------------

    def _rooms(self, look: facts.Looked) -> list[Room]:
        """What gangs may count on: nodes that do not leave, those that are given up for idleness, machines that come."""
        by_node = {machine.node: machine for machine in self.fleet.held.values() if machine.node is not None}
        rooms = []
        for node in look.nodes:
            if not node.alive:
                continue
            machine = by_node.get(node.node)
            ours = machine is not None and machine.phase is Phase.DRAINING and isinstance(machine.reason, cmd.Idle)
            if (node.leaving_at is not None and not (ours and not node.noticed)) or (
                machine is not None and machine.phase is Phase.ENDING
            ):
                continue
            key = machine.instance if machine is not None else str(node.node)
            order = _WAS_IDLE if ours else _STANDS
            free = node.free
            rooms.append(Room(key=key, labels=node.labels, cpus=free.cpus, gpus=free.gpus, order=order))
        coming = [m for m in self.fleet.held.values() if m.phase is Phase.COMING]
        return rooms + [room_of(m.kind, m.instance, _COMES) for m in coming]

    def _replace(self, ask: Ask, look: facts.Looked, rooms: list[Room], told: dict[str, cmd.Reason]) -> set[str]:
        """Find room in place of a node that leaves, once: while its workers move there, it is used on both."""
        before = self._in_place.get(ask.run)
        if before is None or not before <= {room.key for room in rooms}:
            before = self._in_place[ask.run] = self._serve(ask, look, rooms, told)
            if not before:
                del self._in_place[ask.run]
            return before
        reserve([room for room in rooms if room.key in before and room.comes], ask.each, 1)
        return before

    def _serve(self, ask: Ask, look: facts.Looked, rooms: list[Room], told: dict[str, cmd.Reason]) -> set[str]:
        """Reserve room for a gang and start what it lacks; returns the machines that it needs."""
        limits = facts.Limits(
            money=self.fleet.money(self.scaling),
            count=self.fleet.counts(),
            paused=self.fleet.paused(self._now),
            away=look.machines is None,
        )
        choice = choose(ask, look.flavors, rooms, self.scaling.types, limits)
        leaves = replaced(ask)
        if isinstance(choice, Nothing):
            told[ask.run] = cmd.Unmet(run=ask.run, workers=choice.workers, rejected=choice.rejected)
            if leaves is None:
                self._demand.lacks(ask)
            return set()
        if choice.adds and not self._demand.patient(ask, self._now):
            return set()
        rooms += [self._launch(kind, self._for(ask, choice, look)) for kind, count in choice.adds for _ in range(count)]
        usable = rooms_for(rooms, choice.option, look.flavors, choice.islands)
        used = reserve(usable, ask.each, choice.workers)
        if leaves is None:
            ignored = self._demand.fits(ask, self._now, comes=any(room.comes for room in used))
            if ignored is not None:
                self._commands.append(cmd.Tell(reason=ignored))
                return set()
        self._keep(ask, used)
        return {room.key for room in used}

    def _for(self, ask: Ask, choice: Choice, look: facts.Looked) -> cmd.Reason:
        leaves = replaced(ask)
        if leaves is not None:
            until = next(n.leaving_at for n in look.nodes if n.node == leaves)
            return cmd.InPlaceOf(node=leaves, left_s=(until or self._now) - self._now)
        return cmd.ForGang(
            run=ask.run,
            workers=choice.workers,
            machines=choice.machines,
            price=choice.price,
            cost=choice.cost,
            rejected=choice.rejected,
        )

    def _launch(self, kind: NodeType, reason: cmd.Reason) -> Room:
        self._count += 1
        instance = f"{kind.name}-{self._tag}{self._count}"
        self.fleet.held[instance] = Held(
            instance=instance, kind=kind, phase=Phase.COMING, since=self._now, seen_at=self._now, reason=reason
        )
        self._commands.append(cmd.Launch(instance=instance, kind=kind.name, reason=reason))
        return room_of(kind, instance, _COMES)

    def _keep(self, ask: Ask, used: list[Room]) -> None:
        """Take back the drain of those that are needed after all."""
        for room in used:
            machine = self.fleet.held.get(room.key)
            if machine is not None and machine.phase is Phase.DRAINING and machine.node is not None:
                machine.move(Phase.STANDING, self._now)
                again = cmd.WantedAgain(run=ask.run)
                self._commands.append(cmd.Undrain(node=machine.node, instance=machine.instance, reason=again))

    def _told_anew(self, told: dict[str, cmd.Reason]) -> None:
        """Say what is new: the same words with each look would be noise."""
        for subject, reason in told.items():
            if _gist(self._told.get(subject)) != _gist(reason):
                self._commands.append(cmd.Tell(reason=reason))
        self._told = told

    # -- those that always stand, and those that nobody needs --------------------------------------------------------

    def _least(self, look: facts.Looked) -> None:
        if look.machines is None:
            return
        paused = self.fleet.paused(self._now)
        for kind in self.scaling.types:
            while (
                self.fleet.serving(kind) < kind.least
                and kind.name not in paused
                and self.fleet.counts().get(kind.name, 0) < kind.most
                and self.fleet.money(self.scaling).allows(kind.price_per_hour)
            ):
                self._launch(kind, cmd.AtLeast(least=kind.least))

    def _judge(self, machine: Held, look: facts.Looked, *, needed: bool) -> None:
        """End what nobody needs: what comes is taken back, what stands is drained first."""
        node = next((n for n in look.nodes if n.node == machine.node), None) if machine.node is not None else None
        if machine.phase is Phase.DRAINING:
            self._commands += self._settling.drained(machine, node, self._now)
        if machine.phase not in {Phase.COMING, Phase.STANDING}:
            return
        if machine.phase is Phase.STANDING and (node is None or node.leaving_at is not None):
            return
        busy = node is not None and not node.empty
        if needed or busy or self.fleet.serving(machine.kind) <= machine.kind.least:
            machine.unneeded_since = None
            return
        if machine.unneeded_since is None:
            machine.unneeded_since = self._now
        idle = self._now - machine.unneeded_since
        if idle < machine.kind.idle_s:
            return
        reason = cmd.Idle(idle_s=idle)
        if machine.node is None:
            self._commands.append(self._settling.end(machine, reason, self._now))
            return
        machine.move(Phase.DRAINING, self._now)
        machine.reason = reason
        within = self.scaling.drain_s
        self._commands.append(cmd.Drain(node=machine.node, instance=machine.instance, within_s=within, reason=reason))


def _gist(reason: cmd.Reason | None) -> object:
    """What of a reason is worth telling again when it changes: not the moments in its details."""
    if isinstance(reason, cmd.Unmet):
        return (reason.run, reason.workers, tuple((r.kinds, r.why) for r in reason.rejected))
    return reason
