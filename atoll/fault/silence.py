"""When silence means that a node is lost, and when it only means that a path is.

A node is lost if three kinds of witnesses agree. Its agent's stream to the control plane brings nothing; every agent
that listens for it, and that we hear, does not hear it (two where two exist); and its trainers are needed now and do
not come: somebody waits for them, lost its connection, or regroups without them. If nobody needs them it is lost later
(`limits.unneeded`), unless a step was committed meanwhile: all members vote, so such a node lives, its agent frozen.

Where the listeners hear it but our stream does not, our path to it is broken and training goes on. Only if, besides,
all who wait on other nodes wait for its trainers does one direction of its links not work, and it is lost, too.

- The control plane's own host is never lost. If we hear none but our own host and several fell silent, it may be us
  who are cut off: `ALONE_S`.
- A listener that was late to look has no word, nor has one that we do not hear ourselves. Where we hear none of them,
  our own ears have to do.
- What stalled this process, or was lately late, lengthens every limit (`limits`).
- A node without listeners, or without trainers, is lost only by the slow rule: its stream is gone, Ray calls it dead,
  `NODE_SILENCE_S` passed, and another agent is heard meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.fault.facts import Facts, NodeFacts, RunFacts, TrainerFacts
from atoll.fault.hangs import Waits, awaited, waits_of
from atoll.fault.hearing import audible, ears, quiet, unheard_for
from atoll.fault.limits import ALONE_S, BACK_S, NODE_SILENCE_S, SETTLED_S, Limits, silence
from atoll.fault.verdicts import NodeLost, TrainerLost
from atoll.schema.ids import NodeId

# An agent heard within this time proves that our side of the network works.
REACHABLE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A node that nobody hears, for how long, by whose word; and for how long it has to be, to be lost."""

    node: NodeId
    for_s: float
    limit_s: float
    evidence: str

    @property
    def due(self) -> bool:
        """Whether it is lost."""
        return self.for_s >= self.limit_s


def silent_nodes(facts: Facts) -> list[Silent]:
    """All nodes that nobody hears, with whether that has lasted long enough."""
    found = [_judged(node, facts) for node in facts.nodes.values() if not node.local and not node.lost and node.known]
    return [s for s in found if s is not None]


def _judged(node: NodeFacts, facts: Facts) -> Silent | None:
    ours, limit = quiet(node, facts.now), silence(facts.strain_s)
    words, listeners = _words(node.node, facts), facts.watchers.get(node.node, ())
    orphan = bool(listeners) and not any(audible(facts.nodes.get(w), facts) for w in listeners)
    if ours < limit / 2 or not (words or orphan):
        return None
    if hearing := sorted(w for w, unheard in words.items() if unheard == 0.0):
        return _one_way(node, hearing, facts) if ours >= limit else None
    lasted = min([ours, *words.values()])
    patience = _patience(node, facts, since=facts.now - lasted)
    if patience is None:
        return None
    who = f"{', '.join(sorted(words))} and the control plane" if words else "the control plane"
    evidence = f"unheard for {lasted:.1f} s by {who}" + ("" if words else ", as are all who listen for it")
    until = max(patience, limit, ALONE_S if _may_be_us(facts) else 0.0)
    return Silent(node=node.node, for_s=lasted, limit_s=until, evidence=evidence)


def _words(node: NodeId, facts: Facts) -> dict[NodeId, float]:
    """For how long each listener whose word counts has not heard the node."""
    said = {w: e for w in facts.watchers.get(node, ()) if (e := ears(w, facts)) is not None}
    return {w: t for w, e in said.items() if (t := unheard_for(e, node, facts.now)) is not None}


def _patience(node: NodeFacts, facts: Facts, *, since: float) -> float | None:
    """How long to wait for the sake of those who need the node; None if nobody has a part there, or it shows life."""
    patience: list[float] = []
    for run in facts.runs:
        here = trainers_on(run, node.node)
        limits = Limits(run.step_s, facts.strain_s)
        member = any(t.rank is not None and t.joined for t in here)
        after = run.committed_at > since + silence(facts.strain_s) / 2
        if member and after and facts.now - run.committed_at < limits.unneeded:
            return None
        if here:
            patience.append(_patience_of(run, here, node, facts))
    return min(patience, default=None)


def _patience_of(run: RunFacts, here: list[TrainerFacts], node: NodeFacts, facts: Facts) -> float:
    waits = waits_of(run, facts)
    if closed := not node.attached and node.attached_at > 0.0:
        # A stream that was closed says that the host lives: its agent is being started anew. That others wait for a
        # trainer there, for an evaluation perhaps, says nothing of it; a broken connection, or one not made, does.
        waits = Waits({}, waits.blamed)
    if any(awaited(run, t, waits) for t in here):
        return 0.0
    return NODE_SILENCE_S if closed or not node.attached else Limits(run.step_s, facts.strain_s).unneeded


