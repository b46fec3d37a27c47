"""What the web process knows and may ask: views out of the history file, wishes to the control plane.

Reads come from the history, which the control plane writes and this process only reads: the dashboard and a followed
run go on while the control plane is away. Wishes (submit, stop, beat) and what only agents know (logs, doctor) are
calls to the control plane, each with a deadline. The reader blocks on SQLite, so that it runs in threads.

`ClusterSource` satisfies `atoll.ui.source.Source`, and adds what REST alone needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from atoll.checkpoint.retention import Retention
from atoll.errors import AtollError, ClusterError, ConnectError, NotFoundError
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.harm import HarmWish
from atoll.schema.ids import NodeId, RunId, TrainerId, is_safe_name
from atoll.schema.messages import DoctorReport, Finding, LogChunk
from atoll.schema.offers import Offers
from atoll.schema.sharing_views import TopView
from atoll.schema.spec import JobSpec, check_spec
from atoll.schema.views import (
    CheckpointView,
    DrainWish,
    EventView,
    MetricPoint,
    NodeView,
    RunView,
    TopologyView,
    unknown_topology,
)

T = TypeVar("T")

# One answer holds at most this many rows; callers ask again from the last one they got.
PAGE = 5000
# A log answer travels agent -> control plane -> here -> reader: a quarter of a MiB keeps each hop short.
LOG_LIMIT = 1 << 18
# The history's writer is milliseconds behind; two seconds and the answer goes out anyway.
_SHOWN_TRIES = 40
_SHOWN_PAUSE_S = 0.05


class Reader(Protocol):
    """The history file, read only. Rows are views, or their JSON form."""

    def runs(self) -> Sequence[Any]:
        """All runs."""
        ...

    def run(self, run: RunId) -> Any:
        """One run, None or `NotFoundError` where there is none."""
        ...

    def events(
        self, run: RunId | None = None, after: int = 0, subject: str | None = None, limit: int = PAGE
    ) -> Sequence[Any]:
        """Events numbered above `after`, oldest first."""
        ...

    def metrics(self, run: RunId, after_step: int = -1, limit: int = PAGE) -> Sequence[Any]:
        """Committed steps above `after_step`, oldest first."""
        ...

    def log(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk | None:
        """What was kept of a trainer's log, or None."""
        ...

    def checkpoints(self, run: RunId) -> Sequence[Any]:
        """Durable checkpoints of a run."""
        ...

    def nodes(self) -> Sequence[Any]:
        """The hosts."""
        ...

    def topology(self) -> Any:
        """The network, or None before anything of it was known."""
        ...


