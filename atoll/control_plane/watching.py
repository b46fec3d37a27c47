"""What is observed of trainers and nodes, kept for the detector; and who watches whom.

All of it is volatile. Observations change no decision by themselves: they are folded into the state here, and
`judgement` asks the detector at each tick, and at once after one that could complete a verdict (the handlers return
True for those). The nodes with trainers of open runs, and the control plane's own as a witness, beat to each other in
the ring of `fault.ring`; whoever attaches, and whoever's neighbours change, is told so.
"""

from __future__ import annotations

from collections.abc import Iterable

from atoll.control_plane.desk import Desk, Node
from atoll.control_plane.state import Run, Trainer
from atoll.fault.facts import (
    Ears,
    Facts,
    MissingFacts,
    NodeFacts,
    RunFacts,
    TrainerFacts,
    Wait,
)
from atoll.fault.hangs import beat_age
from atoll.fault.hearing import audible
from atoll.fault.limits import DEAF_S, SETTLED_S, Limits
from atoll.fault.ring import ring
from atoll.schema import messages as m
from atoll.schema.ids import NodeId
from atoll.schema.spec import JobKind

# After a restart agents come back by themselves within a second or two; who has not by then is silent.
RETURN_S = 3.0
# A stall of this process by more than this makes what it knows old; it lasts until it has read what waited for it.
STALL_S, DRAIN_S = 0.5, 0.3
# Who heard nobody hears one agent first, and the others' words are as old as before: each says all it knows once a second.
HEARD_AGAIN_S = 2.0
# A spare whose interpreter gives no thread a turn for so long is not asked to join just then.
DULL_S = 1.0
# An agent that comes back says again what was committed before; that shows nobody alive now.
SAID_AGAIN_S = 1.0


# -- facts -----------------------------------------------------------------------------------------------------------


def trainer_watched(desk: Desk, fact: m.TrainerWatched) -> bool:
    """How a trainer's process looks."""
    run = desk.cluster.runs.get(fact.run)
    trainer = run.trainers.get(fact.trainer) if run is not None else None
    if trainer is None or not trainer.active:
        return False
    desk.strain.note(fact.behind_s, at=desk.clock)
    trainer.process = trainer.track.looked(
        state=fact.state, cpu_s=fact.cpu_s, beat_age_s=fact.beat_age_s, late_s=fact.behind_s, at=desk.clock
    )
    return trainer.process.stopped_at is not None


def peers_watched(desk: Desk, node: Node, fact: m.PeersWatched) -> bool:
    """Which nodes an agent hears."""
    desk.strain.note(fact.behind_s, at=desk.clock)
    silent = {peer.node: peer.for_s for peer in fact.silent}
    node.ears = Ears(at=desk.clock, heard=frozenset(fact.heard), silent=silent, late_s=fact.behind_s)
    return bool(silent)


def waiting(desk: Desk, run: Run, trainer: Trainer, fact: m.Waiting) -> bool:
    """Whom a member waits for, or that it waits no longer."""
    run.waits.pop(trainer.trainer, None)
    if fact.epoch < run.epoch:
        desk.tell_membership(run, trainer)  # it may not know yet that it waits for nothing
    if fact.epoch != run.epoch or not (fact.missing or fact.silent):
        return False
    run.waits[trainer.trainer] = Wait(
        at=desk.clock,
        trainer=trainer.trainer,
        epoch=fact.epoch,
        operation=fact.operation,
        sequence=fact.sequence,
        for_s=fact.for_s,
        missing=fact.missing,
        silent=fact.silent,
    )
    return True


def busy(desk: Desk, trainer: Trainer, fact: m.Busy) -> None:
    """A trainer works on something of its own, or has ended that."""
    trainer.busy_until = desk.clock + fact.limit_s if fact.limit_s > 0 else 0.0


def committed(desk: Desk, run: Run, trainer: Trainer, fact: m.StepCommitted) -> None:
    """A step was committed: the run lives, and this is its pace."""
    trainer.steps = True
    run.pace.committed(fact.epoch, fact.step, fact.step_s)
    if fact.epoch != run.epoch:
        return
    home = desk.nodes.get(trainer.node)
    if home is None or desk.clock - home.attached_at >= SAID_AGAIN_S:
        run.committed_at = desk.clock
    for member in map(run.trainers.__getitem__, run.member_ids()):
        node = desk.nodes.get(member.node)
        if node is None or not node.attached:
            # All members voted, so this one is in, though its agent cannot say so.
            member.joined = run.epoch


