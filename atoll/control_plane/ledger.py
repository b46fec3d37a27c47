"""The goodput ledger: what each device was used for, second by second, by run, team and device type.

Each look attributes the time since the last one to what stands now. Of a device that a run holds:

- useful: its trainer is a member of the present epoch, and steps are committed;
- starting: its trainer is on its way, or the run has no epoch yet;
- resharding: the members regroup, or a joiner learns the state;
- checkpointing: the run saves to leave its seats;
- lost: its trainer was lost and is not replaced, or the time was useful and is undone, since the run went back to a
  checkpoint;
- idle: a spare waits, warm.

Of a run that waits: queued, for all devices it wants. Of a node: idle, what nobody holds. A device is a GPU, or a CPU where a
worker asks for no GPU. Measurements, not decisions: a new control plane begins a new ledger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from atoll.control_plane import records as r
from atoll.control_plane.state import Run, Seat
from atoll.schema.ids import Epoch, NodeId, RunId, TrainerId
from atoll.schema.sharing_views import GoodputView
from atoll.schema.spec import JobKind, JobSpec
from atoll.schema.views import RunState

# How often it looks. A change in between is counted from the next look on.
LOOK_S = 1.0
# Runs that ended, of which the last so many are shown.
SHOWN = 50


class Use(StrEnum):
    """What a device-second went into."""

    USEFUL = "useful"
    QUEUED = "queued"
    STARTING = "starting"
    CHECKPOINTING = "checkpointing"
    RESHARDING = "resharding"
    LOST = "lost"
    IDLE = "idle"


# What a seat's time counts as from the end of its trainer's part until the process is gone; else it is lost.
AFTER = {
    r.End.FINISHED: Use.CHECKPOINTING,
    r.End.SUSPENDED: Use.CHECKPOINTING,
    r.End.LEFT: Use.RESHARDING,
}

Row = tuple[RunId | None, str, str]


@dataclass(slots=True)
class _Progress:
    """Of one run: its members and checkpoint at the last look, and what was useful since that checkpoint, by device."""

    epoch: Epoch
    members: frozenset[TrainerId]
    checkpoint: int
    unsaved: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Ledger:
    """Device-seconds by (run, team, device) and use. The run of what nobody holds is None."""

    since: float = 0.0
    looked_at: float | None = None
    rows: dict[Row, dict[Use, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    progress: dict[RunId, _Progress] = field(default_factory=dict)

    def due(self, clock: float, now: float) -> bool:
        """Whether it is time to look."""
        if self.looked_at is None:
            self.looked_at, self.since = clock, now
        return clock - self.looked_at >= LOOK_S

    def look(
        self, runs: Sequence[Run], devices: Mapping[NodeId, str], free: Mapping[NodeId, float], clock: float
    ) -> None:
        """Attribute the time since the last look. `devices`: the type on each node, `free`: how many nobody holds."""
        span = clock - (clock if self.looked_at is None else self.looked_at)
        self.looked_at = clock
        for run in runs:
            _went_back(self, run)
            _attribute(self, run, devices, span)
        for gone in self.progress.keys() - {run.run for run in runs}:
            del self.progress[gone]
        for node, amount in free.items():
            self.add((None, "", devices[node]), Use.IDLE, span * max(amount, 0.0))

    def add(self, row: Row, use: Use, amount: float) -> None:
        """Count so many device-seconds."""
        if amount:
            self.rows[row][use] += amount


def devices_of(spec: JobSpec) -> float:
    """How many devices one trainer holds."""
    return spec.gpus_per_worker or spec.cpus_per_worker


def _attribute(ledger: Ledger, run: Run, devices: Mapping[NodeId, str], span: float) -> None:
    team, each = run.spec.team or "", devices_of(run.spec)
    if run.state is RunState.QUEUED:
        if not run.held:  # whom a person suspended waits for that person
            ledger.add((run.run, team, ""), Use.QUEUED, span * each * run.most)
        return
    unsaved = ledger.progress[run.run].unsaved
    for seat in run.seats.values():
        use, device = use_of(run, seat), devices.get(seat.node, "")
        ledger.add((run.run, team, device), use, span * each)
        if use is Use.USEFUL:
            unsaved[device] = unsaved.get(device, 0.0) + span * each


def use_of(run: Run, seat: Seat) -> Use:
    """What the seat's devices are used for now."""
    tenant = run.tenant(seat.seat)
    if tenant is None:
        return Use.STARTING
    if tenant.ended is not None:
        return AFTER.get(tenant.ended.end, Use.LOST)
    if run.spec.kind is JobKind.SERVE:
        return Use.USEFUL if tenant.server is not None else Use.STARTING
    if tenant.trainer in run.member_ids():
        return Use.RESHARDING if tenant.joined < run.epoch else Use.CHECKPOINTING if run.suspending else Use.USEFUL
    return Use.IDLE if tenant.ready and run.members else Use.STARTING


def _went_back(ledger: Ledger, run: Run) -> None:
    """Where nobody of the members is left, or the run was told to go back, what was not saved is lost."""
    members = frozenset(run.member_ids())
    saved = run.checkpoint.step if run.checkpoint is not None else 0
    known = ledger.progress.get(run.run)
    if known is None:
        ledger.progress[run.run] = _Progress(run.epoch, members, saved)
        return
    anew = bool(known.members) and members.isdisjoint(known.members) and known.members != members
    if saved > known.checkpoint:
        known.unsaved = {}
    if anew or saved < known.checkpoint:
        team = run.spec.team or ""
        for device, amount in known.unsaved.items():
            ledger.add((run.run, team, device), Use.USEFUL, -amount)
            ledger.add((run.run, team, device), Use.LOST, amount)
        known.unsaved = {}
    known.epoch, known.members, known.checkpoint = run.epoch, members, saved


def goodput(ledger: Ledger) -> tuple[GoodputView, ...]:
    """By run (the last ones), by team and by device type."""
    found: dict[tuple[str, str], GoodputView] = {}
    for (run, team, device), uses in ledger.rows.items():
        places = [("device", device)] if device else []
        if run is not None:
            places += [("run", run), ("team", team or "-")]
        for by, name in places:
            view = found.get((by, name), GoodputView(by=by, name=name))
            more = {use.value: getattr(view, use.value) + amount for use, amount in uses.items()}
            found[by, name] = replace(view, **more)
    runs = [view for view in found.values() if view.by == "run"][-SHOWN:]
    rest = sorted((v for v in found.values() if v.by != "run"), key=lambda v: (v.by, v.name))
    return (*rest, *runs)