class Control(Protocol):
    """Calls to the control plane."""

    async def invoke(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result of `method`. Raises the control plane's error, or `ConnectError` where none answers in time."""
        ...


def _check_node(node: NodeId) -> None:
    if not is_safe_name(node):
        raise NotFoundError(f"no node {node!r}; `atoll status` lists the nodes of this cluster")


def _as(cls: type[T], value: Any) -> T:
    return value if isinstance(value, cls) else from_plain(cls, value)


class ClusterSource:
    """One cluster as the web process sees it."""

    def __init__(self, reader: Reader, control: Control) -> None:
        self._reader = reader
        self._control = control

    async def _read(self, cls: type[T], call: Callable[..., Sequence[Any]], *args: Any) -> list[T]:
        return [_as(cls, row) for row in await self._call(call, *args)]

    async def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return await run_in_threadpool(call, *args)
        except DBAPIError as error:  # absent until the control plane first wrote it, locked for too long, or away
            raise ConnectError(
                f"the history cannot be read now ({error.orig}); try again, or see `atoll doctor`"
            ) from None

    # -- the history -------------------------------------------------------------------------------------------------

    async def runs(self) -> list[RunView]:
        """All runs, the newest first, without their specs."""
        found = await self._read(RunView, self._reader.runs)
        return sorted(found, key=lambda run: run.submitted_at, reverse=True)

    async def run(self, run: RunId) -> RunView:
        """One run. Raises `NotFoundError`."""
        found = await self._call(self._reader.run, run) if is_safe_name(run) else None
        if found is None:
            raise NotFoundError(f"no run {run!r}; `atoll ls` lists the runs of this cluster")
        return _as(RunView, found)

    async def events(self, run: RunId | None, after: int, limit: int = PAGE) -> list[EventView]:
        """Events of a run, or of all, numbered above `after`, oldest first."""
        return await self._read(EventView, self._reader.events, run, after, None, limit)

    async def metrics(self, run: RunId, after: int, limit: int = PAGE) -> list[MetricPoint]:
        """Committed steps above `after`, oldest first."""
        return await self._read(MetricPoint, self._reader.metrics, run, after, limit)

    async def checkpoints(self, run: RunId) -> list[CheckpointView]:
        """Durable checkpoints that the run keeps, oldest first. Raises `NotFoundError`."""
        view = await self.run(run)
        found = await self._read(CheckpointView, self._reader.checkpoints, run)
        if view.spec is None or not found:
            return found
        # The run's writers delete the others as each new one becomes durable; the history remembers them.
        gone = Retention.of(view.spec).surplus([(c.step, c.at) for c in found], max(c.at for c in found))
        return sorted((c for c in found if c.step not in gone), key=lambda checkpoint: checkpoint.step)

    async def nodes(self) -> list[NodeView]:
        """The hosts of the cluster."""
        return await self._read(NodeView, self._reader.nodes)

    async def topology(self) -> TopologyView:
        """The network: NICs, measured links, trunks and islands."""
        found = await self._call(self._reader.topology)
        return unknown_topology() if found is None else _as(TopologyView, found)

    async def story(self, subject: str, limit: int) -> list[EventView]:
        """The last `limit` events: all of a run, or those about a trainer or node, or of the cause they share."""
        is_run = is_safe_name(subject) and await self._call(self._reader.run, subject) is not None
        run, about = (RunId(subject), None) if is_run else (None, subject)
        found, after = deque[EventView](maxlen=limit), 0
        while page := await self._read(EventView, self._reader.events, run, after, about, PAGE):
            found.extend(page)
            after = page[-1].seq
        if not found:
            raise NotFoundError(f"no event about {subject!r}; name a run, trainer, node or cause that `atoll ls` shows")
        return list(found)

    # -- the control plane -------------------------------------------------------------------------------------------

    async def submit(self, spec: JobSpec) -> RunId:
        """Hand over a job. Raises `SpecError`, `CapacityError`, `ConnectError`."""
        answer = await self._control.invoke("submit", {"spec": to_plain(check_spec(spec))})
        run = RunId(answer["run"])
        # The history is written behind the journal: whoever is told the id may ask for the run at once.
        for _ in range(_SHOWN_TRIES):
            if await self._call(self._reader.run, run) is not None:
                break
            await asyncio.sleep(_SHOWN_PAUSE_S)
        return run

    async def stop(self, run: RunId, reason: str = "asked at the dashboard") -> None:
        """Ask a run to stop at its next step boundary. Raises `NotFoundError`, `ConnectError`."""
        await self.run(run)
        await self._control.invoke("stop", {"run": run, "reason": reason})

    async def harm(self, run: RunId, wish: HarmWish) -> float:
        """Have a trainer hurt on purpose; when it was ordered, in Unix seconds. Raises `NotFoundError`, `SpecError`."""
        await self.run(run)
        return float((await self._control.invoke("harm", {"run": run, "wish": to_plain(wish)}))["at"])

    async def drain(self, node: NodeId, wish: DrainWish) -> float:
        """Have a node emptied; until when, in Unix seconds. Raises `NotFoundError`, `SpecError`, `ConnectError`."""
        _check_node(node)
        body = {"node": node, "within_s": wish.within_s, "reason": wish.reason[:500]}
        return float((await self._control.invoke("drain", body))["until"])

    async def undrain(self, node: NodeId) -> None:
        """Let trainers be placed on a drained node again. Raises `NotFoundError`, `ConnectError`."""
        _check_node(node)
        await self._control.invoke("undrain", {"node": node})

    async def offer(self, offers: Offers) -> int:
        """What an autoscaler would start; how many types were taken in. Raises `ConnectError`."""
        return int((await self._control.invoke("offer", to_plain(offers)))["offers"])

    async def ask(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """A question or wish about the queue. Raises the control plane's error, or `ConnectError`."""
        return dict(await self._control.invoke(method, body))

    async def top(self) -> TopView | None:
        """Queues and goodput; None while the control plane is away."""
        try:
            return from_plain(TopView, await self.ask("top", {}))
        except ClusterError:
            return None

    async def beat(self, run: RunId) -> None:
        """The run's driver lives."""
        await self._control.invoke("driver_beat", {"run": run})

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        """Up to `limit` bytes of a trainer's log; a negative `offset` counts from the end."""
        await self.run(run)
        if not is_safe_name(trainer):
            raise NotFoundError(f"no trainer {trainer!r} in run {run}; `atoll status {run}` lists them")
        body = {"run": run, "trainer": trainer, "offset": offset, "limit": min(limit, LOG_LIMIT)}
        try:
            chunk = from_plain(LogChunk, {"request": "", **await self._control.invoke("read_log", body)})
            problem: AtollError | None = NotFoundError(chunk.problem) if chunk.problem else None
        except (ConnectError, NotFoundError) as error:
            problem = error
        if problem is None:
            return chunk
        # The node is away or gone, or cleaned up: what the control plane kept of the log.
        kept: LogChunk | None = await self._call(self._reader.log, run, trainer, offset, min(limit, LOG_LIMIT))
        if kept is None:
            raise problem
        return kept

    async def doctor(self) -> list[Finding]:
        """Findings of every node's agent."""
        answer = dict(await self._control.invoke("doctor", {}))
        return list(from_plain(DoctorReport, {"request": "", **answer}).findings)

    async def servers(self) -> list[dict[str, Any]]:
        """Replicas that answer, with what their callers must show: for the gateway alone."""
        return list((await self._control.invoke("servers", {}))["servers"])

    async def status(self) -> dict[str, Any]:
        """The control plane's incarnation, pid and start. Raises `ConnectError`."""
        return dict(await self._control.invoke("status", {}))