def ticked(desk: Desk, late_s: float) -> None:
    """Time went on, and this process was so late to notice."""
    desk.strain.note(late_s, at=desk.clock)
    if late_s > STALL_S:
        desk.steady_at = max(desk.steady_at, desk.clock + DRAIN_S)
    if _deaf(desk):
        desk.steady_at = desk.clock + HEARD_AGAIN_S
    _count(desk)


def hears(desk: Desk, node: NodeId) -> bool:
    """Whether we hear the node now."""
    known = desk.nodes.get(node)
    return known is not None and audible(_node_facts(desk, known), _now(desk))


def hears_others(desk: Desk) -> bool:
    """Whether we hear any host but our own now."""
    return any(hears(desk, n.node) for n in desk.nodes.values() if n.attached and not n.local)


def hears_of(desk: Desk, run: Run) -> bool:
    """Whether we hear a member now that holds the run's state."""
    return any(t.active and t.holds and hears(desk, t.node) for t in map(run.trainers.__getitem__, run.member_ids()))


def settled(desk: Desk) -> bool:
    """Whether any host but our own has been heard on end for so long that the others' agents would be back, too."""
    others = [n for n in desk.nodes.values() if n.attached and not n.local]
    return any(desk.clock - n.heard_since >= SETTLED_S and hears(desk, n.node) for n in others)


def commits(desk: Desk, run: Run) -> bool:
    """Whether it commits steps, as far as we hear: all members vote, so all of them live."""
    limits = Limits(run.pace.p99_s, desk.strain.worst(now=desk.clock))
    return run.committed_at > 0.0 and desk.clock - run.committed_at < limits.unneeded


def _count(desk: Desk) -> None:
    """For how long others were heard while a node stayed lost."""
    past, desk.counted_at = desk.clock - desk.counted_at, desk.clock
    lost = {n.node: n for n in desk.nodes.values() if n.lost}
    if lost and hears_others(desk):
        desk.others_heard_at = desk.clock
        for node in lost.values():
            node.unmet_s += past
    elif desk.clock - desk.others_heard_at >= DEAF_S:
        for node in lost.values():
            node.unmet_s = 0.0
    for run in desk.cluster.open_runs() if lost else ():
        away = [lost[n] for n in {t.node for t in run.trainers.values() if t.active} & lost.keys()]
        if away and hears_of(desk, run):
            run.holder_heard_at = desk.clock
            for node in away:
                node.unmet[run.run] = node.unmet.get(run.run, 0.0) + past
        elif desk.clock - run.holder_heard_at >= DEAF_S:
            for node in away:
                node.unmet.pop(run.run, None)


def _deaf(desk: Desk) -> bool:
    """Whether nobody is heard at all, not even our own host's agent, though its stream stands and crosses no network.

    Then our ears get no turn, or the whole machine; and nobody could be told what follows from a verdict.
    """
    own, now = any(node.local and node.attached for node in desk.nodes.values()), _now(desk)
    return own and not any(audible(_node_facts(desk, node), now) for node in desk.nodes.values())


# -- for the detector ------------------------------------------------------------------------------------------------


def facts(desk: Desk, *, stalled: bool = False) -> Facts:
    """All that the detector may know now."""
    runs = desk.cluster.open_runs()
    return Facts(
        now=desk.clock,
        runs=tuple(_run_facts(run) for run in runs if run.epoch > 0),
        nodes={name: _node_facts(desk, node) for name, node in desk.nodes.items()},
        missing=tuple(found for run in runs for found in _missing(desk, run)),
        watchers=desk.watchers,
        islands=tuple(island.nodes for island in desk.probes.tree.innermost()),
        strain_s=desk.strain.worst(now=desk.clock),
        steady=desk.clock >= desk.steady_at and not stalled,
    )


