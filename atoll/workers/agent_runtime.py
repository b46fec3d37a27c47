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
    Kill,
    Leave,
    Probe,
    Probed,
    Refuse,
    Save,
    Send,
    Tell,
    Watch,
)
from atoll.workers.control_link_runtime import ControlLink
from atoll.workers.doctor_runtime import Node, examine
from atoll.workers.exit_runtime import Exits
from atoll.workers.fork_messages import ChildEnded, ForkRefused, ForkTrainer, TrainerForked, ZygoteReport, ZygoteWarm
from atoll.workers.nic_runtime import nics
from atoll.workers.probe_runtime import ProbeService
from atoll.workers.proc_runtime import adopt_orphans, fence, find_writer, my_start_ticks, reap, send_signal
from atoll.workers.silence import Silence
from atoll.workers.supervisor_runtime import Supervisor
from atoll.workers.trainer_socket_runtime import TrainerSocket
from atoll.workers.zygote_client_runtime import ZygoteKeeper

BEAT_S = 1.0
LOOK_S = 0.25
ALONE_S = 600.0
# What a dead trainer's last words may take to be read; longer only where a forked child of it holds the line open.
LAST_WORDS_S = 0.5
LEAVE_S = 5.0


class Agent:
    """The shell. `run` returns when the agent's work is over."""

    def __init__(self, config: AgentConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._state_dir = Path(config.state_dir)
        record = read_record(self._state_dir)
        same = record is not None and record.fingerprint == config.fingerprint()
        secret = bytes.fromhex(config.secret)
        self._probes = ProbeService(config.node, nics(config.address), secret, clock.now)
        self._core = AgentCore(_myself(config, self._probes), record.saved if record and same else None)
        self._strangers = record.saved.trainers if record and not same else ()
        self._socket = TrainerSocket(self._state_dir, self._handle)
        self._zygote = ZygoteKeeper(self._state_dir / "agent.log", self._zygote_said)
        self._link = ControlLink(config.control, config.node, secret, self._handle)
        self._exits = Exits(self._trainer_ended)
        self._alone = Silence(tick_s=2 * BEAT_S)
        self._leaving = asyncio.Event()
        self._one_ended = asyncio.Event()
        self._gone_for_good = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervisor = self._make_supervisor() if config.head else None

    async def run(self) -> None:
        """Serve until told to leave."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        await self._socket.start()
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
            case Watch():
                self._exits.watch(effect.trainer, effect.pid, effect.start_ticks)
            case Kill():
                _log(f"fences pid {effect.pid}: {effect.reason}")
                fence(effect.pid, effect.start_ticks)
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

    def _save(self) -> None:
        record = AgentRecord(
            pid=os.getpid(),
            start_ticks=my_start_ticks(),
            fingerprint=self._config.fingerprint(),
            saved=self._core.saved(),
        )
        write_record(self._state_dir, record)

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
                web = self._config.web
                node = Node(
                    node=self._config.node,
                    address=self._config.address,
                    home=self._config.home,
                    zygote=self._zygote.warm,
                    web=(web.host, web.port) if web and self._config.head else None,
                )
                findings = await asyncio.to_thread(examine, node, now=self._clock.now(), asked_at=question.now)
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
                self._exits.watch(found.trainer, found.pid, found.start_ticks)
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

    def _trainer_ended(self, trainer: TrainerId, status: int | None) -> None:
        self._spawn(self._end_trainer(trainer, status))

    async def _end_trainer(self, trainer: TrainerId, status: int | None) -> None:
        await self._socket.settle(trainer, LAST_WORDS_S)  # "finished" shall not come after the exit
        found = next((f for f in self._core.living() if f.trainer == trainer), None)
        tail = log_tail(Path(self._core.log_of(trainer, found.run))) if found and status != 0 else ""
        self._handle(Ended(trainer=trainer, exit_status=status, log_tail=tail))
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
            self._link.send(beat)
            self._socket.greet()
            if self._link.attached or living:
                self._alone.heard()
            if self._alone.look(now=self._clock.monotonic()) > ALONE_S:
                self._perform(Leave(reason=f"no control plane at {self._config.control} for {ALONE_S:.0f} s"))
            await asyncio.sleep(BEAT_S)

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
        asyncio.run(_run(config))
    except AtollError as error:
        _log(f"{error.code}: {error}")
        return error.exit_code
    return 0


async def _run(config: AgentConfig) -> None:
    await Agent(config, SystemClock()).run()


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


def _myself(config: AgentConfig, probes: ProbeService) -> Self:
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
        nics=nics(config.address),
        doors=probes.doors,
    )


def _log(text: str) -> None:
    print(f"atoll: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the agent's log


if __name__ == "__main__":
    sys.exit(main())
