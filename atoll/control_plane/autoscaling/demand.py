"""Who needs machines: gangs that wait, in their order, and workers whose node is about to leave.

For a gang nothing is started before it has waited `patience_s`: what is about to be free would be bought twice. One that
lets standing room pass it by for `room_s` is left alone: something else keeps it (a quota, a label that the cluster sees
otherwise), and machines started for it would come and go for ever. It is tried again after as long a pause, doubled each
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from atoll.control_plane.arbiter.model import Ask, Option
from atoll.control_plane.autoscaling.commands import NotTaken
from atoll.control_plane.autoscaling.facts import Standing
from atoll.schema.devices import DEVICE
from atoll.schema.ids import NodeId, RunId

# Names of asks for the sake of a node that leaves.
_REPLACES = "in-place-of:"
_MOST_TIMES = 16


@dataclass(slots=True, kw_only=True)
class Waiting:
    """What is remembered of a gang between looks."""

    first_seen: float
    room_since: float | None = None
    shunned_until: float = 0.0
    times: int = 0


@dataclass(slots=True, kw_only=True)
class Demand:
    """The gangs that wait."""

    patience_s: float
    room_s: float
    waiting: dict[RunId, Waiting] = field(default_factory=dict)

    def served(self, asks: Sequence[Ask], now: float) -> list[Ask]:
        """Those for which machines are kept, in order; for whom any are started, `patient` tells."""
        names = {ask.run for ask in asks}
        self.waiting = {run: seen for run, seen in self.waiting.items() if run in names}
        found = []
        for ask in asks:
            seen = self.waiting.setdefault(ask.run, Waiting(first_seen=now))
            if now >= seen.shunned_until:
                found.append(ask)
        return found

    def patient(self, ask: Ask, now: float) -> bool:
        """It has waited long enough for something to be started for it. Workers of a node that leaves wait for nothing."""
        seen = self.waiting.get(ask.run)
        return seen is None or now - seen.first_seen >= self.patience_s

    def fits(self, ask: Ask, now: float, *, comes: bool) -> NotTaken | None:
        """All of a gang fits. Tells when it has let room that stands pass by for too long; room that comes is no room."""
        seen = self.waiting[ask.run]
        if comes:
            seen.room_since = None
        elif seen.room_since is None:
            seen.room_since = now
        elif now - seen.room_since >= self.room_s:
            stood, seen.room_since = now - seen.room_since, None
            seen.times += 1
            pause = self.room_s * 2.0 ** min(seen.times - 1, _MOST_TIMES)
            seen.shunned_until = now + pause
            return NotTaken(run=ask.run, stood_s=stood, for_s=pause)
        return None

    def lacks(self, ask: Ask) -> None:
        """A gang does not fit as things stand."""
        self.waiting[ask.run].room_since = None


def replacements(nodes: Sequence[Standing], now: float) -> list[Ask]:
    """For each node that leaves with somebody on it, an ask for as much as is in use there, on the same kind of device."""
    found = []
    for node in nodes:
        if node.leaving_at is None or node.left or node.trainers == 0 or now >= node.leaving_at:
            continue
        used_cpus, used_gpus = node.total.cpus - node.free.cpus, node.total.gpus - node.free.gpus
        each = type(node.total)(cpus=max(used_cpus, 0), gpus=max(used_gpus, 0))
        device = node.labels.get(DEVICE)
        same = Option(name="the same device", selector={DEVICE: (device,)} if device else {})
        found.append(
            Ask(
                run=RunId(f"{_REPLACES}{node.node}"),
                submitted_at=now,
                each=each,
                options=(same, Option(name="any device")) if device else (same,),
            )
        )
    return found


def replaced(ask: Ask) -> NodeId | None:
    """The node in whose place this ask is, if it is such a one."""
    return NodeId(ask.run.removeprefix(_REPLACES)) if ask.run.startswith(_REPLACES) else None
