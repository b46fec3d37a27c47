"""The detector's verdicts, carried out: who has no part any more, which connections are made anew, which run stops.

A member that is lost costs its run one epoch, nothing else, as long as one survives whose acknowledgement fences it
(law 1). A run with no member that we hear has no such survivor, and nobody can know whether it still trains: members on
nodes that are lost are held as they are. If all are heard again within `LEASE_S`, and soon one after the other, nothing
has happened; if one is, the others are lost once nobody can think that they are on their way (`silence.left_behind`). After the lease a trainer that
hears neither agent nor peers has ended itself, its death counts as proven, and the run goes on from its last checkpoint.
While we hear no host but our own it may be we who are cut off, and members who hear each other train on: they stay held
until another was heard for `BACK_S` in all.
"""

from __future__ import annotations

from typing import assert_never

from atoll.control_plane import corruption, watching
from atoll.control_plane import effects as fx
from atoll.control_plane.agent_facts import gone
from atoll.control_plane.desk import Desk
from atoll.control_plane.records import End
from atoll.control_plane.settle import LIFELINE_S, begin_stop, end_trainer, free_seat, regroup, settle
from atoll.control_plane.state import Run, Trainer
from atoll.errors import ProgramFailed
from atoll.fault import verdicts as v
from atoll.fault.detector import fold
from atoll.fault.facts import Blame
from atoll.fault.limits import BACK_S
from atoll.fault.partitions import deaf_pairs
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.spec import JobKind
from atoll.schema.views import RunState

# A trainer's lifeline, and what its looks at the clock may be late.
LEASE_S = LIFELINE_S + 10.0
# A cut that healed has to hold that long before whoever was behind it may join.
HEALED_S = 3.0


def judge(desk: Desk, *, stalled: bool = False) -> None:
    """Ask the detector, and do what its verdicts ask for."""
    facts = watching.facts(desk, stalled=stalled)
    deaf = {node for pair in deaf_pairs(facts) for node in pair}
    for run in desk.cluster.open_runs():
        run.apart = {
            n: desk.clock if n in deaf else at for n, at in run.apart.items() if n in deaf or desk.clock - at < HEALED_S
        }
    verdicts = fold(facts)
    for verdict in verdicts:
        _carry_out(desk, verdict)
    # What fell together leaves together: one epoch for all of it.
    for run in desk.cluster.open_runs() if verdicts else ():
        settle(desk, run)


def _carry_out(desk: Desk, verdict: v.Verdict) -> None:
    match verdict:
        case v.LinkBroken() | v.HungLink():
            _connect_anew(desk, desk.cluster.runs[verdict.run], verdict)
        case v.TrainerLost():
            _lost(desk, verdict.run, verdict.trainer, verdict.evidence, proof=verdict.proof)
        case v.Hung():
            _lost(desk, verdict.run, verdict.trainer, f"hung: {verdict.evidence}")
        case v.NodeLost():
            node_lost(desk, verdict.node, verdict.evidence)
        case v.Partitioned():
            _partitioned(desk, verdict)
        case v.Desync():
            run = desk.cluster.runs[verdict.run]
            reason = f"its members call different operations, which is a bug of the program: {verdict.evidence}"
            begin_stop(desk, run, RunState.FAILED, reason, ProgramFailed.exit_code)
        case v.Corrupt():
            corruption.corrupt(desk, desk.cluster.runs[verdict.run], verdict)
        case v.Divided():
            corruption.divided(desk, desk.cluster.runs[verdict.run], verdict)
        case _:
            assert_never(verdict)


def _connect_anew(desk: Desk, run: Run, verdict: v.LinkBroken | v.HungLink) -> None:
    if run.state is RunState.RUNNING:
        if isinstance(verdict, v.HungLink):
            blame = Blame(
                at=desk.clock,
                peer=verdict.silent,
                epoch=run.epoch,
                evidence="it sends nothing",
                by=verdict.waiting,
            )
            run.blames.append(blame)
        regroup(desk, run, verdict.evidence)
    else:
        run.blames = [b for b in run.blames if b.epoch != run.epoch]


def _lost(desk: Desk, run_id: RunId, trainer_id: TrainerId, evidence: str, *, proof: bool = False) -> None:
    run = desk.cluster.runs[run_id]
    trainer = run.trainers[trainer_id]
    if desk.nodes[trainer.node].lost and not proof and trainer in _held(desk, run):
        return
    end_trainer(desk, run, trainer, End.LOST, evidence)
    if proof:
        gone(desk, run, trainer, evidence)
    _clear(desk, run)


