"""The real arbiter in a simulation: what happens is told to it as events, what it decides is carried out.

It is told of a job sizes, samples/s of one worker on each type of device, samples and bytes of a step and what changes
cost; with `Told.AS_ASKED` what the control plane tells it, which is less. It is not told how long a job lasts, so it
promises nobody the end of another. A tick comes at most every `pause_s`; while runs wait or something changed it is asked
again after a while, since calm and hysteresis end by time alone.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from atoll.control_plane.arbiter import decisions as decided
from atoll.control_plane.arbiter import events, model
from atoll.control_plane.arbiter.core import Arbiter
from atoll.schema.ids import NodeId, RunId
from atoll.simulate.cluster import Cluster
from atoll.simulate.engine import Costs
from atoll.simulate.policy import Action, Resize, Start, Suspend
from atoll.simulate.world import Run, World

_DEVICE = 10_000
# Nobody who waits for hours notices ten seconds, and a thousand jobs are decided upon at once.
_PAUSE_S = 10.0
_AGAIN_S = 300.0


class Told(enum.StrEnum):
    """How much of a job the arbiter is told.

    ALL is what it can use. The control plane tells less (`atoll.control_plane.snapshots.ask`): no costs of changes but what
    is the default; of a run that has not stepped yet only speeds, as far as its user declares them; and then batch, bytes of
    a sum and speeds on the devices where it ran, here as soon as it holds them.
    """

    ALL = "all"
    AS_ASKED = "as asked"
    NO_SPEEDS = "as asked, no speeds"


_NAMES = {Told.ALL: "atoll", Told.AS_ASKED: "atoll-as-asked", Told.NO_SPEEDS: "atoll-as-asked-no-speeds"}


class Arbitrated:
    """`Policy` over the arbiter's core."""

    def __init__(
        self,
        cluster: Cluster,
        costs: Costs,
        *,
        plain_trainers: bool = False,
        told: Told = Told.ALL,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self.name = "atoll-plain" if plain_trainers else _NAMES[told]
        self._told = told
        self.plain_trainers = plain_trainers
        self.pause_s = pause_s
        self._costs = costs
        self._settings = model.Settings()
        self._arbiter = Arbiter(self._settings)
        self._options: dict[RunId, int] = {}
        self._devices = {node.name: node.device for node in cluster.nodes}
        self._ran: dict[RunId, set[str]] = {}
        self._queues: set[str] = set()
        self._acted = False
        for event in opening(cluster):
            self._arbiter.handle(event, now=0.0)

    # -- what happens ----------------------------------------------------------------------------------------------

    def submitted(self, run: Run, world: World) -> None:
        """An ask more; queues have no quotas and weigh the same."""
        if run.job.queue not in self._queues:
            self._queues.add(run.job.queue)
            self._tell(events.QueueChanged(queue=model.QueueSpec(name=run.job.queue)), world)
        self._tell(events.AskAdded(ask=self._ask(run)), world)

    def changed(self, run: Run, world: World) -> None:
        """What was carried out is confirmed."""
        self._tell(events.GrantChanged(grant=self._grant(run)), world)

    def suspended(self, run: Run, world: World) -> None:
        """It waits again."""
        self._tell(events.GrantEnded(run=run.job.id, again=self._ask(run)), world)

    def ended(self, run: Run, world: World) -> None:
        """It holds nothing any more."""
        self._ran.pop(run.job.id, None)
        self._tell(events.GrantEnded(run=run.job.id), world)

    def _tell(self, event: events.Event, world: World) -> None:
        self._arbiter.handle(event, now=world.now)

    # -- what is decided -------------------------------------------------------------------------------------------

    def decide(self, world: World) -> list[Action]:
        """One tick of the arbiter, as actions."""
        tick = self._arbiter.tick(now=world.now)
        if tick.refusals:
            raise ValueError(f"{tick.refusals[0].run}: {tick.refusals[0].reason.words()}")
        found = list(self._actions(tick, world))
        self._acted = bool(found)
        return found

    def again_at(self, world: World) -> float | None:
        """After hysteresis where something was done, later where somebody waits."""
        if self._acted:
            return world.now + self._settings.grow_after_s
        return world.now + _AGAIN_S if world.waiting else None

    def _actions(self, tick: decided.Decisions, world: World) -> Iterator[Action]:
        nodes: dict[RunId, list[NodeId]] = {}
        disturbed: dict[RunId, bool] = {}
        changes: list[decided.Shrink | decided.Move | decided.Grow] = [*tick.shrinks, *tick.moves, *tick.grows]
        for change in changes:
            held = nodes.setdefault(change.run, list(world.running[change.run].nodes))
            match change:
                case decided.Shrink():
                    nodes[change.run] = list((Counter(held) - Counter(change.gives)).elements())
                    disturbed[change.run] = True
                case decided.Move():
                    kept = Counter(held) - Counter(change.gives)
                    nodes[change.run] = [*kept.elements(), *change.takes]
                    disturbed[change.run] = True
                case decided.Grow():
                    nodes[change.run] = [*held, *change.adds]
        for run, held in nodes.items():
            yield Resize(run=run, nodes=tuple(held), disturbs=disturbed.get(run, False))
        for suspend in tick.suspends:
            yield Suspend(run=suspend.run)
        for start in tick.starts:
            self._options[start.run] = start.option
            yield Start(run=start.run, nodes=start.nodes)

    # -- values ----------------------------------------------------------------------------------------------------

    def _ask(self, run: Run) -> model.Ask:
        job = run.job
        ask = model.Ask(
            run=job.id,
            queue=job.queue,
            user=job.user,
            priority=job.priority,
            submitted_at=job.submitted_s,
            waiting_since=run.waits_since,
            each=model.Amount(gpus=_DEVICE),
            least=job.sizes[0],
            most=job.sizes[-1],
            sizes=job.sizes,
            declared={} if self._told is Told.NO_SPEEDS else dict(job.model.speeds),
            disturbed=run.disturbed,
            suspended=run.suspensions,
        )
        if self._told is not Told.ALL:
            return self._measured(ask, run)
        return replace(
            ask,
            batch=job.batch,
            sync_bytes=job.model.sync_bytes,
            regroup_s=self._costs.grow_s,
            start_s=self._costs.start_s + self._costs.suspend_s,
        )

    def _measured(self, ask: model.Ask, run: Run) -> model.Ask:
        job = run.job
        ran = self._ran.setdefault(job.id, set())
        ran.update(self._devices[node] for node in run.nodes)
        if not ran:
            return ask
        speeds = {device: job.model.speeds[device] for device in sorted(ran)}
        return replace(ask, measured=speeds, batch=job.batch, sync_bytes=job.model.sync_bytes)

    def _grant(self, run: Run) -> model.Grant:
        return model.Grant(
            ask=self._ask(run),
            nodes=run.nodes,
            since=run.granted_at,
            changed_at=run.changed_at,
            option=self._options.get(run.job.id, 0),
            checkpoint_at=run.checkpoint_at,
        )


def opening(cluster: Cluster) -> Iterator[events.Event]:
    """The cluster as events: its islands, then its nodes."""
    for island in sorted({node.island for node in cluster.nodes}):
        measured = model.IslandState(name=island, inside=cluster.inside, across=cluster.across, local=cluster.local)
        yield events.IslandMeasured(island=measured)
    kinds = {
        (node.device, node.devices): model.NodeClass(
            name=f"{node.device}-{node.devices}",
            device=node.device,
            total=model.Amount(gpus=node.devices * _DEVICE),
        )
        for node in cluster.nodes
    }
    for node in cluster.nodes:
        kind = kinds[node.device, node.devices]
        yield events.NodeCameOrChanged(node=model.NodeState(node=node.name, kind=kind, island=node.island))
