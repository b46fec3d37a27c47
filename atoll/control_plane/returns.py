"""Back to a link that is well again: a run whose members met around it is told to connect anew.

Members meet by the best NICs that answer, and keep them for an epoch. When a lane that was cut answers again, a new epoch
brings the pair back to it: nobody is blamed, and no step is lost, but the step in hand is tried again. So it happens once a
minute at most, and only where what the run's members have to sum is predicted to take less by a fifth. A lane that answers
probes and does not take the members, for whatever reason, is tried after twice the time, and again twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from atoll.collectives.network import network_on
from atoll.collectives.planner import Planner
from atoll.collectives.probing import Lane, lane_of
from atoll.control_plane.desk import Desk
from atoll.control_plane.settle import regroup
from atoll.control_plane.state import Run
from atoll.schema.ids import NodeId, RunId
from atoll.schema.topology import Topology
from atoll.schema.views import RunState

# A link that comes and goes costs a run one retry a minute.
RETURN_S = 60.0
LONGEST_S = 3600.0
# Predictions of unlike plans are that far from what is measured; less is no gain.
WORTH = 0.8
# The size of message by which plans are compared: the gradients of two million parameters.
MESSAGE_BYTES = 8 << 20
# Plans of more members take longer to compare than the control plane may think: of 8 a seventh of a second, of 16 half a
# one, of 32 three, after which it is taken for frozen. There a better link is reason enough.
PLANNED_MEMBERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What an all-reduce is predicted to take without the lanes and with them, in seconds; None: too many members."""

    without_s: float | None
    with_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """Connect anew."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """Go on as it is."""

    reason: str


def decide(lanes: Sequence[Lane], gain: Gain, since_s: float | None, span_s: float = RETURN_S) -> Return | Stay:
    """Whether a run goes back to `lanes`, which are well again. `since_s`: how long ago it last did, if ever.

    `span_s` lies between two returns.
    """
    named = ", ".join(f"{w.source} {w.source_nic} - {w.target} {w.target_nic}" for w in lanes)
    if since_s is not None and since_s < span_s:
        return Stay(
            reason=f"{named}: well again; went back to a link {since_s:.0f} s ago, once in {span_s:.0f} s is enough"
        )
    if gain.without_s is None or gain.with_s is None:
        return Return(reason=f"a link is well again: {named}")
    spans = f"{MESSAGE_BYTES >> 20} MiB take {gain.with_s:.3g} s instead of {gain.without_s:.3g} s"
    if gain.with_s > gain.without_s * WORTH:
        return Stay(reason=f"{named}: well again, but not worth a new epoch: {spans}")
    return Return(reason=f"a link is well again: {named}: {spans}")


def gain_of(nodes: Sequence[NodeId], topology: Topology, lanes: Iterable[Lane]) -> Gain:
    """What members on `nodes`, by rank, gain by `lanes` of `topology`."""
    if len(nodes) > PLANNED_MEMBERS:
        return Gain(without_s=None, with_s=None)
    around = set(lanes)
    less = dataclasses.replace(topology, links=tuple(k for k in topology.links if lane_of(k) not in around))
    spans = []
    for known in (less, topology):
        network = network_on(tuple(nodes), known)
        spans.append(Planner(network.fabric, network.groups).choose(MESSAGE_BYTES // 4, 4).predicted_s)
    return Gain(without_s=spans[0], with_s=spans[1])


@dataclass(slots=True)
class _Last:
    """When a run last went back, in which epoch, to what; and when it may again."""

    at: float
    epoch: int
    lanes: frozenset[Lane]
    span_s: float = RETURN_S


@dataclass(slots=True)
class Returns:
    """Lanes around which each run met, in its epoch; those of them that are well again; when it last went back."""

    around: dict[RunId, tuple[int, set[Lane]]] = field(default_factory=dict)
    well: set[Lane] = field(default_factory=set)
    last: dict[RunId, _Last] = field(default_factory=dict)

    def met(self, run: RunId, epoch: int, lane: Lane) -> None:
        """Members of `run` met around `lane`."""
        if self.around.get(run, (0, set()))[0] != epoch:
            self.around[run] = (epoch, set())
            last = self.last.get(run)
            if last is not None and last.epoch == epoch and lane in last.lanes:
                last.span_s = min(2 * last.span_s, LONGEST_S)
        self.around[run][1].add(lane)
        self.well.discard(lane)


def tick(desk: Desk, returns: Returns) -> None:
    """Take up what members told, and lead runs back."""
    for run_id, epoch, lane in desk.probes.suspects.take_detours():
        returns.met(run_id, epoch, lane)
    returns.well |= desk.probes.suspects.take_well()
    runs = {run.run: run for run in desk.cluster.open_runs()}
    returns.around = {r: found for r, found in returns.around.items() if r in runs and runs[r].epoch == found[0]}
    for run_id, (_, lanes) in list(returns.around.items()):
        ready = sorted(lanes & returns.well, key=lambda w: (w.nodes, w.source_nic, w.target_nic))
        if ready and runs[run_id].state is RunState.RUNNING:
            _lead_back(desk, returns, runs[run_id], ready)
    returns.last = {r: last for r, last in returns.last.items() if r in runs}
    returns.well &= {lane for _, lanes in returns.around.values() for lane in lanes}


def _lead_back(desk: Desk, returns: Returns, run: Run, lanes: Sequence[Lane]) -> None:
    nodes = [m.node for m in run.members]
    topology = desk.probes.part(frozenset(nodes))
    if topology is None:
        return
    last = returns.last.get(run.run)
    since_s, span_s = (None, RETURN_S) if last is None else (desk.clock - last.at, last.span_s)
    early = since_s is not None and since_s < span_s
    gain = Gain(without_s=None, with_s=None) if early else gain_of(nodes, topology, lanes)
    found = decide(lanes, gain, since_s, span_s)
    if isinstance(found, Return):
        del returns.around[run.run]
        desk.note(run.run, run.run, "link-well", found.reason)
        regroup(desk, run, found.reason)
        again = last is not None and bool(last.lanes & set(lanes)) and last.span_s > RETURN_S
        returns.last[run.run] = _Last(desk.clock, run.epoch, frozenset(lanes), span_s if again else RETURN_S)
    elif not early:
        # Told once; asked again when the network is known otherwise.
        returns.around[run.run][1].difference_update(lanes)
        desk.note(run.run, run.run, "link-well", found.reason)
