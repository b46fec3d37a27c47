"""The zygote: one single-threaded process that has torch imported and forks trainers from it.

A fork of it costs milliseconds where a fresh interpreter importing torch takes 20-40 s on a loaded machine. Forking is
safe only while there is one thread and no CUDA context, so nothing here starts a thread, computes, or touches a device;
`ZygoteWarm.threads` tells the agent if an import did. All that a trainer will need is imported before the first fork:
what is imported later is imported by each trainer for itself, at the same time, on the same cores.

Standard input is the socket of the agent, one JSON line a message. When it ends, so does the zygote; trainers live on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import selectors
import signal
import socket
import sys
import types
from pathlib import Path
from typing import NoReturn

from atoll.clock import SystemClock
from atoll.schema.codec import Registry, encode
from atoll.schema.ids import TRAINER_MARK
from atoll.workers import trainer_runtime
from atoll.workers.fork_messages import (
    ZYGOTE_REQUESTS,
    ChildEnded,
    ForkRefused,
    ForkTrainer,
    TrainerForked,
    ZygoteReport,
    ZygoteWarm,
)
from atoll.workers.proc_runtime import reap, start_ticks

# OpenBLAS and Arrow's jemalloc start their threads when they are loaded, and read these then.
_NO_THREADS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# torch._dynamo (2 s) is what making the first optimizer imports otherwise.
ALSO = (
    "atoll.collectives.tcp_communicator",
    "atoll.workers.context",
    "atoll.workers.data",
    "torch._dynamo",
)


class Zygote:
    """The loop of the process: requests in, forks and reports out."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._buffer = b""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(agent, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def run(self) -> ForkTrainer | None:
        """Serve until the agent goes (None), or, in a child just forked, return what that child is to be."""
        while True:
            ready = {key.fd for key, _ in self._selector.select()}
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            self._reap()
            if self._agent.fileno() in ready:
                requests = self._requests()
                if requests is None:
                    return None
                for request in requests:
                    if self._fork(request):
                        return request

    def report(self, report: ZygoteReport) -> None:
        """Tell the agent. If it is gone the next look at the socket says so."""
        with contextlib.suppress(OSError):
            self._agent.sendall(encode(report) + b"\n")

    def _requests(self) -> list[ForkTrainer] | None:
        try:
            data = self._agent.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        registry = Registry(ZYGOTE_REQUESTS)
        return [registry.decode(line) for line in lines]

    def _fork(self, request: ForkTrainer) -> bool:
        """Fork; True in the child."""
        gc.freeze()  # what is in memory now is for ever: collecting it in the children would only unshare its pages
        try:
            pid = os.fork()
        except OSError as error:
            self.report(ForkRefused(trainer=request.start.trainer, problem=f"fork: {error}"))
            return False
        if pid == 0:
            self._close()
            return True
        self.report(TrainerForked(trainer=request.start.trainer, pid=pid, start_ticks=start_ticks(pid)))
        return False

    def _reap(self) -> None:
        for pid, status in reap():
            self.report(ChildEnded(pid=pid, exit_status=status))

    def _close(self) -> None:
        """In the child: let go of everything of the zygote's."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._agent.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


def main() -> NoReturn:
    """Import what trainers need, say so, and serve the agent on standard input."""
    clock = SystemClock()
    began = clock.monotonic()
    agent = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_all()
    import torch  # noqa: PLC0415 - once the variables that it reads are set

    zygote = Zygote(agent)
    zygote.report(
        ZygoteWarm(
            pid=os.getpid(),
            torch=torch.__version__,
            cuda=torch.version.cuda or "",
            threads=len(list(Path("/proc/self/task").iterdir())),
            seconds=clock.monotonic() - began,
        )
    )
    order = zygote.run()
    if order is None:
        os._exit(0)
    _be_nobody()
    trainer_runtime.leave(trainer_runtime.run(order))
    os._exit(70)


def _import_all() -> None:
    given = {name: os.environ.get(name) for name in _NO_THREADS}  # noqa: TID251 - set around these imports only
    os.environ.update(_NO_THREADS)  # noqa: TID251 - likewise
    import torch.optim  # noqa: PLC0415
    import torch.utils.data  # noqa: F401, PLC0415

    for name in ALSO:
        _import_if_there(name)
    for name, value in given.items():
        if value is None:
            del os.environ[name]  # noqa: TID251 - likewise: a program that reads them sees what it was given
        else:
            os.environ[name] = value  # noqa: TID251 - likewise


def _import_if_there(name: str) -> None:
    """Import a module ahead of need. One that fails will fail again, and be told, where it is needed."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - ahead of need: the trainer that needs it reports it
        print(f"atoll: the zygote could not import {name}: {error!r}", file=sys.stderr)  # noqa: T201 - the agent's log


def _be_nobody() -> None:
    """Give the trainer an empty `__main__`, so that the loader processes it spawns do not import this module."""
    main = types.ModuleType("__main__")
    main.__dict__[TRAINER_MARK] = True
    sys.modules["__main__"] = main


if __name__ == "__main__":
    main()
