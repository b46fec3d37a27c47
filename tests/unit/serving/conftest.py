"""Engines and tokenizers of the serving tests, and a thread's leftovers."""

from __future__ import annotations

import threading

import pytest

from atoll.workers.engine import Finish, Output
from atoll.workers.engine_core import Scheduler
from atoll.workers.tokenizer_runtime import BytesTokenizer


class ScriptedEngine:
    """Emits the bytes of `says` over and over, one a step; `hold` keeps steps from ending, `fail` makes them raise."""

    def __init__(self, says=b"abcdefgh", *, slots=4, context=64, vocab=256):
        self.context, self.vocab = context, vocab
        self.says = says
        self.scheduler = Scheduler(slots=slots, context=context, budget=max(8, slots), vocab=vocab)
        self.fail: list[BaseException] = []
        self.broken: BaseException | None = None
        self.bad: dict[str, Exception] = {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.stepping = threading.Event()
        self.aborted: list[str] = []

    @property
    def busy(self):
        return self.scheduler.busy

    def add(self, request):
        if request.prompt == (255,):
            raise ValueError("a fault of the engine's own")
        self.scheduler.add(request)

    def abort(self, request):
        self.aborted.append(request)
        gone = self.scheduler.abort(request)
        return [Output(request=request, token=None, finish=Finish.ABORT)] if gone else []

    def step(self):
        self.stepping.set()
        assert self.go_on.wait(10)
        if self.broken or self.fail:
            raise self.broken or self.fail.pop(0)
        batch, outputs = self.scheduler.plan(), []
        self.scheduler.computed((*batch.decode, *batch.prefill))
        for chunk in (*batch.decode, *batch.prefill):
            if chunk.request in self.bad:
                self.scheduler.abort(chunk.request)
                error = self.bad[chunk.request]
                outputs.append(Output(request=chunk.request, token=None, finish=Finish.ABORT, error=error))
            elif chunk.last:
                outputs.append(self._emit(chunk.request))
        return outputs

    def _emit(self, request):
        wanted, place = self.scheduler.sampling_of(request)
        token = self.says[(place - len(wanted.prompt)) % len(self.says)]
        return Output(request=request, token=token, finish=self.scheduler.emit(request, token))


@pytest.fixture
def scripted():
    return ScriptedEngine


@pytest.fixture
def engine_thread():
    """Starts engine threads; none may be left."""
    from atoll.workers.serving_runtime import EngineThread

    started = []

    def start(engine):
        started.append((engine, EngineThread(engine)))
        return started[-1][1]

    yield start
    for engine, thread in started:
        engine.go_on.set()
        thread.close()
    assert "atoll-engine" not in {t.name for t in threading.enumerate()}


@pytest.fixture
def replica(scripted, engine_thread):
    """Makes (engine, replica, application) with the secret `s3cret`."""
    from atoll.workers.replica_server import Replica, application

    def make(says=b"abcdefgh", **options):
        engine = scripted(says, **options)
        made = Replica(engine_thread(engine), BytesTokenizer(), "tiny", "s3cret")
        return engine, made, application(made)

    return make
