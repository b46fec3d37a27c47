"""What is done about losses: who the members of the next epoch are, and when a program has failed too often.

Survivors keep their order, so the lowest rank stays with whoever held it longest; spares and replacements come after.
Law 1: if no member of the old epoch survives, a new one may begin only with proof that all of them are dead. A member
that was named and never joined is no survivor in this sense: nobody waits for its vote, and it holds no state.

Members whose seat is given up since fewer are wanted (`yields`) leave with the next epoch, and the step in hand is
tried again without them. Members on a node that is being drained (`leaving`) stay until enough replacements are ready, as long as any are on their
way and there is time; then the next epoch is without them. Where all who hold the state leave, one of them stays for the
epoch in which it hands it over, and leaves with the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import Epoch, NodeId, Rank, TrainerId
from atoll.schema.messages import Member
from atoll.schema.topology import Door

# Once is chance (an out-of-memory kill, a cut), twice may be; three deaths before ready with no success between are
# the program's or the image's fault.
START_BUDGET = 3
# Seconds before the n-th replacement after deaths at start.
BACKOFF_S = (0.0, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A trainer as the policy sees it. `holds`: it joined an epoch, or is of the first, so it may hold the run's state.

    `leaving`: it is to go; its node is drained, or it `moves` to another, or else it `yields` its seat, since fewer are wanted. `how` it went, where it is not active any more.
    """

    trainer: TrainerId
    node: NodeId
    host: str
    port: int
    active: bool
    ready: bool
    proven_gone: bool
    finished: bool
    holds: bool
    doors: tuple[Door, ...] = ()
    leaving: bool = False
    yields: bool = False
    moves: bool = False
    how: str = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raise:
    """Begin the next epoch with these members."""

    members: tuple[Member, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Begin none yet, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The members are as they should be."""


Decision = Raise | Hold | Steady


def decide(
    *,
    epoch: Epoch,
    members: tuple[Member, ...],
    standings: tuple[Standing, ...],
    wanted: int,
    broken: str = "",
    hurry: bool = False,
) -> Decision:
    """The next epoch's members. `broken`: why the same members begin a new one (a broken link, other shares).

    `hurry`: who leaves must go now, with or without replacement.
    """
    if not members:
        again = ", on from the last checkpoint" if epoch else ""
        return _first(standings, wanted, f"all members are ready{again}")
    known = {s.trainer: s for s in standings}
    old = [known[m.trainer] for m in members]
    survivors = [s for s in old if s.active]
    lost = [s for s in old if not s.active and not s.finished]
    holders = [s for s in survivors if s.holds]
    if any(s.finished for s in standings):
        return _last(holders, lost, broken)
    if not survivors or (lost and not holders):
        return _anew(lost, standings, wanted)
    ready = _joiners(members, standings)
    leavers = _leavers(members, survivors, standings, wanted, hurry=hurry)
    stay = [s for s in survivors if s not in leavers]
    room = wanted - len(stay)
    # One that only hands the state over takes nobody's place.
    joiners = ready[: max(room, 1 if len(stay) == 1 and stay[0].leaving else 0)]
    if not lost and not broken and not joiners and not leavers:
        return Steady()
    return Raise(members=_ranked([*stay, *joiners]), reason=_reason(lost, leavers, joiners, broken))


def _leavers(
    members: tuple[Member, ...],
    survivors: list[Standing],
    standings: tuple[Standing, ...],
    wanted: int,
    *,
    hurry: bool,
) -> list[Standing]:
    """Who of the members that are to go leaves with the next epoch. For a seat that is given up somebody waits already."""
    leaving = [s for s in survivors if s.leaving]
    stay = [s for s in survivors if not s.leaving]
    inside = {m.trainer for m in members}
    others = [s for s in standings if s.active and not s.leaving and s.trainer not in inside]
    ready = sum(1 for s in others if s.ready)
    replaced = ready >= wanted - len(stay) or ready >= len(others) or hurry
    leavers = leaving if replaced else [s for s in leaving if s.yields]
    if any(s.holds for s in survivors if s not in leavers):
        return leavers
    if ready == 0:
        return []
    keeper = next((s for s in leavers if s.holds), None)
    return [s for s in leavers if s is not keeper]


def _first(standings: tuple[Standing, ...], wanted: int, reason: str) -> Decision:
    ready = [s for s in standings if s.active and s.ready and not s.leaving]
    if len(ready) < wanted or not ready:
        return Hold(reason=f"{len(ready)} of {wanted} trainers ready")
    return Raise(members=_ranked(ready[:wanted]), reason=reason)


def _anew(lost: list[Standing], standings: tuple[Standing, ...], wanted: int) -> Decision:
    unproven = [s.trainer for s in lost if not s.proven_gone]
    if unproven:
        return Hold(reason=f"no member survives, and the death of {', '.join(unproven)} is not proven")
    able = sum(1 for s in standings if s.active and not s.leaving)
    names = ", ".join(s.trainer for s in lost)
    return _first(standings, min(wanted, max(able, 1)), f"all members were lost ({names}), on from the last checkpoint")


def _last(survivors: list[Standing], lost: list[Standing], broken: str) -> Decision:
    if not survivors or not (lost or broken):
        return Steady()
    return Raise(members=_ranked(survivors), reason=_reason(lost, [], [], broken) + "; training is over, nobody joins")


def _joiners(members: tuple[Member, ...], standings: tuple[Standing, ...]) -> list[Standing]:
    inside = {m.trainer for m in members}
    return [s for s in standings if s.active and s.ready and not s.leaving and s.trainer not in inside]


def _ranked(chosen: list[Standing]) -> tuple[Member, ...]:
    return tuple(
        Member(trainer=s.trainer, rank=Rank(i), node=s.node, host=s.host, port=s.port, doors=s.doors)
        for i, s in enumerate(chosen)
    )


def _reason(lost: list[Standing], leavers: list[Standing], joiners: list[Standing], broken: str) -> str:
    parts = []
    for how in dict.fromkeys(s.how for s in lost):
        gone = [s for s in lost if s.how == how]
        parts.append(f"{', '.join(s.trainer for s in gone)} {'was' if len(gone) == 1 else 'were'} {how}")
    moved, spared = [s for s in leavers if s.moves], [s for s in leavers if s.yields]
    drained = [s for s in leavers if not s.yields and not s.moves]
    if drained:
        nodes = ", ".join(dict.fromkeys(s.node for s in drained))
        parts.append(
            f"{', '.join(s.trainer for s in drained)} leave{'s' * (len(drained) == 1)} {nodes}, which is drained"
        )
    if moved:
        parts.append(f"{', '.join(s.trainer for s in moved)} move{'s' * (len(moved) == 1)} to other nodes")
    if spared:
        names = ", ".join(s.trainer for s in spared)
        parts.append(f"{names} give{'s' * (len(spared) == 1)} up {'its seat' if len(spared) == 1 else 'their seats'}")
    if joiners:
        parts.append(f"{', '.join(s.trainer for s in joiners)} join{'s' * (len(joiners) == 1)}")
    if broken:
        parts.append(broken)
    return ", ".join(parts)


def backoff(start_failures: int) -> float:
    """Seconds to wait before the next replacement, after so many deaths at start before the last; none if below 0."""
    return BACKOFF_S[min(max(start_failures, 0), len(BACKOFF_S) - 1)]