def trainers_on(run: RunFacts, node: NodeId) -> list[TrainerFacts]:
    """The run's trainers on a node."""
    return [t for t in run.trainers if t.node == node]


def _may_be_us(facts: Facts) -> bool:
    """We hear our own host only, and more than one other fell silent."""
    others = [n for n in facts.nodes.values() if not n.local and n.known and not n.lost and n.node in facts.watchers]
    return len(others) > 1 and not any(audible(n, facts) for n in others)


def _one_way(node: NodeFacts, hearing: list[NodeId], facts: Facts) -> Silent | None:
    """Agents hear it, and yet all who wait elsewhere wait for its trainers, and our stream is silent: it cannot hear.

    What they say has to be from well after we heard it: a cut of ours silences one after the other.
    """
    limit, ours = silence(facts.strain_s), quiet(node, facts.now)
    late = {n.node for n in facts.nodes.values() if quiet(n, facts.now) > ours - limit / 2}
    for run in facts.runs:
        here = {t.trainer for t in trainers_on(run, node.node) if t.rank is not None}
        outside = [w for w in waits_of(run, facts).by.values() if w.trainer not in here]
        if any(t.node in late for w in outside if (t := run.of(w.trainer)) is not None):
            continue
        if not outside or run.committed_at > node.heard_at + limit or not all(here & set(w.named) for w in outside):
            continue
        lasted = min(ours, *(w.lasts(facts.now) for w in outside))
        evidence = (
            f"silent to the control plane for {ours:.1f} s, and all who wait wait for it, though "
            f"{', '.join(hearing)} can hear it: one direction of its links works"
        )
        return Silent(node=node.node, for_s=lasted, limit_s=limit, evidence=evidence)
    return None


def left_behind(run: RunFacts, facts: Facts) -> list[TrainerLost]:
    """Members on lost nodes that are needed, while others have been heard for long enough, in all, for these to be back.

    They were held, since no member was heard when their nodes were lost (`judgement`). To count what was heard in all keeps
    a network that comes and goes from holding them for ever. What is held against them is of the time in which another
    has been heard on end: the words of one that is just back are old, and the others' are on their way.
    """
    holders = [m for m in run.members if m.holds]
    homes = {m.trainer: facts.nodes.get(m.node) for m in holders}
    lost = [
        m for m in holders if (n := homes[m.trainer]) is not None and n.lost and n.unmet.get(run.run, 0.0) >= BACK_S
    ]
    back = sorted({m.node for m in holders if audible(homes[m.trainer], facts)})
    settled = max((facts.now - facts.nodes[n].heard_since for n in back), default=0.0)
    if not lost or settled < SETTLED_S:
        return []
    who = f"{', '.join(back)} {'is' if len(back) == 1 else 'are'} heard"
    reasons = [(m, _needed(run, m, facts, settled)) for m in lost]
    return [
        TrainerLost(
            run=run.run,
            trainer=m.trainer,
            evidence=f"{m.node} is lost and not back, {who}, and {reason}",
            proof=False,
        )
        for m, reason in reasons
        if reason
    ]


def _needed(run: RunFacts, member: TrainerFacts, facts: Facts, settled: float) -> str:
    """Why the run cannot go on without this member; empty if it may train with others that do not hear us, either."""
    waits, limits = waits_of(run, facts), Limits(run.step_s, facts.strain_s)
    if blaming := waits.blamed.get(member.trainer):
        return f"{', '.join(sorted(set(blaming)))} lost the connection to it"
    waited, still = waits.longest(member.trainer, facts.now), min(settled, facts.now - run.committed_at)
    if facts.now >= member.busy_until and waited >= limits.link:
        waiting = sorted(waits.naming(member.trainer))
        verb = "has" if len(waiting) == 1 else "have"
        return f"{', '.join(waiting)} {verb} waited {waited:.1f} s for it in {waits.operation(member.trainer)}"
    if still >= limits.unneeded and not any(facts.now < m.busy_until for m in run.members):
        return f"no step was committed for {still:.1f} s"
    return ""


def dead_to_ray(facts: Facts) -> list[NodeLost]:
    """The slow rule: no stream, dead to Ray, and long silent, while another agent is heard."""
    return [v for node in facts.nodes.values() if not node.lost and (v := _dead(node, facts)) is not None]


def _dead(node: NodeFacts, facts: Facts) -> NodeLost | None:
    silent = quiet(node, facts.now)
    if node.attached or node.local or node.ray_alive or silent < NODE_SILENCE_S:
        return None
    heard = [
        n for n in facts.nodes.values() if n.attached and n.node != node.node and quiet(n, facts.now) <= REACHABLE_S
    ]
    if not heard:
        return None
    evidence = f"silent for {silent:.0f} s and dead to Ray, while {heard[0].node} is heard"
    return NodeLost(node=node.node, evidence=evidence)
