"""The cluster as the arbiter sees it: what nodes, runs and queues are at this moment, as one `Snapshot`.

Everything follows from the core's state, so that a decision can be asked for again, and for a run that nobody submitted
(`atoll plan`). Times are the wall clock's, since records bear them. Until links are measured all nodes count as one island.

Nodes are of one class where they have the same amounts and labels, but for those that name the node itself. The labels
`price` (an hour) and `domain` (what fails together) are read, and those that say device and spot (`atoll.schema.devices`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import median

from atoll.control_plane.arbiter import model as m
from atoll.control_plane.desk import Desk, Node
from atoll.control_plane.placement import needs, units
from atoll.control_plane.state import Run
from atoll.schema.devices import by_device, device_of, is_spot
from atoll.schema.ids import NodeId, RunId, SeatId
from atoll.schema.queues import QueueWish, QuotaWish, Sharing
from atoll.schema.sharing import MOST_COUNT, Alternative
from atoll.schema.spec import JobKind, JobSpec
from atoll.schema.views import RunState

UNKNOWN_ISLAND = "unmeasured"
_MIB = 1 << 20
# Labels that tell one node from the next.
OF_ONE_NODE = frozenset({"ray.io/node-id", "ray.io/node-group", "island", "domain", "atoll-instance", "atoll-host"})
PRICE, DOMAIN = "price", "domain"


def snapshot(desk: Desk) -> m.Snapshot:
    """All that a decision rests upon, now."""
    sharing = desk.cluster.sharing
    runs = desk.cluster.open_runs()
    # Who is ending holds what it has until its processes are gone, and gives it back then: no less than who is suspended.
    granted = [run for run in runs if run.state is not RunState.QUEUED]
    islands, places = _islands(desk)
    return m.Snapshot(
        now=desk.now,
        nodes=tuple(
            _node(node, places.get(node.node, UNKNOWN_ISLAND), desk.cluster.drains)
            for node in desk.nodes.values()
            if node.usable
        ),
        islands=islands,
        flavors=flavors(sharing),
        queues=tuple(queue_spec(queue) for queue in sharing.queue),
        asks=tuple(ask(run.spec, run) for run in runs if run.state is RunState.QUEUED and not run.held),
        grants=tuple(grant(run) for run in granted),
        usage=tuple(desk.usage.values()),
        kept=desk.decided.kept if desk.decided is not None else (),
        settings=_settings(sharing),
    )


def ask(spec: JobSpec, run: Run | None = None, *, now: float = 0.0) -> m.Ask:
    """What a job asks for; `run` where it was submitted."""
    most = spec.workers if run is None else run.most
    cpus, gpus = needs(spec)
    amount = m.Amount(cpus=cpus, gpus=gpus)
    return m.Ask(
        run=run.run if run is not None else RunId(spec.run_id or spec.name),
        queue=spec.queue,
        user=spec.owner,
        team=spec.team or "",
        priority=spec.priority,
        submitted_at=run.submitted_at if run is not None else now,
        waiting_since=run.queued_at if run is not None else None,
        each=amount,
        least=spec.least,
        most=most,
        sizes=tuple(size for size in spec.worker_sizes if size <= most),
        spares=spec.spares,
        options=_options(spec, most),
        preemptible=spec.kind is JobKind.TRAIN,
        expected_s=spec.expected_s,
        declared=by_device(spec.speeds),
        measured=dict(run.measured) if run is not None else {},
        batch=float(min(run.batch if run is not None and run.batch else spec.batch, MOST_COUNT)),
        sync_bytes=float(run.sync_bytes if run is not None and run.sync_bytes else spec.sync_mib * _MIB),
        disturbed=tuple(run.disturbed) if run is not None else (),
        suspended=run.suspensions if run is not None else 0,
    )


def _options(spec: JobSpec, bound: int) -> tuple[m.Option, ...]:
    if not spec.alternatives:
        return (m.Option(),)
    found = []
    for i, wish in enumerate(spec.alternatives):
        least, most = stretch(spec, wish)
        most = min(most, bound)
        labels = ", ".join(f"{k}={v}" for k, v in wish.labels.items())
        islands = f"on {wish.islands} island{'s' * (wish.islands > 1)}" if wish.islands else "anywhere"
        size = f"{wish.share:.0%} of the workers" if wish.share < 1 else ""
        found.append(
            m.Option(
                name=f"{i + 1}. " + ", ".join(part for part in (islands, labels, size) if part),
                selector={key: (value,) for key, value in wish.labels.items()},
                islands=wish.islands,
                least=min(least, most),
                most=most,
                sizes=tuple(size for size in spec.worker_sizes if size <= most),
            )
        )
    return tuple(found)


def stretch(spec: JobSpec, wish: Alternative) -> tuple[int, int]:
    """With how few and how many workers a job runs that is placed so."""
    most = max(math.floor(spec.workers * wish.share), 1)
    return min(spec.least, most), most


def grant(run: Run) -> m.Grant:
    """What a run holds: a node for each worker by rank, those that it gives up among them, and one for each spare."""
    workers, spares = seats_by_part(run)
    leaving = [seat for seat in run.seats.values() if seat.leaving]
    return m.Grant(
        ask=ask(run.spec, run),
        nodes=tuple(run.seats[s].node for s in workers) + tuple(seat.node for seat in leaving),
        spares=tuple(run.seats[s].node for s in spares),
        since=run.placed_at,
        changed_at=run.changed_at,
        option=run.option,
        checkpoint_at=run.checkpoint.at if run.checkpoint is not None else None,
        leaving=tuple(seat.node for seat in leaving),
        suspending=run.state is RunState.STOPPING,
    )


def measure(desk: Desk, run: Run) -> None:
    """Keep samples a second of one worker alone, by device, from what its members last needed for a grain.

    What it once did on a device stands until it does otherwise there, also while it waits again after a suspension.
    """
    if not run.batch or not run.speeds.grains:
        return
    samples = run.batch / run.speeds.grains
    seen: dict[str, list[float]] = {}
    for trainer, pace in run.speeds.paces.items():
        node = desk.nodes.get(run.trainers[trainer].node) if trainer in run.trainers else None
        if node is not None and pace > 0:
            seen.setdefault(_device(node), []).append(samples / pace)
    run.measured |= {device: median(found) for device, found in seen.items()}


def seats_by_part(run: Run) -> tuple[list[SeatId], list[SeatId]]:
    """The seats that stay: those of workers, by rank as far as they have one, and those of spares."""
    ranks = {run.trainers[x.trainer].seat: x.rank for x in run.members if run.trainers[x.trainer].active}
    staying = [seat.seat for seat in run.seats.values() if not seat.leaving]
    staying.sort(key=lambda s: ranks.get(s, math.inf))
    return staying[: run.size], staying[run.size :]


# -- nodes -----------------------------------------------------------------------------------------------------------


def _node(node: Node, island: str, drained: Collection[NodeId]) -> m.NodeState:
    labels = node.seen.labels if node.seen is not None else {}
    return m.NodeState(
        node=node.node,
        kind=node_class(node),
        island=island,
        domain=labels.get(DOMAIN, ""),
        drained=node.node in drained,
    )


def node_class(node: Node) -> m.NodeClass:
    """What the node has in common with others."""
    seen = node.seen
    labels = dict(seen.labels) if seen is not None else {}
    common = {key: value for key, value in sorted(labels.items()) if key not in OF_ONE_NODE}
    total = m.Amount(cpus=units(seen.cpus), gpus=units(seen.gpus)) if seen is not None else m.Amount()
    device = _device(node)
    marks = ",".join(f"{key}={value}" for key, value in common.items())
    return m.NodeClass(
        name=f"{device} {m.device_words(total)}" + (f" [{marks}]" if marks else ""),
        device=device,
        total=total,
        labels=common,
        price_per_hour=price_of(labels),
        spot=is_spot(labels),
    )


def _device(node: Node) -> str:
    seen = node.seen
    return device_of(seen.labels, units(seen.gpus)) if seen is not None else device_of({}, 0)


def price_of(labels: Mapping[str, str]) -> float:
    """What a node costs an hour by its label; 0 where it has none that is a price."""
    try:
        price = float(labels.get(PRICE, ""))
    except ValueError:
        return 0.0
    return price if 0 <= price < math.inf else 0.0


def _islands(desk: Desk) -> tuple[tuple[m.IslandState, ...], dict[NodeId, str]]:
    probes = desk.probes
    if not probes.known.topology.links or not probes.settled:
        return (m.IslandState(name=UNKNOWN_ISLAND),), {}
    found = [m.IslandState(name=UNKNOWN_ISLAND)]
    places: dict[NodeId, str] = {}
    for island in probes.tree.innermost():
        name = island.nodes[0]
        found.append(m.IslandState(name=name, inside=island.bandwidth, across=island.reason.across))
        places |= dict.fromkeys(island.nodes, name)
    return tuple(found), places


# -- queues ----------------------------------------------------------------------------------------------------------


def flavors(sharing: Sharing) -> tuple[m.Flavor, ...]:
    """The cluster's flavors, in order."""
    return tuple(m.Flavor(name=f.name, selector=dict(f.selector)) for f in sharing.flavor)


