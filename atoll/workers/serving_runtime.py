"""The engine's thread, and the requests that wait on it.

One thread owns the engine; requests come in through a queue and their outputs go out to the event loop of whoever asked.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.errors import AtollError
from atoll.workers.engine import Engine, Output, Request

# How long the idle thread sleeps before it looks whether it should end.
_IDLE_S = 0.2


@dataclass(slots=True)
class _Client:
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Output | AtollError] = field(default_factory=asyncio.Queue)


class EngineThread:
    """Runs `engine` until `close`."""

    def __init__(self, engine: Engine) -> None:
        self.context = engine.context
        self._engine = engine
        self._asked: queue.Queue[Callable[[], None]] = queue.Queue()
        self._clients: dict[str, _Client] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atoll-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> asyncio.Queue[Output | AtollError]:
        """Queue a request, on an event loop. Its outputs come as they are made; an error ends them."""
        client = _Client(asyncio.get_running_loop())

        def add() -> None:
            self._clients[request.id] = client
            try:
                self._engine.add(request)
            except AtollError as error:
                self._give(request.id, error)

        self._asked.put(add)
        return client.outputs

    def abort(self, request: str) -> None:
        """Nobody reads this request's outputs any more."""

        def end() -> None:
            self._engine.abort(request)
            self._clients.pop(request, None)

        self._asked.put(end)

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._take_asked(wait=not self._engine.busy)
            for output in self._engine.step():
                self._give(output.request, output)

    def _take_asked(self, *, wait: bool) -> None:
        try:
            self._asked.get(timeout=_IDLE_S)() if wait else self._asked.get_nowait()()
            while True:
                self._asked.get_nowait()()
        except queue.Empty:
            return

    def _give(self, request: str, output: Output | AtollError) -> None:
        client = self._clients.get(request)
        if client is None:
            return
        if isinstance(output, AtollError) or output.finish is not None:
            self._clients.pop(request)
        client.loop.call_soon_threadsafe(client.outputs.put_nowait, output)
