"""The control plane's decisions: events in, effects out, and nothing else.

`handle` takes one event, lets it change what is known, and settles what follows. Its first effect is `Persist` with all
decisions; nobody is told anything before those are on disk. `recover` rebuilds the core from the journal's records, and
agents fill in what records do not hold. The core's clock is its own: a tick moves it by one tick at most, so that a
stall of this process ages nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import assert_never

from atoll.control_plane import agent_facts as facts
from atoll.control_plane import drains, network, offers, queue, resizing, returns, suspending, usage, watching
from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.answers import problem
from atoll.control_plane.desk import Desk, Node
from atoll.control_plane.harming import harmed
from atoll.control_plane.judgement import judge, lapse
from atoll.control_plane.leaving import drain_view
from atoll.control_plane.projection import node_view, run_view
from atoll.control_plane.queue import asked, queues_set, schedule
from atoll.control_plane.records import Record
from atoll.control_plane.settle import SEAT_RETRY_S, begin_stop, settle, stop_now
from atoll.control_plane.state import Cluster, Run
from atoll.errors import NotFoundError
from atoll.fault.budgets import after_restart
from atoll.schema.ids import Incarnation, NodeId, RunId
from atoll.schema.messages import (
    AgentBeat,
    LeaveNode,
    NodeLeaving,
    PeerProbed,
    PeersWatched,
    TrainerExited,
    TrainerSaid,
    TrainerStarted,
    TrainerWatched,
)
from atoll.schema.views import RunState

TICK_S = 0.1
# Many members tell at once whom they wait for; one verdict on all of it is enough.
JUDGE_S = 0.02
# A driver beats each few seconds; a laptop's lid closed for a moment is no reason to stop.
DRIVER_SILENCE_S = 30.0
# Agents of an earlier incarnation come back by themselves within a second or two: leave them that time.
AGENT_RETURN_S = 4.0
AGENT_ASK_S = 15.0
STOPPED_BY_USER = 130


class Core:
    """All decisions of one incarnation."""

    def __init__(self, incarnation: Incarnation, records: Iterable[Record] = (), *, beat_key: str = "") -> None:
        cluster = Cluster(incarnation=incarnation)
        for record in records:
            cluster.apply(record)
        for run in cluster.runs.values():
            run.start_failures, run.losses = 0, after_restart(run.losses, workers=run.size)
            for member in run.members:
                run.trainers[member.trainer].presumed = True
        self.desk = Desk(cluster=cluster, beat_key=beat_key)
        self._returns = returns.Returns()
        self._count = 0
        self._last_tick: float | None = None
        self._judged_at = float("-inf")

    def handle(self, event: ev.Event, *, now: float) -> list[fx.Effect]:
        """What follows from `event`. `Persist` is first if anything was decided."""
        desk = self.desk
        self._count += 1
        desk.now, desk.cause = now, f"{desk.cluster.incarnation}.{self._count}"
        desk.records, desk.effects, desk.touched = [], [], {}
        self._dispatch(event)
        if desk.room_changed:
            schedule(desk)
        shows: list[fx.Effect] = [fx.ShowRun(view=run_view(desk.cluster.runs[run])) for run in desk.touched]
        shows += self._changed_nodes()
        persist: list[fx.Effect] = [fx.Persist(records=tuple(desk.records))] if desk.records else []
        return [*persist, *desk.effects, *shows]

    def _dispatch(self, event: ev.Event) -> None:
        match event:
            case ev.RunAsked():
                asked(self.desk, event)
            case ev.StopAsked() | ev.DriverBeat() | ev.HarmAsked() | ev.ShutdownAsked():
                self._request(event)
            case ev.DrainAsked() | ev.UndrainAsked():
                self._drain(event)
            case ev.ResizeAsked() | ev.SuspendAsked() | ev.ResumeAsked() | ev.QueuesAsked() | ev.MachinesOffered():
                self._share(event)
            case ev.AgentAttached():
                facts.attached(self.desk, event.hello)
            case ev.AgentDetached():
                facts.detached(self.desk, event.node, event.evidence)
            case ev.AgentSaid():
                self._agent_said(event)
            case ev.ClusterListed() | ev.SeatCreated() | ev.SeatFailed():
                self._ray_said(event)
            case ev.Tick():
                self._tick()
            case _:
                assert_never(event)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _request(self, event: ev.StopAsked | ev.DriverBeat | ev.HarmAsked | ev.ShutdownAsked) -> None:
        match event:
            case ev.StopAsked():
                self._with_run(event.run, event.request, lambda run: self._stop(run, event.reason))
            case ev.DriverBeat():
                run = self.desk.cluster.runs.get(event.run)
                if run is not None:
                    run.beat_at = self.desk.clock
            case ev.HarmAsked():
                harmed(self.desk, event)
            case ev.ShutdownAsked():
                self._shutdown(event.request)
            case _:
                assert_never(event)

    def _drain(self, event: ev.DrainAsked | ev.UndrainAsked) -> None:
        if isinstance(event, ev.DrainAsked):
            drains.asked(self.desk, event)
        else:
            drains.undone(self.desk, event)

    def _share(
        self, event: ev.ResizeAsked | ev.SuspendAsked | ev.ResumeAsked | ev.QueuesAsked | ev.MachinesOffered
    ) -> None:
        match event:
            case ev.MachinesOffered():
                offers.offered(self.desk, event)
            case ev.ResizeAsked():
                resizing.asked(self.desk, event)
            case ev.SuspendAsked():
                suspending.asked(self.desk, event)
            case ev.ResumeAsked():
                suspending.resumed(self.desk, event)
            case ev.QueuesAsked():
                queues_set(self.desk, event)
            case _:
                assert_never(event)

    def _with_run(self, run_id: RunId, request: str, act: Callable[[Run], None]) -> None:
        run = self.desk.cluster.runs.get(run_id)
        if run is None:
            error = NotFoundError(f"no run {run_id!r}; `atoll ls` lists all")
            self.desk.do(fx.Reply(request=request, problem=problem(error)))
            return
        act(run)
        self.desk.do(fx.Reply(request=request, value={"run": run.run, "state": run.state.value}))

    def _stop(self, run: Run, reason: str) -> None:
        if not stop_now(self.desk, run):
            begin_stop(self.desk, run, RunState.STOPPED, reason or "asked to stop", STOPPED_BY_USER)

    def _shutdown(self, request: str) -> None:
        desk = self.desk
        desk.closing = True
        reason = "the cluster goes down"
        for run in desk.cluster.open_runs():
            begin_stop(desk, run, RunState.STOPPED, reason, STOPPED_BY_USER)
        for node in desk.nodes.values():
            desk.send(node.node, LeaveNode(reason=reason))
        seats = [seat for run in desk.cluster.open_runs() for seat in run.seats]
        for seat in seats:
            desk.do(fx.KillSeat(seat=seat))
        desk.do(fx.Reply(request=request, value={}))

    # -- agents ------------------------------------------------------------------------------------------------------

    def _agent_said(self, event: ev.AgentSaid) -> None:
        desk = self.desk
        node = desk.nodes.setdefault(event.node, Node(node=event.node))
        node.heard(desk.clock)
        fact, news = event.fact, False
        match fact:
            case AgentBeat():
                node.beat = fact
            case TrainerStarted():
                facts.started(desk, event.node, fact)
            case TrainerExited():
                facts.exited(desk, fact)
            case TrainerSaid():
                news = facts.said(desk, fact)
            case TrainerWatched():
                news = watching.trainer_watched(desk, fact)
            case PeersWatched():
                news = watching.peers_watched(desk, node, fact)
            case PeerProbed():
                network.probed(desk, fact)
            case NodeLeaving():
                drains.noticed(desk, fact)
            case _:
                assert_never(fact)
        # `now` may be set back by whoever sets the host's clock; that must not put judging off.
        if news and not 0.0 <= desk.now - self._judged_at < JUDGE_S:
            self._judged_at = desk.now
            # A tick that is overdue means that this process was stalled: what it reads now is from before.
            last = desk.now if self._last_tick is None else self._last_tick
            judge(desk, stalled=desk.now - last > watching.STALL_S)

    # -- Ray ---------------------------------------------------------------------------------------------------------

    def _ray_said(self, event: ev.ClusterListed | ev.SeatCreated | ev.SeatFailed) -> None:
        match event:
            case ev.ClusterListed():
                self._listed(event)
            case ev.SeatCreated():
                self._seat_created(event)
            case ev.SeatFailed():
                self._seat_failed(event)
            case _:
                assert_never(event)

    def _listed(self, event: ev.ClusterListed) -> None:
        desk = self.desk
        before = desk.offering()
        for node in desk.nodes.values():
            if node.seen is not None:
                node.seen = dataclasses.replace(node.seen, alive=False)
        for seen in event.nodes:
            self._node_seen(seen)
        alive = set(event.seats)
        for run in desk.cluster.open_runs():
            for seat in run.seats.values():
                if seat.alive and not seat.creating and seat.seat not in alive:
                    # A lost seat is a fact, not a verdict: its trainer lives on while a new actor takes its name.
                    seat.alive = False
                    desk.note(run.run, seat.seat, "seat-lost", "Ray has lost it; it is made anew, its trainer goes on")
        if before != desk.offering():
            desk.room_changed = True

    def _node_seen(self, seen: ev.NodeSeen) -> None:
        desk = self.desk
        node = desk.nodes.get(seen.node)
        if node is None:
            grace = AGENT_RETURN_S if desk.cluster.incarnation > 1 else 0.0
            node = Node(node=seen.node, heard_at=desk.clock, ask_agent_at=desk.clock + grace)
            desk.nodes[seen.node] = node
        node.seen = seen
        desk.probes.labelled(seen.node, seen.labels)
        if seen.alive and not node.attached and desk.clock >= node.ask_agent_at and not desk.closing:
            node.ask_agent_at = desk.clock + AGENT_ASK_S
            desk.do(fx.StartAgent(node=node.node))

    def _seat_created(self, event: ev.SeatCreated) -> None:
        seat = self.desk.cluster.seat(event.seat)
        if seat is None:
            self.desk.do(fx.KillSeat(seat=event.seat))
            return
        seat.alive, seat.creating = True, False
        seat.devices, seat.working_dir = event.devices, event.working_dir
        settle(self.desk, self.desk.cluster.runs[seat.run])

    def _seat_failed(self, event: ev.SeatFailed) -> None:
        seat = self.desk.cluster.seat(event.seat)
        if seat is not None:
            seat.creating, seat.retry_at = False, self.desk.clock + SEAT_RETRY_S
            self.desk.note(seat.run, seat.seat, "seat-failed", event.problem)

    # -- time --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        desk = self.desk
        last, self._last_tick = self._last_tick, desk.now
        desk.clock += TICK_S if last is None else min(max(desk.now - last, 0.0), TICK_S)
        watching.ticked(desk, 0.0 if last is None else desk.now - last - TICK_S)
        judge(desk)
        lapse(desk)
        for run in desk.cluster.open_runs():
            silent = desk.clock - run.beat_at
            if not run.spec.detach and silent > DRIVER_SILENCE_S:
                self._stop(run, f"its driver has been silent for {silent:.0f} s (submit with --detach to let it go on)")
            settle(desk, run)
        drains.tick(desk)
        watching.tell_ring(desk)
        network.tick(desk)
        returns.tick(desk, self._returns)
        queue.tick(desk)
        usage.look(desk)

    def _changed_nodes(self) -> list[fx.Effect]:
        shows: list[fx.Effect] = []
        for node in self.desk.nodes.values():
            seen = (node.seen, node.attached, node.lost, self._seats_on(node.node), drain_view(self.desk, node.node))
            if seen != node.shown and (node.seen is not None or node.shown):
                node.shown = seen
                shows.append(fx.ShowNode(view=node_view(self.desk, node)))
        return shows

    def _seats_on(self, node: NodeId) -> int:
        return sum(1 for run in self.desk.cluster.open_runs() for s in run.seats.values() if s.node == node)
