"""Lost nodes, or a network in two parts: the same silences, told apart by whom they take together.

Whole islands of several nodes that fall silent together are cut off rather than dead (`Partitioned`); what follows is
the same, since nobody can tell: our side goes on. If both parts still reach us they only do not hear each other: then
the part with more members goes on, or that of rank 0, and the others' trainers have no part until they are heard again.
Such a cut counts only if the run feels it, too: somebody waits for, or lost, a member on the other side. Beats that a
firewall swallows hurt nobody.

A pair of nodes that does not hear each other, while other pairs of their islands do, is one link that is cut; one of
its ends has to leave, that with more such links, or without rank 0. All members have to reach all.
"""

from __future__ import annotations

from atoll.fault.facts import Facts, RunFacts
from atoll.fault.hangs import Waits, waits_of
from atoll.fault.hearing import audible, ears, quiet, unheard_for
from atoll.fault.limits import TOGETHER_S, silence
from atoll.fault.silence import Silent, silent_nodes
from atoll.fault.verdicts import NodeLost, Partitioned
from atoll.schema.ids import NodeId

Pair = tuple[NodeId, NodeId]
Side = frozenset[NodeId]
Cut = tuple[Side, Side]


def lost_nodes(facts: Facts) -> list[NodeLost | Partitioned]:
    """Nodes that nobody hears: each lost, or all together cut off."""
    silent = silent_nodes(facts)
    due = [s for s in silent if s.due]
    if not due:
        return []
    islands = _whole_islands([s.node for s in silent], facts)
    if islands and {s.node for s in due} <= islands:
        late = [s for s in silent if s.node in islands and not s.due]
        if late and all(s.for_s < s.limit_s + TOGETHER_S for s in due):
            return []
        if not late:
            return [_cut_off(due, facts)]
    return [NodeLost(node=s.node, evidence=s.evidence) for s in due]


def _whole_islands(silent: list[NodeId], facts: Facts) -> frozenset[NodeId]:
    """The silent nodes, if they are more than one and make up whole islands; else none."""
    watched = set(facts.watchers)
    gone = set(silent) | {n.node for n in facts.nodes.values() if n.lost}
    islands = [{n for n in island if n in watched} for island in facts.islands]
    whole = {n for island in islands if len(island & watched) > 1 and island <= gone for n in island}
    return frozenset(whole if whole and set(silent) <= whole else ())


def _cut_off(due: list[Silent], facts: Facts) -> Partitioned:
    cut = tuple(sorted(s.node for s in due))
    kept = tuple(sorted(n.node for n in facts.nodes.values() if n.node in facts.watchers and audible(n, facts)))
    evidence = (
        f"{', '.join(cut)} fell silent together, {min(s.for_s for s in due):.1f} s ago, "
        f"to {', '.join(kept)}{' and ' * bool(kept)}the control plane"
    )
    return Partitioned(kept=kept, cut=cut, run=None, reached=False, evidence=evidence)


# -- parts that both reach us ----------------------------------------------------------------------------------------


def deaf_pairs(facts: Facts) -> dict[Pair, float]:
    """Pairs of nodes that we hear and of which one does not hear the other, and for how long.

    Of a host that died we heard as long ago as its listeners did: one that we heard well after them lives.
    """
    found: dict[Pair, float] = {}
    limit = silence(facts.strain_s)
    for name, listening in facts.watchers.items():
        node = facts.nodes.get(name)
        if node is None or not audible(node, facts):
            continue
        for listener in listening:
            said = ears(listener, facts)
            lasted = unheard_for(said, name, facts.now) if said is not None else None
            if lasted is not None and lasted >= limit and quiet(node, facts.now) <= lasted - limit / 2:
                pair = _pair(name, listener)
                found[pair] = max(found.get(pair, 0.0), lasted)
    return found


def split(run: RunFacts, facts: Facts, deaf: dict[Pair, float]) -> Partitioned | None:
    """The part of `run` that has to leave because of pairs that do not hear each other, if the run feels it."""
    waits = waits_of(run, facts)
    nodes = frozenset(m.node for m in run.members if audible(facts.nodes.get(m.node), facts))
    cuts = sorted({_sides(pair, facts, deaf) for pair in deaf}, key=lambda cut: [sorted(side) for side in cut])
    felt = [cut for cut in cuts if all(side & nodes for side in cut) and _felt(run, cut, waits)]
    if not felt:
        return None
    cut = _leaving(run, felt) & nodes
    kept = nodes - cut
    if not cut or not kept:
        return None
    lasted = max(deaf.values())
    how = "; ".join(f"{' '.join(sorted(a & nodes))} and {' '.join(sorted(b & nodes))}" for a, b in felt)
    named = ", ".join(sorted(waits.by))
    evidence = f"{how} do not hear each other ({lasted:.1f} s)" + (f", {named} waiting" if named else ", regrouping")
    return Partitioned(kept=tuple(sorted(kept)), cut=tuple(sorted(cut)), run=run.run, reached=True, evidence=evidence)


def _sides(pair: Pair, facts: Facts, deaf: dict[Pair, float]) -> Cut:
    """What lies on either side: the islands of both, if no pair between them hears each other; else the two nodes."""
    one, other = (next((frozenset(i) for i in facts.islands if n in i), frozenset({n})) for n in pair)
    ties = [_pair(n, w) for n in one for w in facts.watchers.get(n, ()) if w in other]
    if one == other or any(tie not in deaf for tie in ties):
        one, other = frozenset({pair[0]}), frozenset({pair[1]})
    return one, other


def _pair(one: NodeId, other: NodeId) -> Pair:
    return (one, other) if one < other else (other, one)


def _felt(run: RunFacts, cut: Cut, waits: Waits) -> bool:
    """Whether the cut keeps anybody waiting for a member on its other side, or all from regrouping."""
    if all(any(m.node in side and not m.joined for m in run.members) for side in cut):
        return True
    where = {m.trainer: m.node for m in run.members}
    across = ((where[t], where[w]) for t in where for w in waits.naming(t) if w in where)
    return any(one in a and other in b for one, other in across for a, b in (cut, cut[::-1]))


def _leaving(run: RunFacts, cuts: list[Cut]) -> frozenset[NodeId]:
    """Of each cut one side: that with fewer members, with more cuts, or without rank 0."""
    gone: frozenset[NodeId] = frozenset()
    sides = [side for cut in cuts for side in cut]
    for weaker in sorted(sides, key=lambda side: _weight(run, side, sides), reverse=True):
        if any(weaker in cut and not any(side <= gone for side in cut) for cut in cuts):
            gone |= weaker
    return gone


def _weight(run: RunFacts, side: Side, sides: list[Side]) -> tuple[int, int, bool, list[NodeId]]:
    """How much there is to be said for this side to leave."""
    first = any(m.rank == 0 and m.node in side for m in run.members)
    return -sum(1 for m in run.members if m.node in side), sides.count(side), not first, sorted(side)
