"""What became of the machines that were asked for: joined, never joined, sold out, vanished, drained, ended.

A machine that its provider lists and nobody here knows was started by an earlier autoscaler: it is taken over.
"""

from __future__ import annotations

from typing import assert_never

from atoll.control_plane.autoscaling import commands as cmd
from atoll.control_plane.autoscaling import facts
from atoll.control_plane.autoscaling.machines import Fleet, Held, Phase
from atoll.control_plane.autoscaling.spec import INSTANCE, NodeType, Scaling

# A list of a provider may be older than its answer to an order.
LISTED_S = 30.0
# Ray calls a silent node dead within half a minute to a minute; its machine may still be the same one rebooting.
LOST_S = 90.0
# Ending is asked for again where the machine is still listed after this.
AGAIN_S = 30.0


class Settling:
    """Moves machines along; shares the fleet with the autoscaler."""

    def __init__(self, scaling: Scaling, fleet: Fleet) -> None:
        self._scaling = scaling
        self._fleet = fleet

    # -- answers -----------------------------------------------------------------------------------------------------

    def answered(
        self,
        fact: facts.Launched | facts.LaunchFailed | facts.Ended | facts.EndFailed | facts.DrainFailed,
        now: float,
    ) -> list[cmd.Command]:
        """What a provider or the cluster said to a command."""
        match fact:
            case facts.Launched():
                machine = self._fleet.held.get(fact.instance)
                if machine is not None:
                    machine.taken, machine.seen_at = True, now
                return []
            case facts.LaunchFailed():
                machine = self._fleet.held.pop(fact.instance, None)
                return self._pause(machine.kind, fact.problem, now) if machine is not None else []
            case facts.Ended():
                return []
            case facts.EndFailed():
                return [cmd.Tell(reason=cmd.Trouble(subject=fact.instance, problem=fact.problem))]
            case facts.DrainFailed():
                for machine in self._fleet.held.values():
                    if machine.node == fact.node and machine.phase is Phase.DRAINING:
                        machine.move(Phase.STANDING, now)
                return [cmd.Tell(reason=cmd.Trouble(subject=fact.node, problem=fact.problem))]
            case _:
                assert_never(fact)

    def _pause(self, kind: NodeType, problem: str, now: float) -> list[cmd.Command]:
        pause = self._fleet.failed(kind, self._scaling, now)
        if pause is None:
            return []
        length = pause.until - now
        return [cmd.Tell(reason=cmd.Paused(kind=kind.name, problem=problem, times=pause.times, for_s=length))]

    # -- looks -------------------------------------------------------------------------------------------------------

    def looked(self, look: facts.Looked, now: float) -> list[cmd.Command]:
        """Fold a look into what is known of each machine."""
        found: list[cmd.Command] = []
        if look.machines is not None:
            found += self._listed(look.machines, now)
        nodes = sorted(look.nodes, key=lambda n: n.alive)  # of a machine that came back as another node, that one
        by_instance = {n.labels[INSTANCE]: n for n in nodes if INSTANCE in n.labels}
        by_node = {n.node: n for n in look.nodes}
        for machine in list(self._fleet.held.values()):
            node = by_instance.get(machine.instance) or (by_node.get(machine.node) if machine.node else None)
            if node is None and machine.label is not None:
                key, value = machine.label
                node = next((n for n in look.nodes if n.labels.get(key) == value), None)
            if node is not None:
                machine.seen_at = now
            found += self._moved(machine, node, now)
        return found

    def _listed(self, machines: tuple[facts.Machine, ...], now: float) -> list[cmd.Command]:
        names = {m.instance for m in machines}
        for listed in machines:
            known = self._fleet.held.get(listed.instance)
            kind = self._scaling.type_of(listed.kind)
            if known is None and kind is not None:
                known = Held(instance=listed.instance, kind=kind, phase=Phase.COMING, since=now, seen_at=now)
                self._fleet.held[listed.instance] = known
            if known is not None:
                known.taken, known.label = True, listed.label or known.label
        found: list[cmd.Command] = []
        for machine in list(self._fleet.held.values()):
            if machine.instance in names or not machine.taken or now - machine.seen_at < self._grace(machine):
                continue
            del self._fleet.held[machine.instance]
            if machine.phase is Phase.COMING:
                gone = f"{machine.instance} was ordered, and its provider does not list it"
                found += self._pause(machine.kind, gone, now)
        return found

    def _grace(self, machine: Held) -> float:
        return 0.0 if machine.phase is Phase.ENDING else LISTED_S

    def _moved(self, machine: Held, node: facts.Standing | None, now: float) -> list[cmd.Command]:
        match machine.phase:
            case Phase.COMING:
                return self._joined(machine, node, now)
            case Phase.STANDING:
                if node is None:
                    return self._lost(machine, now)
                taken_back = node.noticed and node.left and node.empty
                return [self.end(machine, cmd.Left(), now)] if taken_back else []
            case Phase.DRAINING:
                return []
            case Phase.ENDING:
                if now - machine.asked_at < AGAIN_S:
                    return []
                machine.asked_at = now
                return [cmd.End(instance=machine.instance, reason=machine.reason or cmd.Left())]

    def _joined(self, machine: Held, node: facts.Standing | None, now: float) -> list[cmd.Command]:
        if node is not None:
            machine.node = node.node
            machine.move(Phase.STANDING, now)
            self._fleet.pauses.pop(machine.kind.name, None)
            return []
        waited = now - machine.since
        if waited < machine.kind.launch_s:
            return []
        reason = cmd.NeverJoined(waited_s=waited)
        return [
            self.end(machine, reason, now),
            *self._pause(machine.kind, f"{machine.instance}: {reason}", now),
        ]

    def _lost(self, machine: Held, now: float) -> list[cmd.Command]:
        """Called where no node of it is in the look: Ray does not see it, no trainer is there, its agent is detached."""
        away = now - machine.seen_at
        return [self.end(machine, cmd.Vanished(after_s=away), now)] if away >= LOST_S else []

    def drained(self, machine: Held, node: facts.Standing | None, now: float) -> list[cmd.Command]:
        """Told after gangs have taken what they need: one that is given up may be needed again. Ended when it is empty. Past its deadline the cluster has fenced what was left, and proofs follow."""
        if node is None:
            return self._lost(machine, now)
        if node.leaving_at is None:
            if now - machine.since > self._scaling.drain_s:
                machine.move(Phase.STANDING, now)  # somebody took the drain back, or it was never begun
            return []
        if not node.empty and not node.noticed:
            machine.move(Phase.STANDING, now)
            return [cmd.Undrain(node=node.node, instance=machine.instance, reason=cmd.CameFirst())]
        return [self.end(machine, machine.reason or cmd.Left(), now)] if node.left and node.empty else []

    def end(self, machine: Held, reason: cmd.Reason, now: float) -> cmd.End:
        """From here on it only costs."""
        machine.move(Phase.ENDING, now)
        machine.asked_at, machine.reason = now, reason
        return cmd.End(instance=machine.instance, reason=reason)
