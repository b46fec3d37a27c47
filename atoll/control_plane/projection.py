"""The views that people see, made from the core's state."""

from __future__ import annotations

from atoll.collectives.islands import Island
from atoll.collectives.knowledge import key
from atoll.control_plane.desk import Desk, Node
from atoll.control_plane.leaving import drain_view
from atoll.control_plane.placement import UNIT
from atoll.control_plane.state import Cluster, Run, Trainer
from atoll.control_plane.story import brief
from atoll.schema.ids import Step
from atoll.schema.spec import JobKind
from atoll.schema.views import CheckpointView, IslandView, LinkView, NodeView, RunView, TopologyView, TrainerView

# A long run loses many trainers; the page needs those that live and the last few that went.
GONE_SHOWN = 8


def run_view(run: Run) -> RunView:
    """The run as the list and its page show it."""
    ranks = {m.trainer: m.rank for m in run.members}
    active = run.active()
    members = [t for t in active if t.trainer in ranks]
    gone = [t for t in run.trainers.values() if not t.active][-GONE_SHOWN:]
    servers = [t for t in active if t.server is not None]
    return RunView(
        run=run.run,
        name=run.spec.name,
        kind=run.spec.kind,
        state=run.state,
        reason=brief(run.run, run.reason),
        submitted_at=run.submitted_at,
        ended_at=run.ended_at,
        epoch=run.epoch,
        workers_wanted=run.size,
        members=len(servers) if run.spec.kind is JobKind.SERVE else len(members),
        spares=sum(1 for t in active if t.ready and t.trainer not in ranks and t.server is None),
        step=Step(max(run.step, run.checkpoint.step if run.checkpoint else 0)),
        last=run.last,
        checkpoint=_checkpoint(run),
        trainers=tuple(_trainer_view(run, t, ranks.get(t.trainer)) for t in [*active, *gone]),
        endpoint=",".join(f"http://{t.host}:{t.port}" for t in servers),
        exit_code=run.stopping.exit_code if run.stopping is not None and run.state.ended else None,
        held=run.held,
        owner=run.spec.owner,
        queue=run.spec.queue,
        measured=dict(run.measured),
        failed_saves=run.failures.ever,
        spec=run.spec,
    )


def _checkpoint(run: Run) -> CheckpointView | None:
    kept = run.checkpoint
    if run.saved is not None or kept is None:
        return run.saved
    return CheckpointView(run=run.run, step=kept.step, path=kept.path, bytes=0, seconds=0.0, at=kept.at)


def _trainer_view(run: Run, trainer: Trainer, rank: int | None) -> TrainerView:
    serving = run.spec.kind is JobKind.SERVE
    role = "server" if serving else "worker" if rank is not None else "spare"
    return TrainerView(
        trainer=trainer.trainer,
        node=trainer.node,
        role=role if trainer.active else "gone",
        rank=rank if trainer.active else None,  # type: ignore[arg-type]
        pid=trainer.began.pid if trainer.began else 0,
        state=_trainer_state(run, trainer),
    )


def _trainer_state(run: Run, trainer: Trainer) -> str:
    if trainer.ended is not None:
        return trainer.ended.end.value
    if trainer.server is not None:
        return "serving"
    if trainer.trainer in run.member_ids():
        return "training" if trainer.joined == run.epoch else "regrouping"
    return "ready" if trainer.ready else "starting"


def node_view(desk: Desk, node: Node) -> NodeView:
    """The host as the list shows it."""
    seen = node.seen
    room = desk.room(node)
    return NodeView(
        node=node.node,
        address=seen.address if seen else "",
        alive=node.usable,
        cpus=seen.cpus if seen else 0.0,
        gpus=seen.gpus if seen else 0.0,
        cpus_free=room.cpus_free / UNIT if room else 0.0,
        agent=node.attached,
        labels=seen.labels if seen else {},
        drain=drain_view(desk, node.node),
    )


def topology_view(desk: Desk) -> TopologyView:
    """The network as its page shows it."""
    probes = desk.probes
    topology = probes.known.topology
    links = tuple(
        LinkView(
            source=k.source,
            source_nic=k.source_nic,
            target=k.target,
            target_nic=k.target_nic,
            latency_s=k.latency_s,
            bandwidth=k.bandwidth,
            at=probes.measured.get(key(k), desk.now),
        )
        for k in topology.links
    )
    return TopologyView(
        version=topology.version,
        at=desk.now,
        hosts=topology.hosts,
        links=links,
        trunks=topology.trunks,
        islands=_island_view(probes.tree),
        unmeasured=probes.unmeasured(),
        problems={f"{a} - {b}": problem for (a, b), problem in sorted(probes.problems.items())},
    )


def _island_view(island: Island) -> IslandView:
    return IslandView(
        nodes=island.nodes,
        children=tuple(_island_view(child) for child in island.children),
        bandwidth=island.bandwidth,
        latency_s=island.latency_s,
        reason=str(island.reason),
    )


def servers_of(cluster: Cluster) -> list[dict[str, object]]:
    """Where each served model answers, for the gateway. `secret` is what replicas of that run ask of their callers."""
    return [
        {
            "run": run.run,
            "trainer": t.trainer,
            "host": t.server.host,
            "port": t.server.port,
            "model": t.server.model,
            "step": t.server.step,
            "secret": run.secret,
        }
        for run in cluster.open_runs()
        for t in run.active()
        if t.server is not None
    ]
