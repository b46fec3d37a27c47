"""Connections that ended though nobody died, connections that bring nothing, and calls that do not match.

- A member reports that its connection to a peer ended, and no proof of a death follows within `SETTLE_S`: the link
  broke, both ends live. A new epoch of the same members lets them connect anew.
- All chains of waits lead round in a circle, and somebody waits for the bytes of one that has entered: a connection
  hangs. Whose wait is longest was starved first; that pair is named.
- The same peer is blamed in `STRIKES` epochs within `MEMORY_S`: it lives but cannot be worked with, and is lost.
- Frames say what their sender calls; a member that met another call than its own ends the epoch, and its program is told
  both. Where a program goes on in spite of that and a second epoch ends so, it is desynchronized.
"""

from __future__ import annotations

from atoll.fault.facts import Blame, Facts, RunFacts, Wait
from atoll.fault.hangs import waits_of
from atoll.fault.limits import Limits
from atoll.fault.verdicts import Desync, HungLink, LinkBroken, TrainerLost, Verdict
from atoll.schema.ids import TrainerId

# An exit is reported within milliseconds; two seconds of none, under 4x CPU overload too, mean that nobody died.
SETTLE_S = 2.0
# One broken connection is chance, two are bad luck; the third time the peer costs more than its replacement.
STRIKES = 3
MEMORY_S = 60.0
# How a report of unlike calls begins (`collectives.call.difference`).
UNLIKE_CALLS = "different operations"
UNLIKE_EPOCHS = 2


def links(run: RunFacts, facts: Facts) -> Verdict | None:
    """What the connections of `run` show, if anything."""
    recent = [b for b in run.blames if facts.now - b.at <= MEMORY_S]
    current = [b for b in recent if b.epoch == run.epoch and run.of(b.peer) in run.members]
    if (unlike := _unlike(run, recent, current)) is not None:
        return unlike
    if current and facts.now - min(b.at for b in current) >= SETTLE_S:
        return _broken(run, recent, current)
    return _hanging(run, recent, facts)


def _unlike(run: RunFacts, recent: list[Blame], current: list[Blame]) -> Desync | None:
    here = next((b for b in current if UNLIKE_CALLS in b.evidence), None)
    if here is None or len({b.epoch for b in recent if UNLIKE_CALLS in b.evidence}) < UNLIKE_EPOCHS:
        return None
    return Desync(run=run.run, evidence=f"{here.by or 'a member'} and {here.peer} met with {here.evidence}, twice")


def _broken(run: RunFacts, recent: list[Blame], current: list[Blame]) -> Verdict:
    for peer in (m.trainer for m in run.members):
        if any(b.peer == peer for b in current) and (lost := _struck(run, peer, recent)) is not None:
            return lost
    first = min(current, key=lambda b: b.at)
    return LinkBroken(run=run.run, evidence=f"connection to {first.peer} ended ({first.evidence}), nobody died")


def _struck(run: RunFacts, peer: TrainerId, recent: list[Blame], besides: int = 0) -> TrainerLost | None:
    epochs = {b.epoch for b in recent if b.peer == peer} | ({run.epoch} if besides else set())
    if len(epochs) < STRIKES:
        return None
    evidence = f"its connections broke in epochs {', '.join(str(e) for e in sorted(epochs))}"
    return TrainerLost(run=run.run, trainer=peer, evidence=evidence, proof=False)


def _hanging(run: RunFacts, recent: list[Blame], facts: Facts) -> Verdict | None:
    waits = waits_of(run, facts)
    starved = [(w, peer) for w in waits.by.values() for peer in w.silent if peer in waits.by]
    if not starved or waits.suspects(run.members):
        return None
    wait, peer = max(starved, key=lambda s: (s[0].lasts(facts.now), s[0].trainer, s[1]))
    if wait.lasts(facts.now) < Limits(run.step_s, facts.strain_s).link:
        return None
    culprit = _common_end(starved) or peer
    if (lost := _struck(run, culprit, recent, besides=1)) is not None:
        return lost
    evidence = f"{wait.trainer} has waited {wait.lasts(facts.now):.1f} s for bytes of {peer} in {wait.what}; both live"
    return HungLink(run=run.run, waiting=wait.trainer, silent=culprit, operation=wait.what, evidence=evidence)


def _common_end(starved: list[tuple[Wait, TrainerId]]) -> TrainerId | None:
    """The one trainer that is an end of every starved pair, if there are several pairs."""
    ends = [{w.trainer, peer} for w, peer in starved]
    common = set.intersection(*ends)
    return min(common) if len(ends) > 1 and len(common) == 1 else None
