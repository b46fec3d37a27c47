"""From observations to verdicts. Observers never judge; this function does, and says on what evidence (law 10).

Proof of death (an exit status from the agent that owned the process) needs no verdict and does not pass through here.
What does:

- A member reports that its connection to a peer ended, and no proof of a death follows within `SETTLE_S`: the link
  broke, both ends live. A new epoch of the same members lets them connect anew.
- The same peer is blamed in `STRIKES` epochs within `MEMORY_S`: it lives but cannot be worked with, and is lost.
- A process that its agent once had is not among those the agent reports, for `MISSING_S`: it vanished.
- A node is lost only if its agent's stream is gone and silent for `NODE_SILENCE_S`, Ray calls the node dead or no
  agent could be started there, it is not this very host, and another agent is heard meanwhile, so that the silence is
  not ours. `now` is the core's clock, which a stall of this process cannot move by more than a tick: a controller that
  slept does not age a whole fleet to death.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import Epoch, NodeId, RunId, TrainerId

# An exit is reported within milliseconds; two seconds of none, under 4x CPU overload too, mean that nobody died.
SETTLE_S = 2.0
# One broken connection is chance, two are bad luck; the third time the peer costs more than its replacement.
STRIKES = 3
MEMORY_S = 60.0
# A restarted agent hears from its living trainers within a second or two of opening its socket.
MISSING_S = 10.0
# Longer than an agent's restart (import and reconnect), shorter than a trainer's lifeline of 60 s.
NODE_SILENCE_S = 15.0
# An agent beats each second; one heard within this time proves that our side of the network works.
REACHABLE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """A member's report that its connection to `peer` ended in `epoch`."""

    at: float
    peer: TrainerId
    epoch: Epoch
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of one run's links: who is a member now, and the blames of the last minute."""

    run: RunId
    epoch: Epoch
    members: tuple[TrainerId, ...]
    blames: tuple[Blame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What is known of one node: its agent's stream, when it was last heard, what Ray says."""

    node: NodeId
    attached: bool
    heard_at: float
    ray_alive: bool
    local: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingFacts:
    """A trainer that its attached agent does not report, and since when."""

    run: RunId
    trainer: TrainerId
    node: NodeId
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkBroken:
    """Both ends live, their connection does not."""

    run: RunId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerLost:
    """The trainer has no part any more. `proof` is True where its process is known to be gone."""

    run: RunId
    trainer: TrainerId
    evidence: str
    proof: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """The node and all on it are out of reach."""

    node: NodeId
    evidence: str


Verdict = LinkBroken | TrainerLost | NodeLost


def fold(
    *, runs: tuple[RunFacts, ...], nodes: tuple[NodeFacts, ...], missing: tuple[MissingFacts, ...], now: float
) -> list[Verdict]:
    """The verdicts that the facts bear out at `now`; the same facts give the same verdicts."""
    verdicts: list[Verdict] = []
    verdicts += [v for run in runs if (v := _links(run, now)) is not None]
    verdicts += [_vanished(m, now) for m in missing if now - m.since >= MISSING_S]
    verdicts += [v for node in nodes if (v := _silent(node, nodes, now)) is not None]
    return verdicts


def _links(run: RunFacts, now: float) -> Verdict | None:
    current = [b for b in run.blames if b.epoch == run.epoch and b.peer in run.members]
    if not current or now - min(b.at for b in current) < SETTLE_S:
        return None
    recent = [b for b in run.blames if now - b.at <= MEMORY_S]
    for peer in run.members:
        epochs = {b.epoch for b in recent if b.peer == peer}
        if len(epochs) >= STRIKES and any(b.peer == peer for b in current):
            evidence = f"its connections broke in epochs {', '.join(str(e) for e in sorted(epochs))}"
            return TrainerLost(run=run.run, trainer=peer, evidence=evidence, proof=False)
    first = min(current, key=lambda b: b.at)
    return LinkBroken(run=run.run, evidence=f"connection to {first.peer} ended ({first.evidence}), nobody died")


def _vanished(missing: MissingFacts, now: float) -> TrainerLost:
    silent = now - missing.since
    evidence = f"the agent of {missing.node} is up for {silent:.0f} s and holds no such process"
    return TrainerLost(run=missing.run, trainer=missing.trainer, evidence=evidence, proof=True)


def _silent(node: NodeFacts, nodes: tuple[NodeFacts, ...], now: float) -> NodeLost | None:
    silence = now - node.heard_at
    if node.attached or node.local or node.ray_alive or silence < NODE_SILENCE_S:
        return None
    heard = [n.node for n in nodes if n.attached and n.node != node.node and now - n.heard_at <= REACHABLE_S]
    if not heard:
        return None
    return NodeLost(node=node.node, evidence=f"silent for {silence:.0f} s and dead to Ray, while {heard[0]} is heard")
