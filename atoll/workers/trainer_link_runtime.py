"""A trainer's line to its agent: a Unix socket in the agent's state directory, and the thread that keeps it up.

The thread reads commands into the mailbox and writes what `tell` queued; `tell` itself only appends and wakes it, so
that training never waits for an agent. A broken line is opened again for ever: hello first, then what still holds. The
agent writes an empty line now and then, which shows that it lives. The lifeline is counted here: when neither agent nor
peers were heard for 60 s nobody leads this process any more, and it ends itself.

The socket's path may exceed the 107 bytes that the kernel takes: both sides name it through a descriptor of its
directory.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll.clock import Clock
from atoll.errors import SchemaError
from atoll.schema.codec import Registry, encode
from atoll.schema.messages import (
    TRAINER_COMMANDS,
    Busy,
    EpochJoined,
    LinksObserved,
    Misbehave,
    ServerReady,
    StepCommitted,
    TrainerFact,
    TrainerFailed,
    TrainerFinished,
    TrainerHello,
    TrainerReady,
    Waiting,
)
from atoll.workers.host import Mailbox
from atoll.workers.outbox import Item, Outbox
from atoll.workers.silence import Backoff, Silence

SOCKET = "agent.sock"
# Long enough for a host to be cut off and healed or an agent to be started again, short enough that nothing is left
# of a cluster whose control plane has given this trainer's seat to another.
LIFELINE_S = 60.0
LIFELINE_EXIT = 75
TICK_S = 0.5
_STANDING = (TrainerReady, EpochJoined, Busy, ServerReady, TrainerFinished, TrainerFailed)
_COMMANDS = Registry(TRAINER_COMMANDS)


@contextlib.contextmanager
def socket_address(state_dir: Path) -> Iterator[str]:
    """A short name of the agent's socket, valid inside the block."""
    fd = os.open(state_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


class AgentLink:
    """The line. Start it once; `tell` may be called from any thread."""

    def __init__(self, hello: TrainerHello, mailbox: Mailbox, state_dir: Path, clock: Clock) -> None:
        self._hello = hello
        self._mailbox = mailbox
        self._state_dir = state_dir
        self._clock = clock
        self._outbox: Outbox[TrainerFact] = Outbox(
            may_drop=lambda fact: isinstance(fact, StepCommitted | LinksObserved | Waiting)
        )
        self._lock = threading.Lock()
        self._said = threading.Condition(self._lock)
        self._unsent = b""
        self._buffer = b""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._silence = Silence(tick_s=2 * TICK_S)
        self.outcome: TrainerFinished | TrainerFailed | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atoll-agent-link", daemon=True)
        self.on_lifeline: Callable[[], None] = _end_process
        # Where the run's spec allows it; else such an order is a line in the log.
        self.on_harm: Callable[[Misbehave], None] = _refuse

    def start(self) -> None:
        """Open the line and keep it open."""
        self._thread.start()

    def tell(self, fact: TrainerFact) -> None:
        """Queue a fact for the agent. Never blocks for it and never raises."""
        key = type(fact).__name__ if isinstance(fact, _STANDING) else None
        with self._lock:
            if isinstance(fact, TrainerFinished | TrainerFailed):
                self.outcome = fact
            self._hello = _folded(self._hello, fact)
            self._outbox.put(Item(owner=self._hello.trainer, fact=fact, key=key))
        self._wake()

    def heard(self) -> None:
        """A peer was heard: the lifeline holds."""
        self._silence.heard()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything told was written to the agent's socket."""
        with self._said:
            return self._said.wait_for(lambda: len(self._outbox) == 0 and not self._unsent, timeout_s)

    def close(self) -> None:
        """End the thread and close the line."""
        self._closing.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(5.0)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake anyway
            os.write(self._wake_write, b"!")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(first_s=0.05, last_s=0.5)
        while not self._closing.is_set():
            with contextlib.suppress(OSError), self._connect() as line:
                backoff.reset()
                self._talk(line)
            self._look()
            self._closing.wait(backoff.next())

    def _connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(2.0)
            with socket_address(self._state_dir) as address:
                line.connect(address)
            line.settimeout(0)  # from here on the selector says when
        except OSError:
            line.close()
            raise
        return line

    def _talk(self, line: socket.socket) -> None:
        self._buffer = b""
        with self._lock:
            self._outbox.rewind(now=self._clock.monotonic())
            self._unsent = encode(self._hello) + b"\n"
        try:
            self._exchange(line)
        finally:
            with self._lock:
                self._outbox.rewind(now=self._clock.monotonic())

    def _exchange(self, line: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(line, selectors.EVENT_READ | selectors.EVENT_WRITE)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._closing.is_set():
                ready = {key.fd: mask for key, mask in selector.select(TICK_S)}
                self._look()
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                if ready.get(line.fileno(), 0) & selectors.EVENT_READ and not self._read(line):
                    return
                waiting = self._write(line)
                selector.modify(line, selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0))

    def _read(self, line: socket.socket) -> bool:
        data = line.recv(1 << 16)
        if not data:
            return False
        self._silence.heard()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for text in filter(None, lines):
            self._take(text)
        return True

    def _take(self, text: bytes) -> None:
        try:
            command = _COMMANDS.decode(text)
        except SchemaError as error:
            print(f"atoll: the agent said something unknown: {error}", file=sys.stderr)  # noqa: T201 - this is the log
            return
        if isinstance(command, Misbehave):
            self.on_harm(command)
        else:
            self._mailbox.put(command)

    def _write(self, line: socket.socket) -> bool:
        """Write what there is; True while some is left."""
        with self._said:
            self._fill()
            with contextlib.suppress(BlockingIOError):
                while self._unsent:
                    self._unsent = self._unsent[line.send(self._unsent) :]
                    self._fill()
            if not self._unsent:
                self._said.notify_all()
            return bool(self._unsent)

    def _fill(self) -> None:
        if not self._unsent and (fact := self._outbox.take(now=self._clock.monotonic())) is not None:
            self._unsent = encode(fact) + b"\n"

    def _look(self) -> None:
        if self._silence.look(now=self._clock.monotonic()) > LIFELINE_S:
            self.on_lifeline()


def _folded(hello: TrainerHello, fact: TrainerFact) -> TrainerHello:
    """The hello of the next connection: it says the newest epoch, and whether the trainer is warm."""
    match fact:
        case EpochJoined():
            epoch, ready = max(hello.epoch, fact.epoch), hello.ready
        case TrainerReady():
            epoch, ready = hello.epoch, True
        case _:
            return hello
    return TrainerHello(
        trainer=hello.trainer,
        run=hello.run,
        pid=hello.pid,
        start_ticks=hello.start_ticks,
        epoch=epoch,
        ready=ready,
    )


def _refuse(order: Misbehave) -> None:
    sys.stderr.write(f"atoll: {order.harm} was asked for, and this run's spec does not say chaos=True\n")


def _end_process() -> None:
    text = f"atoll: neither the agent nor a peer was heard for {LIFELINE_S:.0f} s; this trainer ends itself\n"
    os.write(2, text.encode())
    os._exit(LIFELINE_EXIT)
