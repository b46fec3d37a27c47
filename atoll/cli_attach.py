"""Attached to a run: shows what happens, tells the control plane that the driver lives, and ends with the run's result.

Ctrl-C asks the run to stop at its next step boundary and goes on watching; a second one leaves at once. SIGTERM (Ray
allows a stopped driver 3 s) asks the same and leaves. A web process or control plane that is away for a while is no
reason to leave: training goes on meanwhile, and the stream is taken up where it broke.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Never

from atoll.client import Client, LogPiece
from atoll.config import Target
from atoll.errors import AtollError
from atoll.schema.spec import JobKind
from atoll.schema.views import RunState, RunView

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.cli_progress import Display

# The control plane stops an attached run after 30 s without a beat: five may be lost.
BEAT_S = 5.0
# A head that reboots is back within minutes; longer is an outage that a person should hear of.
OUTAGE_S = 300.0
# Within Ray's 3 s between SIGTERM and SIGKILL.
_LAST_WORD_S = 1.0
# What trainers wrote last is a few pieces of 64 KiB, asked for half a second after the end at most.
_LAST_LOGS_S = 15.0
_LOG_TAIL = 32 * 1024
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """SIGTERM came."""

    def __init__(self) -> None:
        super().__init__(_TERMINATED)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` inside the block, so that whoever holds something can let go of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signal: int, _frame: FrameType | None) -> Never:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put SIGINT and SIGTERM off for a block that cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def attach(target: Target, run: str, console: Console, *, with_logs: bool = False) -> int:
    """Watch `run` to its end; `with_logs`, also print what its trainers write. Returns the exit code of its result."""
    from atoll.cli_progress import Display  # noqa: PLC0415 - rich comes with it

    with (
        Client(target.url, target.token, patience_s=OUTAGE_S) as watching,
        Client(target.url, target.token) as asking,
        beating(target, run),
        following(target, run) if with_logs else contextlib.nullcontext(),
    ):
        with Display(console, run, f"{target.url}/runs/{run}") as display:
            view, interrupted = _watch(watching, asking, run, display)
        if view is None:
            return _INTERRUPTED
        _conclude(asking, view, console)
        return _INTERRUPTED if interrupted and view.state is RunState.STOPPED else exit_code(view)


def exit_code(view: RunView) -> int:
    """The run's own exit code, or what its final state means."""
    if view.exit_code is not None:
        return view.exit_code
    return 0 if view.state is RunState.SUCCEEDED else 1


def _watch(watching: Client, asking: Client, run: str, display: Display) -> tuple[RunView | None, bool]:
    asked = False
    while True:
        try:
            _show_all(watching, run, display)
        except KeyboardInterrupt:
            if asked:
                return None, True
            asked = True
            display.note("stopping at the next step boundary; Ctrl-C again leaves without waiting", style="bold")
            with contextlib.suppress(AtollError):
                asking.stop(run, "Ctrl-C in the attached terminal")
        except Terminated:
            _ask_quickly(asking, run)
            raise
        else:
            return display.progress.view, asked


def _show_all(client: Client, run: str, display: Display) -> None:
    progress, lost = display.progress, False

    def gap(problem: str) -> None:
        nonlocal lost
        if not lost:
            display.note(f"no connection ({problem}); the run goes on, trying again", style="yellow")
        lost = True

    for item in client.follow(run, after=progress.after, after_step=progress.after_step, on_gap=gap):
        if lost:
            display.note("connected again", style="yellow")
            lost = False
        display.show(item)


def _ask_quickly(client: Client, run: str) -> None:
    with (
        contextlib.suppress(AtollError),
        Client(client.url, client.token, patience_s=0, answer_s=_LAST_WORD_S) as quick,
    ):
        quick.stop(run, "SIGTERM to the attached driver")


def _conclude(client: Client, view: RunView, console: Console) -> None:
    if view.state is not RunState.FAILED:
        reason = f": {view.reason}" if view.reason else ""
        console.print(f"run {view.run} {view.state}{reason}", markup=False, highlight=False, soft_wrap=True)
        if unsaved := _unsaved(view):
            console.print(unsaved, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
        return
    traceback = _traceback(client, view)
    if traceback:
        console.print(traceback, markup=False, highlight=False, soft_wrap=True)
    text = f"atoll: run {view.run} failed: {view.reason}; see `atoll logs {view.run}`"
    console.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _unsaved(view: RunView) -> str:
    saved = view.checkpoint.step if view.checkpoint else 0
    if view.kind is not JobKind.TRAIN or view.spec is None or not view.spec.checkpoint_every or saved >= view.step:
        return ""
    kept = f"the last durable checkpoint is of step {saved}" if saved else "no checkpoint is durable"
    return f"{kept}: what was trained after it is lost; `atoll story {view.run}` says why"


def _traceback(client: Client, view: RunView) -> str:
    """The user's traceback out of the log of the trainer that failed first, or ''."""
    try:
        failed = [e.subject for e in client.events(view.run) if e.kind == "failed"]
        return last_traceback(client.log(view.run, failed[0], -_LOG_TAIL, _LOG_TAIL).text) if failed else ""
    except AtollError:
        return ""


def last_traceback(log: str) -> str:
    """The last traceback in `log`, up to the line that names the exception."""
    _, mark, rest = log.rpartition("Traceback (most recent call last):")
    if not mark:
        return ""
    lines = rest.splitlines()
    end = next((i for i, line in enumerate(lines[1:], 1) if line and not line[0].isspace()), len(lines) - 1)
    return mark + "\n".join(lines[: end + 1])


@contextlib.contextmanager
def beating(target: Target, run: str) -> Iterator[None]:
    """Tell the control plane every few seconds that the driver lives."""
    over = threading.Event()

    def loop() -> None:
        with Client(target.url, target.token, patience_s=0, answer_s=BEAT_S) as client:
            while not over.is_set():
                with contextlib.suppress(AtollError):
                    client.beat(run)
                over.wait(BEAT_S)

    thread = threading.Thread(target=loop, name="atoll-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * BEAT_S)


@contextlib.contextmanager
def following(target: Target, run: str) -> Iterator[None]:
    """Print the lines that the run's trainers write, each with its trainer, until the run has ended or the block does.

    Where the block ends with the run, what was written last is waited for.
    """
    left = threading.Event()

    def loop() -> None:
        lines = LogLines(run)
        with contextlib.suppress(AtollError), Client(target.url, target.token, patience_s=OUTAGE_S) as client:
            for piece in client.logs(run, follow=True):
                sys.stdout.writelines(lines.take(piece))
                sys.stdout.flush()
                if left.is_set():
                    return
            sys.stdout.writelines(lines.rest())
            sys.stdout.flush()

    thread = threading.Thread(target=loop, name="atoll-logs", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        left.set()
        raise
    thread.join(_LAST_LOGS_S)
    left.set()


class LogLines:
    """Pieces of the logs of several trainers as whole lines with the trainer's name before each."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._open: dict[str, str] = {}

    def take(self, piece: LogPiece) -> list[str]:
        """The lines that `piece` completes."""
        *whole, rest = (self._open.get(piece.trainer, "") + piece.text).split("\n")
        self._open[piece.trainer] = rest
        return [self._line(piece.trainer, line) for line in whole]

    def rest(self) -> list[str]:
        """The lines that were never ended."""
        return [self._line(trainer, line) for trainer, line in self._open.items() if line]

    def _line(self, trainer: str, line: str) -> str:
        return f"({trainer.removeprefix(f'{self._run}-')}) {line}\n"
