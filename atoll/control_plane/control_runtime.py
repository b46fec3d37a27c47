"""The process around the core: one event loop in which every event is handled the moment it comes, and time ticks.

Nothing in the loop blocks but the journal's append, which must come before every other effect. Calls to Ray, which may
hang for as long as its controller is gone, run in threads with deadlines, at most one listing at a time; the history is
written by a thread of its own. After a stall of this process facts that queued meanwhile are taken in before time goes
on, since a tick first lets everything that is ready be handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from atoll.clock import Clock
from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane import fs_durable, sharing_calls
from atoll.control_plane.core import TICK_S, Core
from atoll.control_plane.durable_runtime import LogFetcher, Packages, Tidier
from atoll.control_plane.grpc_server import BEAT_S, Identity, Port
from atoll.control_plane.log_keeping import PIECE_BYTES, LogKeeper, LogWanted
from atoll.control_plane.projection import servers_of
from atoll.control_plane.ray_doors import RayDoors
from atoll.control_plane.sql_history import HistoryWriter
from atoll.control_plane.sql_journal import Journal
from atoll.errors import ClusterError, ConnectError, InternalError, NotFoundError, SpecError, by_code
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.harm import HarmWish
from atoll.schema.ids import NodeId, RunId, SeatId, TrainerId, is_safe_name
from atoll.schema.messages import AgentFact, AgentHello, DoctorReport, Examine, Finding, LogChunk, ReadLog, Versions
from atoll.schema.offers import Offers, check_offers
from atoll.schema.spec import JobSpec

_SEE_STORY = "see the agent-failed lines of `atoll story` for this node"
LIST_EVERY_S = 1.0
# Ray answers in milliseconds; a hung controller must not pile up threads.
LIST_LIMIT_S = 10.0
SEAT_LIMIT_S = 60.0
AGENT_LIMIT_S = 60.0
ANSWER_LIMIT_S = 8.0
# A stall of more than this lets queued facts in before the clock moves.
STALL_S = 1.0


class RayPort(Protocol):
    """What the loop wants of Ray. Every call blocks and may fail in any way."""

    def listing(self) -> ev.ClusterListed:
        """All nodes, and the seats that live."""
        ...

    def create_seat(self, wanted: fx.CreateSeat) -> ev.SeatCreated:
        """Make the seat, or find it."""
        ...

    def kill_seat(self, seat: SeatId) -> None:
        """End the seat's actor if there is one."""
        ...

    def keep_package(self, uri: str, keep_s: int) -> None:
        """Keep a packed working directory for so long."""
        ...

    def start_agent(self, node: NodeId) -> int:
        """Have an agent started on the node; its pid."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """Where the control plane keeps its things and listens."""

    cluster_dir: Path
    home: Path
    ray_address: str = ""
    host: str
    port: int
    secret: bytes
    pid: int
    start_ticks: int
    versions: Versions


@dataclass(slots=True)
class _Gather:
    """Findings of several agents for one caller."""

    wanted: int
    findings: list[Finding] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class ControlRuntime:
    """One incarnation. `run` returns when `close` was called or the loop failed."""

    def __init__(self, config: ControlConfig, ray: RayPort, clock: Clock) -> None:
        self._config = config
        self._ray = ray
        self._clock = clock
        self.started_at = clock.now()
        durable = fs_durable.load(config.cluster_dir)
        place = durable.journal(config.cluster_dir)
        self._journal = Journal(place, pid=config.pid, at=self.started_at, wait_s=5.0)
        self._history = HistoryWriter(durable.history(config.cluster_dir))
        self._packages = Packages(ray.keep_package)
        self._tidier = Tidier(lambda: durable.archivist(config.cluster_dir), clock)
        # The same for every incarnation, so that agents that were told by the last one go on hearing one another.
        beat_key = hmac.digest(config.secret, b"beats of agents", "sha256").hex()
        self._core = Core(self._journal.incarnation, self._journal.records(), beat_key=beat_key)
        identity = Identity(
            secret=config.secret,
            incarnation=self._journal.incarnation,
            pid=config.pid,
            start_ticks=config.start_ticks,
            versions=config.versions,
        )
        self._port = Port(identity, self, clock)
        self._pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="atoll-ray")
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._logs: dict[str, asyncio.Future[LogChunk]] = {}
        self._gathers: dict[str, _Gather] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._doors = RayDoors(config.ray_address, config.host, clock)
        self._closing = asyncio.Event()
        self._failure: BaseException | None = None
        self.port = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until closed. Calls `ready` once agents and calls are answered."""
        try:
            with contextlib.suppress(Exception):  # Ray may be away; what agents say is enough to begin with
                await self._list_once()
            self.port = await self._port.start(self._config.host, self._config.port)
            self._spawn(self._tick_on())
            self._spawn(self._list_on())
            self._spawn(self._tidier.run())
            self._spawn(self._packages.run(self._core.desk.cluster))
            keeper = LogKeeper(self._history.log_ends())
            fetcher = LogFetcher(keeper, self._core.desk.cluster, self._clock, self._fetch_log)
            self._spawn(fetcher.run(self._history.put))
            self._spawn(self._doors.run(self._history.put))
            ready()
            await self._closing.wait()
        finally:
            await self._end()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Have `run` return. Call within its event loop."""
        self._closing.set()

    async def _end(self) -> None:
        await self._port.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tidier.close()
        self._history.close()
        self._journal.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # State and journal may disagree now: end this incarnation, replay is restart.
            self._failure = self._failure or error
            self._closing.set()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        """Let the core decide, then carry out what it wants, durable first."""
        try:
            for effect in self._core.handle(event, now=self._clock.now()):
                self._carry_out(effect)
        except Exception as error:
            self._failure = self._failure or error
            self._closing.set()
            raise

    def _carry_out(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Persist():
                self._journal.append(effect.records)
            case fx.Send():
                self._port.send(effect.node, effect.command)
            case fx.HangUp():
                self._port.hang_up(effect.node)
            case fx.Reply():
                self._reply(effect)
            case fx.StartAgent() | fx.CreateSeat() | fx.KillSeat():
                self._spawn(self._ask_ray(effect))
            case _:
                self._history.put(effect)

    async def _tick_on(self) -> None:
        last = beat = self._clock.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock.monotonic()
            if now - last > STALL_S:
                await asyncio.sleep(TICK_S)
            last = now
            self.handle(ev.Tick())
            if now - beat >= BEAT_S:
                self._port.beat()
                beat = now

    # -- Ray ---------------------------------------------------------------------------------------------------------

    async def _list_on(self) -> None:
        while True:
            await asyncio.sleep(LIST_EVERY_S)
            with contextlib.suppress(Exception):  # a dead controller of Ray disturbs nothing; asked again
                await self._list_once()

    async def _list_once(self) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._pool, self._ray.listing)
        # Shielded, so that a hung call keeps its one thread instead of a new one each second.
        try:
            self.handle(await asyncio.wait_for(asyncio.shield(asked), LIST_LIMIT_S))
        except TimeoutError:
            await asyncio.wait([asked])

    async def _ask_ray(self, effect: fx.StartAgent | fx.CreateSeat | fx.KillSeat) -> None:
        match effect:
            case fx.CreateSeat():
                await self._create_seat(effect)
            case fx.KillSeat():
                with contextlib.suppress(Exception):  # with Ray away there is no seat to give back
                    await self._in_thread(SEAT_LIMIT_S, self._ray.kill_seat, effect.seat)
            case fx.StartAgent():
                await self._start_agent(effect.node)

    async def _create_seat(self, wanted: fx.CreateSeat) -> None:
        try:
            created = await self._in_thread(SEAT_LIMIT_S, self._ray.create_seat, wanted)
        except Exception as error:  # noqa: BLE001 - the outer edge: whatever Ray did becomes an event
            problem = str(error) or f"no answer from Ray in {SEAT_LIMIT_S:g} s"
            self.handle(ev.SeatFailed(seat=wanted.seat, problem=problem[:500]))
        else:
            self.handle(created)

    async def _start_agent(self, node: NodeId) -> None:
        try:
            await self._in_thread(AGENT_LIMIT_S, self._ray.start_agent, node)
        except Exception as error:  # noqa: BLE001 - likewise; the core asks again while none attaches
            text = f"could not be started: {error or type(error).__name__}"[:1000]
            self._history.put(
                fx.Note(run=None, subject=node, kind="agent-failed", text=text, cause="", at=self._clock.now())
            )

    async def _in_thread(self, limit_s: float, call: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(self._pool, call, *args), limit_s)

    # -- agents ------------------------------------------------------------------------------------------------------

    def attached(self, hello: AgentHello) -> None:
        """An agent passed the handshake."""
        self.handle(ev.AgentAttached(hello=hello))

    def detached(self, node: NodeId, evidence: str) -> None:
        """Its stream ended."""
        self.handle(ev.AgentDetached(node=node, evidence=evidence))

    def said(self, node: NodeId, fact: AgentFact) -> None:
        """It reports a fact, or answers a question that the core need not know of."""
        match fact:
            case LogChunk():
                waiting = self._logs.pop(fact.request, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(fact)
            case DoctorReport():
                self._gathered(fact)
            case AgentHello():
                self.handle(ev.AgentAttached(hello=fact))
            case _:
                self.handle(ev.AgentSaid(node=node, fact=fact))

    # -- calls -------------------------------------------------------------------------------------------------------

    async def called(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """A signed call. Raises `AtollError`."""
        calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "submit": self._submit,
            "stop": self._stop,
            "drain": self._drain,
            "undrain": self._undrain,
            "offer": self._offer,
            "harm": self._harm,
            "driver_beat": self._beat,
            "read_log": self._read_log,
            "doctor": self._doctor,
            "servers": self._servers,
            "status": self._status,
            "shutdown": self._shutdown,
        }
        if method in sharing_calls.QUESTIONS:
            return sharing_calls.QUESTIONS[method](self._core.desk, body)
        if method in sharing_calls.WISHES:
            return await self._ask(lambda request: sharing_calls.WISHES[method](request, body))
        call = calls.get(method)
        if call is None:
            raise InternalError(f"no such call {method!r}; known: {', '.join(sorted(calls))}")
        result: dict[str, Any] = await call(body)
        return result

    async def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        spec = from_plain(JobSpec, body.get("spec"))
        if not is_safe_name(spec.run_id or spec.name):
            raise SpecError(f"name={spec.name!r} run_id={spec.run_id!r}: letters, digits, '_', '.' and '-' only")
        if not self._journal.has_room():
            raise ClusterError(f"the disk of {self._config.cluster_dir} is full; free some space and submit again")
        run = spec.run_id or RunId(f"{spec.name}-{secrets.token_hex(3)}")
        run_dir = self._config.home / "runs" / run
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._packages.keep(spec.working_dir_uri)
        return await self._ask(
            lambda request: ev.RunAsked(
                request=request, run=run, spec=spec, run_dir=str(run_dir), secret=secrets.token_hex(32)
            )
        )

    async def _stop(self, body: dict[str, Any]) -> dict[str, Any]:
        run, reason = RunId(str(body.get("run"))), str(body.get("reason") or "")
        return await self._ask(lambda request: ev.StopAsked(request=request, run=run, reason=reason))

    async def _harm(self, body: dict[str, Any]) -> dict[str, Any]:
        run, wish = RunId(str(body.get("run"))), from_plain(HarmWish, body.get("wish"))
        return await self._ask(lambda request: ev.HarmAsked(request=request, run=run, wish=wish))

    async def _drain(self, body: dict[str, Any]) -> dict[str, Any]:
        node, within_s = NodeId(str(body.get("node"))), float(body.get("within_s", 0.0))
        reason = str(body.get("reason") or "asked to drain it")
        return await self._ask(
            lambda request: ev.DrainAsked(request=request, node=node, within_s=within_s, reason=reason)
        )

    async def _undrain(self, body: dict[str, Any]) -> dict[str, Any]:
        node = NodeId(str(body.get("node")))
        return await self._ask(lambda request: ev.UndrainAsked(request=request, node=node))

    async def _offer(self, body: dict[str, Any]) -> dict[str, Any]:
        said = check_offers(from_plain(Offers, body))
        return await self._ask(
            lambda request: ev.MachinesOffered(request=request, offers=said.offers, decisions=said.decisions)
        )

    async def _beat(self, body: dict[str, Any]) -> dict[str, Any]:
        self.handle(ev.DriverBeat(run=RunId(str(body.get("run")))))
        return {}

    async def _shutdown(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - every call has a body
        return await self._ask(lambda request: ev.ShutdownAsked(request=request))

    async def _ask(self, make: Callable[[str], ev.Event]) -> dict[str, Any]:
        request = secrets.token_hex(8)
        waiting = self._replies[request] = asyncio.get_running_loop().create_future()
        self.handle(make(request))
        return await asyncio.wait_for(waiting, ANSWER_LIMIT_S)

    def _reply(self, effect: fx.Reply) -> None:
        waiting = self._replies.pop(effect.request, None)
        if waiting is None or waiting.done():
            return
        if effect.problem is not None:
            waiting.set_exception(by_code(effect.problem.code)(effect.problem.problem))
        else:
            waiting.set_result(effect.value or {})

    async def _read_log(self, body: dict[str, Any]) -> dict[str, Any]:
        run_id, name = RunId(str(body.get("run"))), TrainerId(str(body.get("trainer")))
        run = self._core.desk.cluster.runs.get(run_id)
        trainer = run.trainers.get(name) if run is not None else None
        if trainer is None:
            raise NotFoundError(f"no trainer {name!r} in run {run_id!r}; `atoll status {run_id}` lists them")
        offset, limit = int(body.get("offset", 0)), int(body.get("limit", 1 << 16))
        plain: dict[str, Any] = to_plain(await self._ask_log(trainer.node, run_id, name, offset, limit))
        return plain

    async def _fetch_log(self, want: LogWanted) -> LogChunk:
        return await self._ask_log(want.node, want.run, want.trainer, want.offset, PIECE_BYTES)

    async def _ask_log(self, node_id: NodeId, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        node = self._core.desk.nodes.get(node_id)
        if node is None or not node.attached:
            raise ConnectError(f"no agent of {node_id} is attached; what was kept of its logs is in the history")
        request = secrets.token_hex(8)
        waiting = self._logs[request] = asyncio.get_running_loop().create_future()
        self._port.send(node_id, ReadLog(request=request, run=run, trainer=trainer, offset=offset, limit=limit))
        try:
            return await asyncio.wait_for(waiting, ANSWER_LIMIT_S)
        except TimeoutError:
            raise ConnectError(f"the agent of {node_id} did not answer in {ANSWER_LIMIT_S:g} s") from None
        finally:
            self._logs.pop(request, None)

    async def _doctor(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - as above
        nodes = [n.node for n in self._core.desk.nodes.values() if n.attached]
        away = [n for n in self._core.desk.nodes.values() if n.usable and not n.attached]
        request = secrets.token_hex(8)
        gather = self._gathers[request] = _Gather(wanted=len(nodes))
        for node in nodes:
            self._port.send(node, Examine(request=request, now=self._clock.now()))
        with contextlib.suppress(TimeoutError):
            if nodes:
                await asyncio.wait_for(gather.done.wait(), ANSWER_LIMIT_S)
        del self._gathers[request]
        missing = [
            Finding(node=n.node, check="agent", ok=False, detail="not attached", remedy=_SEE_STORY) for n in away
        ]
        report = DoctorReport(request=request, findings=(*gather.findings, *missing, *await self._doors.findings()))
        return dict(to_plain(report))

    def _gathered(self, report: DoctorReport) -> None:
        gather = self._gathers.get(report.request)
        if gather is not None:
            gather.findings += report.findings
            gather.wanted -= 1
            if gather.wanted <= 0:
                gather.done.set()

    async def _servers(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - as above
        return {"servers": servers_of(self._core.desk.cluster)}

    async def _status(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - as above
        return {
            "incarnation": self._journal.incarnation,
            "pid": os.getpid(),
            "started_at": self.started_at,
            "agents": {n.node: n.pid for n in self._core.desk.nodes.values() if n.attached},
            "nodes": [n.node for n in self._core.desk.nodes.values() if n.usable],
            "history_problem": self._history.problem or self._tidier.problem,
        }
