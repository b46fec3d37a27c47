"""From observations to verdicts. Observers never judge; this function does, and says on what evidence (law 10).

Proof of death (an exit status from the agent that owned the process) needs no verdict and does not pass through here.
What does: trainers that hang (`hangs`), connections (`links`), nodes that nobody hears (`silence`), parts that do not
hear each other (`partitions`), processes that their agent no longer has, and replicas that differ (`replicas`).

The same facts give the same verdicts. Where one explanation covers another it stands alone: a trainer that hangs makes
its peers wait for bytes, and a node that is lost takes its connections along. A control plane that was stalled just now
condemns nobody but by proof: what it has not read yet may be what it misses. `now` is the core's clock, which a stall
moves by a tick at most, so a controller that slept does not age a whole fleet to death.
"""

from __future__ import annotations

from atoll.fault import replicas
from atoll.fault.facts import Facts, MissingFacts, RunFacts
from atoll.fault.hangs import hung
from atoll.fault.links import links
from atoll.fault.partitions import Pair, deaf_pairs, lost_nodes, split
from atoll.fault.silence import dead_to_ray, left_behind
from atoll.fault.verdicts import NodeLost, Partitioned, TrainerLost, Verdict
from atoll.schema.ids import NodeId

# A restarted agent hears from its living trainers within a second or two of opening its socket.
MISSING_S = 10.0


def fold(facts: Facts) -> list[Verdict]:
    """The verdicts that the facts bear out."""
    verdicts: list[Verdict] = [_vanished(m, facts.now) for m in facts.missing if facts.now - m.since >= MISSING_S]
    # Bits differ or they do not, whoever was late to look.
    verdicts += [v for v in map(replicas.judge, facts.runs) if v is not None]
    if not facts.steady:
        return verdicts
    nodes: list[NodeLost | Partitioned] = lost_nodes(facts)
    gone = {n for v in nodes for n in (v.cut if isinstance(v, Partitioned) else (v.node,))}
    nodes += [v for v in dead_to_ray(facts) if v.node not in gone]
    verdicts += nodes
    deaf = deaf_pairs(facts)
    for run in facts.runs:
        verdicts += _run(run, facts, gone, deaf)
    return verdicts


def _run(run: RunFacts, facts: Facts, gone: set[NodeId], deaf: dict[Pair, float]) -> list[Verdict]:
    found: list[Verdict] = [*hung(run, facts), *left_behind(run, facts)]
    if found or any(m.node in gone for m in run.members):
        return found
    parted = split(run, facts, deaf)
    if parted is not None:
        return [parted]
    connection = links(run, facts)
    return [connection] if connection is not None else []


def _vanished(missing: MissingFacts, now: float) -> TrainerLost:
    silent = now - missing.since
    evidence = f"the agent of {missing.node} is up for {silent:.0f} s and holds no such process"
    return TrainerLost(run=missing.run, trainer=missing.trainer, evidence=evidence, proof=True)
