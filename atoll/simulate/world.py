"""The state of a simulation: what is free, who waits, who runs, and where each device-second went.

Devices change hands only here (`take`, `give`), and each change is checked: no device is owned twice. A run's progress
and its device-seconds are brought up to date before anything about it changes (`account`): what it holds, where it
stands and how long it still pays for a change are constant in between.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from atoll.errors import InternalError
from atoll.schema.ids import NodeId, RunId
from atoll.simulate.cluster import Cluster
from atoll.simulate.jobs import Job
from atoll.simulate.progress import Pace, pace


class Spent(enum.StrEnum):
    """What a device-second went into. WAITING: on slower mates and on links, by its run's step; IDLE: nobody held it."""

    USEFUL = "useful"
    WAITING = "waiting"
    STARTING = "starting"
    RESHARDING = "resharding"
    CHECKPOINTING = "checkpointing"
    IDLE = "idle"


Ledger = defaultdict[tuple[str, str, Spent], float]  # of (queue, device type, what): device-seconds


@dataclass(slots=True)
class Run:
    """A job and how far it is. `busy` until `busy_until`: its devices do nothing for it but change."""

    job: Job
    done: float = 0.0
    nodes: tuple[NodeId, ...] = ()
    pace: Pace | None = None
    since: float = 0.0
    busy: Spent = Spent.STARTING
    busy_until: float = 0.0
    version: int = 0
    waits_since: float = 0.0
    queued_s: float = 0.0
    granted_at: float = 0.0
    changed_at: float = 0.0
    checkpoint_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    suspending: bool = False
    suspensions: int = 0
    resizes: int = 0
    disturbed: tuple[float, ...] = ()
    device_s: float = 0.0
    # What a sample is worth of what was asked for: workers x seconds on the reference device.
    worth: float = 0.0

    @property
    def ends_at(self) -> float:
        """When it will have computed all its samples if nothing changes."""
        if self.pace is None or self.suspending:
            return float("inf")
        return max(self.since, self.busy_until) + (self.job.samples - self.done) / self.pace.rate


@dataclass(slots=True)
class World:
    """All that a policy may look at. `waiting` is in order of submission."""

    cluster: Cluster
    plain_trainers: bool = True
    now: float = 0.0
    waiting: dict[RunId, Run] = field(default_factory=dict)
    running: dict[RunId, Run] = field(default_factory=dict)
    free: dict[NodeId, int] = field(default_factory=dict)
    free_devices: int = 0
    ledger: Ledger = field(default_factory=lambda: defaultdict(float))
    # Of what was asked for: workers x seconds on the reference device, as far as it was computed.
    delivered: float = 0.0
    # Nodes by how many of their devices are free: who packs needs no look at all nodes.
    by_room: list[dict[NodeId, None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        largest = max(node.devices for node in self.cluster.nodes)
        self.by_room = [{} for _ in range(largest + 1)]
        for node in self.cluster.nodes:
            self.free[node.name] = node.devices
            self.by_room[node.devices][node.name] = None
        self.free_devices = self.cluster.devices

    def hold(self, run: Run, nodes: Sequence[NodeId]) -> None:
        """`run` has a worker on each of `nodes` from now on, and on no other."""
        had, gets = Counter(run.nodes), Counter(nodes)
        self._give(run.job.id, had - gets)
        self._take(run.job.id, gets - had)
        run.nodes = tuple(nodes)
        run.pace = pace(run.job, run.nodes, self.cluster, plain=self.plain_trainers) if nodes else None

    def _take(self, who: RunId, wanted: Counter[NodeId]) -> None:
        for node, count in wanted.items():
            if count > self.free[node]:
                raise InternalError(f"{who} takes {count} devices of {node}, of which {self.free[node]} are free")
            self._set_free(node, self.free[node] - count)

    def _give(self, who: RunId, given: Counter[NodeId]) -> None:
        for node, count in given.items():
            if self.free[node] + count > self.cluster.by_name[node].devices:
                raise InternalError(f"{who} gives back {count} devices of {node}, more than it has")
            self._set_free(node, self.free[node] + count)

    def _set_free(self, node: NodeId, count: int) -> None:
        del self.by_room[self.free[node]][node]
        self.free_devices += count - self.free[node]
        self.free[node] = count
        self.by_room[count][node] = None

    def account(self, run: Run) -> None:
        """Bring its progress and its device-seconds up to now."""
        begun, run.since = run.since, self.now
        if run.pace is None or self.now <= begun:
            return
        changed_s = max(0.0, min(run.busy_until, self.now) - begun)
        stepped_s = 0.0 if run.suspending else self.now - begun - changed_s
        changed_s = self.now - begun - stepped_s
        run.done += stepped_s * run.pace.rate
        self.delivered += stepped_s * run.pace.rate * run.worth
        run.device_s += (self.now - begun) * len(run.nodes)
        for device, count in run.pace.devices.items():
            share = run.pace.useful[device]
            book = self.ledger
            book[run.job.queue, device, run.busy] += changed_s * count
            book[run.job.queue, device, Spent.USEFUL] += stepped_s * count * share
            book[run.job.queue, device, Spent.WAITING] += stepped_s * count * (1 - share)

    def account_all(self, runs: Iterable[Run]) -> None:
        """Likewise, for many."""
        for run in runs:
            self.account(run)
