"""The engine's thread, and the requests that wait on it.

One thread owns the engine; requests come in through a queue and their outputs go out to the event loop of whoever asked.
Whatever happens, each request ends: a step that raises ends all requests in the engine with an error, as it is unknown
which were computed; then one token for nobody shows whether the engine still works. If it does, the thread goes on. If
not, the thread is over, `failure` says why, and so does the error of every request that comes later.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.errors import AtollError, ClusterError, InternalError, ProgramFailed
from atoll.workers.engine import Engine, Output, Request, Sampling

# How long the idle thread sleeps before it looks whether it should end.
_IDLE_S = 0.2
_WARM = "warm"


def warm(engine: Engine) -> None:
    """One token for nobody: pays for first-time work, and raises what the model raises."""
    engine.add(Request(id=_WARM, prompt=(0,), sampling=Sampling(max_tokens=1, temperature=0)))
    while engine.busy:
        for output in engine.step():
            if output.error is not None:
                raise output.error


@dataclass(slots=True)
class _Client:
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Output | AtollError] = field(default_factory=asyncio.Queue)


class EngineThread:
    """Runs `engine` until `close`, or until it cannot be used any more."""

    def __init__(self, engine: Engine) -> None:
        self.context, self.vocab = engine.context, engine.vocab
        self.failure: AtollError | None = None
        self._engine = engine
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._clients: dict[str, _Client] = {}
        self._closing = threading.Event()
        self._over = False
        # Held while a call is queued and while the thread ends, so that no call is queued that nobody will make.
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="atoll-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> asyncio.Queue[Output | AtollError]:
        """Queue a request, on an event loop. Its outputs come as they are made; an error ends them."""
        client = _Client(asyncio.get_running_loop())
        if not self._ask(lambda: self._add(request, client)):
            client.outputs.put_nowait(self._refusal())
        return client.outputs

    def abort(self, request: str) -> None:
        """Nobody reads this request's outputs any more."""
        self._ask(lambda: self._forget(request))

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread. Requests still in the engine end with an error."""
        self._closing.set()
        self._ask(lambda: None)
        self._thread.join(timeout_s)

    def _ask(self, call: Callable[[], None]) -> bool:
        with self._ending:
            if not self._over:
                self._asked.put(call)
            return not self._over

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._take_asked(wait=not self._engine.busy)
                if self._engine.busy:
                    self._step()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            traceback.print_exception(error)
            self.failure = ProgramFailed(f"the engine can go on no more: {_said(error)}; the replica ends")
        finally:
            self._end()

    def _take_asked(self, *, wait: bool) -> None:
        try:
            self._asked.get(timeout=_IDLE_S)() if wait else self._asked.get_nowait()()
            while True:
                self._asked.get_nowait()()
        except queue.Empty:
            return

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception as error:  # noqa: BLE001 - a model is anyone's code
            traceback.print_exception(error)
            self._start_over(f"a step of the model failed: {_said(error)}; this request is lost, ask again")
            return
        for output in outputs:
            self._give(output.request, output.error or output)

    def _start_over(self, problem: str) -> None:
        for name in list(self._clients):
            self._engine.abort(name)
            self._give(name, ProgramFailed(problem))
        warm(self._engine)

    def _add(self, request: Request, client: _Client) -> None:
        try:
            self._engine.add(request)
        except AtollError as error:
            _tell(client, error)
        except Exception as error:  # noqa: BLE001 - one request's fault must not end the others
            traceback.print_exception(error)
            _tell(client, InternalError(f"the engine did not take the request: {_said(error)}"))
        else:
            self._clients[request.id] = client

    def _forget(self, request: str) -> None:
        if self._clients.pop(request, None) is not None:
            self._engine.abort(request)

    def _give(self, request: str, output: Output | AtollError) -> None:
        client = self._clients.get(request)
        if client is None:
            return
        last = isinstance(output, AtollError) or output.finish is not None
        if not _tell(client, output) or last:
            self._forget(request)

    def _end(self) -> None:
        with self._ending:
            self._over = True
        while not self._asked.empty():
            self._asked.get_nowait()()
        for client in self._clients.values():
            _tell(client, self._refusal())
        self._clients.clear()

    def _refusal(self) -> AtollError:
        return ClusterError(f"{self.failure or 'the replica is stopping'}; ask again, another replica may answer")


def _tell(client: _Client, output: Output | AtollError) -> bool:
    """False where the client's event loop is over, and the client with it."""
    try:
        client.loop.call_soon_threadsafe(client.outputs.put_nowait, output)
    except RuntimeError:
        return False
    return True


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