def _partitioned(desk: Desk, verdict: v.Partitioned) -> None:
    if verdict.run is None:
        desk.note(None, ", ".join(verdict.cut), "partitioned", verdict.evidence)
        # All first, so that no run is given a survivor of the part that is cut off.
        for node in verdict.cut:
            _mark_lost(desk, node)
        for node in verdict.cut:
            _empty(desk, node, f"partitioned: {verdict.evidence}")
        return
    run = desk.cluster.runs[verdict.run]
    desk.note(run.run, run.run, "partitioned", f"{verdict.evidence}; {', '.join(verdict.kept)} goes on")
    run.apart |= dict.fromkeys(verdict.cut, desk.clock)
    for trainer in [t for t in run.active() if t.node in verdict.cut]:
        end_trainer(desk, run, trainer, End.LOST, f"partitioned: {verdict.evidence}")


def node_lost(desk: Desk, node: NodeId, evidence: str) -> None:
    """The node and all on it are out of reach."""
    _mark_lost(desk, node)
    desk.note(None, node, "node-lost", evidence)
    _empty(desk, node, f"{node} is {evidence}")


def _mark_lost(desk: Desk, node: NodeId) -> None:
    desk.nodes[node].lost, desk.nodes[node].lost_at = True, desk.clock
    desk.nodes[node].unmet_s, desk.nodes[node].unmet = 0.0, {}
    desk.probes.lost(node)
    if desk.nodes[node].attached:
        desk.do(fx.HangUp(node=node))


def _empty(desk: Desk, node: NodeId, evidence: str) -> None:
    """Take its part from all that is on the node, but from members that are the last of their run."""
    for run in desk.cluster.open_runs():
        here = [t for t in run.active() if t.node == node]
        if not here and all(s.node != node for s in run.seats.values()):
            continue
        held = _held(desk, run)
        if names := ", ".join(t.trainer for t in held if t.node == node):
            why = f"no member is left that is heard, and {names} may train on: held for {LEASE_S:.0f} s, or until another is back for {BACK_S:.0f} s"
            desk.note(run.run, run.run, "held", f"{evidence}: {why}")
        for trainer in [t for t in here if t not in held]:
            end_trainer(desk, run, trainer, End.LOST, evidence)
        _clear(desk, run)


def _clear(desk: Desk, run: Run) -> None:
    """Give back the seats on lost nodes, but those of members that are held: they may sit there still."""
    occupied = {t.seat for t in run.active()}
    for seat in [s.seat for s in run.seats.values() if s.seat not in occupied and s.node in desk.nodes]:
        if desk.nodes[run.seats[seat].node].lost:
            free_seat(desk, run, seat)


def _held(desk: Desk, run: Run) -> list[Trainer]:
    """Members that hold the state, if none of them is heard: only the lease can tell that they ended.

    To be heard is more than not to be lost: silences of one cut come to an end one after another, and whoever's was last
    would be left with the run.
    """
    if run.spec.kind is not JobKind.TRAIN or run.state is RunState.STOPPING:
        return []
    holders = [t for t in map(run.trainers.__getitem__, run.member_ids()) if t.active and (t.holds or t.presumed)]
    return [] if watching.hears_of(desk, run) else holders


def lapse(desk: Desk) -> None:
    """Leases that ran out: what was held on a lost node is lost, and whoever is out of reach for so long is gone.

    A member of a run that commits steps, as others of it tell, lives and is not alone.
    """
    settled = watching.settled(desk)
    for run in desk.cluster.open_runs():
        late = [t for t in run.trainers.values() if not t.gone and t.began is not None and _out_of_reach(desk, t)]
        votes = set(run.member_ids()) if watching.commits(desk, run) else set()
        late = [t for t in late if not t.active or (settled and _unmet(desk, t) and t.trainer not in votes)]
        for trainer in late:
            evidence = f"{trainer.node} has been silent for {LEASE_S:.0f} s, after which a trainer alone ends itself"
            end_trainer(desk, run, trainer, End.LOST, evidence)
            gone(desk, run, trainer, evidence)
        if late:
            _clear(desk, run)
            settle(desk, run)


def _unmet(desk: Desk, trainer: Trainer) -> bool:
    """Whether other hosts were heard for so long, in all, that its own would be back if the cut had been ours."""
    return desk.nodes[trainer.node].unmet_s >= BACK_S


def _out_of_reach(desk: Desk, trainer: Trainer) -> bool:
    node = desk.nodes.get(trainer.node)
    if node is None or (node.attached and not node.lost):
        return False
    return desk.clock - (node.lost_at if node.lost else node.heard_at) >= LEASE_S and (node.lost or not trainer.active)
