"""A cluster in memory: the fake `Reader` and `Control` that stand for history file and control plane in tests.

They keep the same promises (cursors, order, typed refusals) and are driven by hand: `commit` a step, `tell` an event,
let a run `become` something. REST, clients and command line run on them unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.errors import ConnectError, NotFoundError
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.ids import Epoch, NodeId, Rank, RunId, Step, TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.queues import Sharing
from atoll.schema.sharing_views import PlanView, TopView, WhyView
from atoll.schema.spec import JobSpec
from atoll.schema.views import (
    CheckpointView,
    DrainView,
    EventView,
    MetricPoint,
    NodeView,
    RunState,
    RunView,
    TopologyView,
    TrainerView,
)


class MemoryReader:
    """A history in memory."""

    def __init__(self) -> None:
        self.views: dict[str, RunView] = {}
        self.told: list[EventView] = []
        self.points: dict[str, list[MetricPoint]] = {}
        self.saved: list[CheckpointView] = []
        self.hosts: list[NodeView] = []
        self.network: TopologyView | None = None
        self.kept_logs: dict[str, bytes] = {}

    def runs(self) -> Sequence[Any]:
        """All runs."""
        return [dataclasses.replace(view, spec=None) for view in self.views.values()]

    def run(self, run: RunId) -> Any:
        """One run, or None."""
        return self.views.get(run)

    def events(
        self, run: RunId | None = None, after: int = 0, subject: str | None = None, limit: int = 5000
    ) -> Sequence[Any]:
        """Events as JSON documents."""
        found = [e for e in self.told if e.seq > after and run in {None, e.run}]
        return [to_plain(e) for e in found if subject in {None, e.subject, e.cause}][:limit]

    def metrics(self, run: RunId, after_step: int = -1, limit: int = 5000) -> Sequence[Any]:
        """Committed steps."""
        return [p for p in self.points.get(run, []) if p.step > after_step][:limit]

    def checkpoints(self, run: RunId) -> Sequence[Any]:
        """Durable checkpoints."""
        return [c for c in self.saved if c.run == run]

    def log(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk | None:  # noqa: ARG002 - as Reader
        """What was kept of a log."""
        data = self.kept_logs.get(trainer)
        if data is None:
            return None
        start = max(len(data) + offset, 0) if offset < 0 else offset
        return LogChunk(
            request="", text=data[start : start + limit].decode(), next_offset=min(start + limit, len(data))
        )

    def nodes(self) -> Sequence[Any]:
        """The hosts."""
        return self.hosts

    def topology(self) -> Any:
        """The network as its JSON document, or None."""
        return None if self.network is None else to_plain(self.network)

    def tell(self, run: str | None, subject: str, kind: str, text: str, cause: str = "") -> None:
        """Add an event."""
        seq = len(self.told) + 1
        owner = RunId(run) if run else None
        self.told.append(
            EventView(seq=seq, at=float(seq), run=owner, subject=subject, kind=kind, text=text, cause=cause)
        )

    def commit(self, run: str, step: int, **metrics: float) -> None:
        """Add a committed step."""
        view = self.views[run]
        point = MetricPoint(
            step=Step(step),
            at=float(step),
            step_s=0.1,
            samples=16,
            members=view.members,
            epoch=view.epoch,
            metrics=metrics,
        )
        self.points.setdefault(run, []).append(point)
        self.become(run, step=Step(step), last=point)

    def become(self, run: str, **changes: Any) -> None:
        """Change the view of a run."""
        self.views[run] = dataclasses.replace(self.views[run], **changes)


# What every call of a method is answered.
_FIXED: dict[str, dict[str, Any]] = {
    "status": {"incarnation": 1, "pid": 1, "started_at": 0.0},
    "harm": {"at": 5.0},
    "servers": {"servers": []},
    "offer": {"offers": 1},
    "plan": to_plain(PlanView(verdict="starts", reason="there is room", queue="default", workers=2, wanted=2)),
    "top": to_plain(TopView(at=2.0, since=1.0, queues=())),
    "queues": to_plain(Sharing()),
}


class MemoryControl:
    """A control plane in memory. Starts every job at once on two trainers; `away` makes it answer nothing."""

    def __init__(self, reader: MemoryReader) -> None:
        self.reader = reader
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.logs: dict[str, bytes] = {}
        self.away = False

    async def invoke(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer as the control plane would."""
        if self.away:
            raise ConnectError("the control plane does not answer; it is being restarted, try again")
        self.asked.append((method, dict(body)))
        match method:
            case "submit":
                return self._submit(from_plain(JobSpec, body["spec"]))
            case "stop":
                self.reader.become(body["run"], state=RunState.STOPPED, reason=body["reason"], exit_code=0)
                return {}
            case "drain" | "undrain":
                return self._drain(method, body)
            case "read_log" | "why":
                return self._read_log(body) if method == "read_log" else self._why(self.reader.views[body["run"]])
            case "doctor":
                finding = {"node": "node-127-0-0-1", "check": "disk", "ok": True, "detail": "9.0 GiB free"}
                return {"findings": [finding]}
            case _:
                return _FIXED.get(method, {})

    def _submit(self, spec: JobSpec) -> dict[str, Any]:
        run = spec.run_id or RunId(f"{spec.name}-{len(self.reader.views) + 1}")
        self.reader.views[run] = running(run, spec)
        return {"run": run}

    @staticmethod
    def _why(view: RunView) -> dict[str, Any]:
        told = WhyView(
            run=view.run,
            state=view.state,
            queue="default",
            priority=50,
            reason=view.reason,
            workers=view.members,
            wanted=view.workers_wanted,
        )
        plain: dict[str, Any] = to_plain(told)
        return plain

    def _drain(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Every node is empty at once."""
        reader, node = self.reader, body["node"]
        if node not in {host.node for host in reader.hosts}:
            raise NotFoundError(f"no node {node!r}")
        until = float(body.get("within_s", 0.0))
        drain = DrainView(until=until, reason=body.get("reason", ""), trainers=0, left=True)
        drained = drain if method == "drain" else None
        reader.hosts = [dataclasses.replace(h, drain=drained) if h.node == node else h for h in reader.hosts]
        return {"node": node, "until": until}

    def _read_log(self, body: Mapping[str, Any]) -> dict[str, Any]:
        data = self.logs.get(body["trainer"])
        if data is None:
            raise NotFoundError(f"no trainer {body['trainer']!r} in run {body['run']}")
        start = body["offset"] if body["offset"] >= 0 else max(0, len(data) + body["offset"])
        piece = data[start : start + body["limit"]]
        chunk = LogChunk(request="1", text=piece.decode("utf-8", "replace"), next_offset=start + len(piece))
        plain: dict[str, Any] = to_plain(chunk)
        return plain


def running(run: RunId, spec: JobSpec) -> RunView:
    """The view of a run that has just begun on two trainers."""
    trainers = tuple(
        TrainerView(
            trainer=TrainerId(f"{run}-t{rank}"),
            node=NodeId("node-127-0-0-1"),
            role="worker",
            rank=Rank(rank),
            pid=100 + rank,
            state="training",
        )
        for rank in range(2)
    )
    return RunView(
        run=run,
        name=spec.name,
        kind=spec.kind,
        state=RunState.RUNNING,
        reason="",
        submitted_at=1.0,
        ended_at=None,
        epoch=Epoch(1),
        workers_wanted=spec.workers,
        members=2,
        spares=spec.spares,
        step=Step(0),
        last=None,
        checkpoint=None,
        trainers=trainers,
        owner=spec.owner,
        queue=spec.queue,
        spec=spec,
    )