def queue_spec(wish: QueueWish) -> m.QueueSpec:
    """A queue as the arbiter knows it."""
    return m.QueueSpec(
        name=wish.name,
        weight=wish.weight,
        cohort=wish.cohort,
        highest_priority=wish.highest_priority,
        quotas=tuple(_quota(quota) for quota in wish.quota),
    )


def _quota(wish: QuotaWish) -> m.Quota:
    return m.Quota(
        flavor=wish.flavor,
        own=m.Amount(cpus=units(wish.cpus), gpus=units(wish.gpus)),
        borrow=_bound(wish.borrow_cpus, wish.borrow_gpus),
        lend=_bound(wish.lend_cpus, wish.lend_gpus),
    )


# More than any cluster has: of one device bounded, of the other not.
_UNBOUNDED = 10_000_000.0


def _bound(cpus: float | None, gpus: float | None) -> m.Amount | None:
    if cpus is None and gpus is None:
        return None
    return m.Amount(cpus=units(_UNBOUNDED if cpus is None else cpus), gpus=units(_UNBOUNDED if gpus is None else gpus))


def _settings(sharing: Sharing) -> m.Settings:
    given = {name: getattr(sharing.settings, name) for name in type(sharing.settings).__slots__}
    return m.Settings(**{name: value for name, value in given.items() if value is not None})