def _run_facts(run: Run) -> RunFacts:
    ranks = {member.trainer: member.rank for member in run.members}
    trainers = tuple(
        TrainerFacts(
            trainer=t.trainer,
            node=t.node,
            rank=ranks.get(t.trainer),
            joined=t.joined >= run.epoch,
            steps=t.steps,
            busy_until=t.busy_until,
            holds=t.active and (t.holds or t.presumed),
            process=t.process if t.active else None,
        )
        for t in run.trainers.values()
        if t.began is not None and (t.active or t.trainer in ranks)
    )
    return RunFacts(
        run=run.run,
        epoch=run.epoch,
        trainers=trainers,
        blames=tuple(run.blames),
        waits=tuple(run.waits.values()),
        step_s=run.pace.p99_s,
        committed_at=run.committed_at,
        compared=run.comparisons.found,
    )


def _node_facts(desk: Desk, node: Node) -> NodeFacts:
    return NodeFacts(
        node=node.node,
        attached=node.attached,
        heard_at=node.heard_at,
        ray_alive=node.seen is not None and node.seen.alive,
        local=node.local,
        attached_at=node.attached_at,
        heard_since=node.heard_since,
        known=node.known or desk.clock >= RETURN_S,
        lost=node.lost,
        unmet=node.unmet,
        ears=node.ears,
    )


def _missing(desk: Desk, run: Run) -> list[MissingFacts]:
    return [
        MissingFacts(run=run.run, trainer=t.trainer, node=t.node, since=t.missing_since)
        for t in run.trainers.values()
        if t.missing_since is not None and not t.gone and desk.nodes[t.node].attached
    ]


def able(desk: Desk, run: Run, trainer: Trainer) -> bool:
    """Whether a trainer that is ready could join now: its node is heard and not cut off, its process not stopped."""
    node = desk.nodes.get(trainer.node)
    if node is None or not node.attached or node.lost or trainer.node in run.apart or in_doubt(desk, run):
        return False
    process = trainer.process
    if process is not None and (process.stopped_at is not None or beat_age(process, desk.clock) > DULL_S):
        return False
    return run.epoch == 0 or audible(_node_facts(desk, node), _now(desk))


def in_doubt(desk: Desk, run: Run) -> bool:
    """Whether members may train on where nobody reaches them (`judgement`): until that is known nobody joins."""
    members = (run.trainers[t] for t in run.member_ids())
    return any(t.active and t.node in desk.nodes and desk.nodes[t.node].lost for t in members)


def _now(desk: Desk) -> Facts:
    return Facts(now=desk.clock, strain_s=desk.strain.worst(now=desk.clock))


# -- the ring --------------------------------------------------------------------------------------------------------


def tell_ring(desk: Desk) -> None:
    """Say to each node whom it beats to and listens for, where that is not what it was told."""
    wanted, tree = _watched(desk), desk.probes.tree
    if desk.ring_of is not None and desk.ring_of[0] is tree and desk.ring_of[1:] == (wanted, desk.attaches):
        return
    desk.ring_of = (tree, wanted, desk.attaches)
    for name in wanted:
        # After a restart nobody may have said anything of a node whose trainers the journal names.
        desk.nodes.setdefault(name, Node(node=name))
    desk.watchers = ring((island.nodes for island in tree.innermost()), wanted) if len(wanted) > 1 else {}
    for node in desk.nodes.values():
        neighbours = desk.watchers.get(node.node, ())
        command = m.WatchPeers(beat=_doors(desk, neighbours), listen=neighbours, key=desk.beat_key)
        if node.attached and command != node.listens and (neighbours or node.listens is not None):
            node.listens = command
            desk.send(node.node, command)


def _watched(desk: Desk) -> frozenset[NodeId]:
    runs = [run for run in desk.cluster.open_runs() if run.spec.kind is JobKind.TRAIN and not desk.closing]
    homes = {t.node for run in runs for t in run.active()}
    witness = {n.node for n in desk.nodes.values() if n.attached and n.local}
    lost = {n.node for n in desk.nodes.values() if n.lost}
    return frozenset((homes | witness) - lost if homes else ())


def _doors(desk: Desk, names: Iterable[NodeId]) -> tuple[m.WatchedPeer, ...]:
    return tuple(m.WatchedPeer(node=n, doors=desk.nodes[n].doors) for n in names if desk.nodes[n].doors)
