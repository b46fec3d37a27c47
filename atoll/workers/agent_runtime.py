"""The agent of a node: `python -m atoll.workers.agent_runtime`, one JSON line of configuration on standard input.

One event loop around `AgentCore`: events come from the control plane's stream, the trainers' socket, the zygote and the
kernel (exits); effects go back to the same places. It outlives Ray on its node (see `agent_launch_runtime`), and its
trainers outlive it: on SIGTERM or a crash they go on, and the next agent of the same state directory takes them over.

It ends for good on `LeaveNode`, or when no control plane was reached for ten minutes while it had no trainer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, assert_never

import psutil

from atoll import __version__
from atoll.clock import Clock, SystemClock
from atoll.errors import AtollError
from atoll.schema.codec import decode_as
from atoll.schema.ids import TrainerId
from atoll.schema.messages import PROTOCOL, AgentBeat, DoctorReport, Examine, ReadLog, StartTrainer, Versions
from atoll.schema.topology import Nic
from atoll.workers.agent_core import AgentCore, Self
from atoll.workers.agent_files_runtime import (
    AgentConfig,
    AgentRecord,
    log_tail,
    private_dir,
    read_log,
    read_record,
    supervised_config,
    take_lock,
    write_record,
)
from atoll.workers.agent_messages import (
    Answer,
    Effect,
    Ended,
    Event,
    Fork,
    Forked,
    ForkFailed,
    Hurt,
    Kill,
    Leave,
    Probe,
    Probed,
    Refuse,
    Save,
    Send,
    Tell,
    Watch,
    Watched,
    WatchRing,
)
from atoll.workers.control_link_runtime import ControlLink
from atoll.workers.doctor_runtime import WARM_LIMIT_S, Node, examine
from atoll.workers.exit_runtime import Exits
from atoll.workers.fork_messages import ChildEnded, ForkRefused, ForkTrainer, TrainerForked, ZygoteReport, ZygoteWarm
from atoll.workers.fs_output import is_full, log_stream
from atoll.workers.hurt_runtime import hurt
from atoll.workers.nic_runtime import nics
from atoll.workers.notice_runtime import read_notice
from atoll.workers.probe_runtime import ProbeService
from atoll.workers.proc_memory import MemoryKills
from atoll.workers.proc_runtime import adopt_orphans, fence, find_writer, my_start_ticks, reap, send_signal
from atoll.workers.proc_turns import take_short_turns, usual_niceness
from atoll.workers.silence import Silence
from atoll.workers.supervisor_runtime import Supervisor
from atoll.workers.trainer_socket_runtime import TrainerSocket
from atoll.workers.watch_runtime import Fact, Watcher
from atoll.workers.zygote_client_runtime import ZygoteKeeper

# The control plane takes a node for silent when several beats in a row did not come (`atoll.fault.limits`).
BEAT_S = 0.25
# How often trainers are greeted and the node is looked at.
GREETING_S = 1.0
LOOK_S = 0.25
ALONE_S = 600.0
# What a dead trainer's last words may take to be read; longer only where a forked child of it holds the line open.
LAST_WORDS_S = 0.5
LEAVE_S = 5.0


class Agent:
    """The shell. `run` returns when the agent's work is over."""

    def __init__(self, config: AgentConfig, clock: Clock, niceness: int) -> None:
        self._config = config
        self._clock = clock
        self._state_dir = Path(config.state_dir)
        record = read_record(self._state_dir)
        same = record is not None and record.fingerprint == config.fingerprint()
        secret = bytes.fromhex(config.secret)
        mine = nics(config.address)
        self._probes = ProbeService(config.node, mine, secret, clock.now)
        self._watcher = Watcher(config.node, mine, self._state_dir, clock)
        self._core = AgentCore(
            _myself(config, mine, self._probes, self._watcher), record.saved if record and same else None
        )
        self._strangers = record.saved.trainers if record and not same else ()
        self._socket = TrainerSocket(self._state_dir, self._handle)
        self._zygote = ZygoteKeeper(self._state_dir / "agent.log", self._zygote_said, niceness)
        self._link = ControlLink(config.control, config.node, secret, self._handle, clock)
        self._exits = Exits(self._trainer_ended)
        self._kills = MemoryKills()
        self._alone = Silence(tick_s=2 * GREETING_S)
        self._leaving = asyncio.Event()
        self._one_ended = asyncio.Event()
        self._gone_for_good = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervisor = self._make_supervisor() if config.head else None

    async def run(self) -> None:
        """Serve until told to leave."""
        loop = self._loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        await self._socket.start()
        self._watcher.start(self._emit_from_watch)
        self._find_again()
        self._save()
        self._spawn(self._zygote.run())
        self._spawn(self._link.run())
        self._spawn(self._beat())
        self._spawn(self._probes.serve())
        if self._supervisor:
            self._spawn(self._supervise(self._supervisor))
        await self._leaving.wait()
        await self._close()

    # -- the core's events and effects -----------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        for effect in self._core.handle(event, now=self._clock.monotonic()):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Save():
                self._save()
            case Send():
                self._link.send(effect.fact)
            case Fork():
                self._zygote.fork(self._order(effect.start))
            case Watch() | WatchRing():
                self._watch(effect)
            case Kill() | Hurt():
                self._strike(effect)
            case Tell():
                self._socket.tell(effect.trainer, effect.command)
            case Answer() | Probe():
                self._spawn(self._answer(effect))
            case Refuse():
                _log(f"refuses a control plane: {effect.reason}")
                self._link.drop()
            case Leave():
                _log(f"leaves: {effect.reason}")
                self._gone_for_good = True
                self._leaving.set()
            case _:
                assert_never(effect)

    def _strike(self, effect: Kill | Hurt) -> None:
        if isinstance(effect, Hurt):
            _log(f"hurts pid {effect.pid} on purpose: {effect.order.harm}")
            self._spawn(hurt(effect))
            return
        _log(f"fences pid {effect.pid}: {effect.reason}")
        fence(effect.pid, effect.start_ticks)

    def _save(self) -> None:
        record = AgentRecord(
            pid=os.getpid(),
            start_ticks=my_start_ticks(),
            fingerprint=self._config.fingerprint(),
            saved=self._core.saved(),
        )
        try:
            write_record(self._state_dir, record)
        except OSError as error:
            if not is_full(error):
                raise
            _log(f"the disk of {self._state_dir} is full; should this agent end, its next one will not know the latest")

    def _order(self, start: StartTrainer) -> ForkTrainer:
        config = self._config
        return ForkTrainer(
            start=start,
            node=config.node,
            address=config.address,
            state_dir=config.state_dir,
            nics=nics(config.address),  # as they are now: a trainer cannot listen on one that went down
        )

    async def _answer(self, effect: Answer | Probe) -> None:
        if isinstance(effect, Probe):
            self._handle(Probed(fact=await self._probes.measure(effect.order)))
            return
        question = effect.question
        match question:
            case ReadLog():
                self._link.send(read_log(question, Path(effect.log)))
            case Examine():
                now = self._clock.now()
                web = self._config.web
                node = Node(
                    node=self._config.node,
                    address=self._config.address,
                    home=self._config.home,
                    zygote=await self._zygote.warmed(WARM_LIMIT_S),
                    zygote_ends=self._zygote.ends,
                    web=(web.host, web.port) if web and self._config.head else None,
                )
                findings = await asyncio.to_thread(examine, node, now=now, asked_at=question.now)
                self._link.send(DoctorReport(request=question.request, findings=findings))
            case _:
                assert_never(question)

    # -- processes ---------------------------------------------------------------------------------------------------

    def _find_again(self) -> None:
        """Take over what the last agent of this directory left; end what another cluster's left."""
        for stranger in self._strangers:
            fence(stranger.found.pid, stranger.found.start_ticks)
        for found in self._core.living():
            if found.pid:
                self._watch(Watch(trainer=found.trainer, run=found.run, pid=found.pid, start_ticks=found.start_ticks))
                continue
            log = self._core.log_of(found.trainer, found.run)
            stat = find_writer(Path(log))
            if stat is None:
                self._handle(ForkFailed(trainer=found.trainer, problem="the agent ended before the fork"))
            else:
                self._handle(Forked(trainer=found.trainer, pid=stat.pid, start_ticks=stat.start_ticks))

    def _zygote_said(self, report: ZygoteReport) -> None:
        match report:
            case ZygoteWarm():
                _log(f"zygote {report.pid} is warm after {report.seconds:.1f} s, {report.threads} thread(s)")
            case TrainerForked():
                self._handle(Forked(trainer=report.trainer, pid=report.pid, start_ticks=report.start_ticks))
            case ForkRefused():
                self._handle(ForkFailed(trainer=report.trainer, problem=report.problem))
            case ChildEnded():
                self._exits.reaped(report.pid, report.exit_status)
            case _:
                assert_never(report)

    def _reap(self) -> None:
        for pid, status in reap():
            self._exits.reaped(pid, status)

    def _watch(self, effect: Watch | WatchRing) -> None:
        if isinstance(effect, WatchRing):
            self._watcher.obey(effect.order)
            return
        self._exits.watch(effect.trainer, effect.pid, effect.start_ticks)
        self._watcher.watch(effect.trainer, effect.run, effect.pid, effect.start_ticks)

    def _trainer_ended(self, trainer: TrainerId, status: int | None) -> None:
        self._watcher.forget(trainer)
        self._spawn(self._end_trainer(trainer, status))

    async def _end_trainer(self, trainer: TrainerId, status: int | None) -> None:
        await self._socket.settle(trainer, LAST_WORDS_S)  # "finished" shall not come after the exit
        found = next((f for f in self._core.living() if f.trainer == trainer), None)
        tail = log_tail(Path(self._core.log_of(trainer, found.run))) if found and status != 0 else ""
        oom = status == -signal.SIGKILL and self._kills.recent(self._clock.monotonic())
        self._handle(Ended(trainer=trainer, exit_status=status, log_tail=tail, out_of_memory=oom))
        self._one_ended.set()

    # -- loops -------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            living = self._core.living()
            beat = AgentBeat(
                node=self._config.node,
                cpu_percent=psutil.cpu_percent(None),
                free_bytes=psutil.disk_usage(self._config.home).free,
                trainers=len(living),
            )
            self._socket.greet()
            self._kills.look(self._clock.monotonic())
            notice = read_notice(self._state_dir.parent / "notice", self._config.node, self._clock.now())
            if notice is not None:
                self._link.send(notice)
            if self._link.attached or living:
                self._alone.heard()
            if self._alone.look(now=self._clock.monotonic()) > ALONE_S:
                self._perform(Leave(reason=f"no control plane at {self._config.control} for {ALONE_S:.0f} s"))
            await self._say_it_lives(beat)

    async def _say_it_lives(self, beat: AgentBeat) -> None:
        """For one round. Whatever else is said says it as well: a beat goes out where nothing did for `BEAT_S`, or last."""
        end, said = self._clock.monotonic() + GREETING_S, False
        while (left := end - (now := self._clock.monotonic())) > 0:
            quiet = now - self._link.sent_at
            if quiet >= BEAT_S:
                self._link.send(beat)
                quiet, said = 0.0, True
            await asyncio.sleep(min(left, BEAT_S - quiet))
        if not said:
            self._link.send(beat)

    def _emit_from_watch(self, facts: tuple[Fact, ...] | None, at: float) -> None:
        """Called on the thread of the watch; None: it ends."""
        self._loop.call_soon_threadsafe(self._take_watched, facts, at)

    def _take_watched(self, facts: tuple[Fact, ...] | None, at: float) -> None:
        if facts is not None:
            self._handle(Watched(facts=facts, at=at))
        elif not self._leaving.is_set():
            _log("the watch ended because of a bug: this agent ends, and a fresh one takes over")
            self._leaving.set()

    async def _supervise(self, supervisor: Supervisor) -> None:
        while True:
            supervisor.look()
            await asyncio.sleep(LOOK_S)

    def _make_supervisor(self) -> Supervisor:
        logs = Path(self._config.web.cluster_dir) if self._config.web else self._state_dir
        configuration = supervised_config(self._config)
        return Supervisor(self._state_dir, logs, configuration, self._link, self._clock.monotonic)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not self._leaving.is_set():
            # Half an agent is worse than none: trainers live on, and a fresh agent takes them over.
            context = {"message": "atoll: the agent ends because of a bug", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(context)
            self._leaving.set()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        if self._gone_for_good:
            await self._see_trainers_end()
            if self._supervisor:
                await self._supervisor.close()
        self._probes.close()
        self._watcher.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()
        self._exits.close()
        self._zygote.kill()
        if self._gone_for_good:
            (self._state_dir / "agent.json").unlink(missing_ok=True)

    async def _see_trainers_end(self) -> None:
        """Until each fenced trainer's end is proven and told, or for a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while self._core.living():
                    self._one_ended.clear()
                    await self._one_ended.wait()
        await self._link.finish(1.0)


def main() -> int:
    """Read the configuration and be the agent. Returns the exit code."""
    os.umask(0o077)
    niceness = usual_niceness()
    try:
        config = decode_as(AgentConfig, sys.stdin.readline())
        state_dir = private_dir(Path(config.state_dir))
        private_dir(Path(config.home))
        lock = take_lock(state_dir)
        record = read_record(state_dir)
        if lock is None and record is not None and record.fingerprint != config.fingerprint():
            lock = _take_over(state_dir, record)
        if lock is None:
            _log("another agent serves this node; nothing to do")
            return 0
        adopt_orphans()
        asyncio.run(_run(config, niceness))
    except AtollError as error:
        _log(f"{error.code}: {error}")
        return error.exit_code
    return 0


async def _run(config: AgentConfig, niceness: int) -> None:
    take_short_turns()
    await Agent(config, SystemClock(), niceness).run()


def _take_over(state_dir: Path, record: AgentRecord) -> int | None:
    """End the agent of a cluster that was here before, and take its lock; its trainers are not ours to keep."""
    clock = SystemClock()
    for number in (signal.SIGTERM, signal.SIGKILL):
        send_signal(record.pid, record.start_ticks, number)
        deadline = clock.monotonic() + LEAVE_S
        while clock.monotonic() < deadline:
            lock = take_lock(state_dir)
            if lock is not None:
                return lock
            time.sleep(0.05)
    return None


def _myself(config: AgentConfig, mine: tuple[Nic, ...], probes: ProbeService, watcher: Watcher) -> Self:
    versions = Versions(
        atoll=__version__,
        protocol=PROTOCOL,
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
    )
    return Self(
        node=config.node,
        pid=os.getpid(),
        address=config.address,
        state_dir=config.state_dir,
        home=config.home,
        versions=versions,
        nics=mine,
        doors=probes.doors,
        beats=watcher.doors,
    )


def _log(text: str) -> None:
    print(f"atoll: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the agent's log


if __name__ == "__main__":
    sys.stdout, sys.stderr = log_stream(1), log_stream(2)
    sys.exit(main())
