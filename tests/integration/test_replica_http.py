"""`serve` as a trainer runs it, from a checkpoint on disk to a socket, with the gateway in front."""

import contextlib
import json
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from atoll.checkpoint.torch_flat import replicated
from atoll.checkpoint.torch_state import flatten
from atoll.checkpoint.writer import Writer
from atoll.control_plane.http_gateway import gateway
from atoll.errors import AtollError, CheckpointError, SpecError
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.messages import ServerReady, StopAtBoundary
from atoll.schema.spec import JobKind, JobSpec
from atoll.workers import replica_server
from atoll.workers.host import Identity, Mailbox
from atoll.workers.replica_server import serve

MODEL = """
import time

import torch
from torch import nn


class Tiny(nn.Module):
    context = 400
    pause = 0.0
    broken = False

    def __init__(self):
        super().__init__()
        self.next = nn.Embedding(256, 256)

    def forward(self, tokens, cache=None):
        time.sleep(Tiny.pause)
        if Tiny.broken:
            raise OSError("device lost")
        q = torch.zeros(tokens.shape[0], 1, tokens.shape[1], 4)
        cache.attend(0, q, q, q)
        return self.next(tokens)


def build():
    return Tiny()


def number():
    return 5
"""
SECRET = b"run secret"


def alphabet(offset=1):
    """Weights with which each byte is followed by the next one of the alphabet."""
    weight = torch.zeros(256, 256)
    weight[torch.arange(256), (torch.arange(256) + offset) % 256] = 20.0
    return {"model": {"next.weight": weight}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    (path / "served_tiny.py").write_text(MODEL)
    told = []
    writer = Writer(path / "checkpoints", run=RunId("r"), trainer=TrainerId("t"), tell=told.append, keep=5)
    for step in (1, 2):
        state, layouts = replicated(flatten(alphabet(step)), 0, ["n"])
        handle = writer.save(state, layouts, step=step, epoch=1, rank=0, weights="model")
        writer.before_update()
        assert handle.ended.wait(20)
    writer.finish(20)
    return path


class Serving:
    """`serve` in a thread, with the host that a trainer's process would have."""

    def __init__(self, folder, resume="checkpoints", **changes):
        spec = JobSpec(
            name="tiny",
            kind=JobKind.SERVE,
            working_dir=str(folder),
            file="served_tiny.py",
            resume=resume and str(folder / resume),
            **{"model": "build", **changes},
        )
        self.identity = Identity(
            run=RunId("run"), trainer=TrainerId("t"), node=NodeId("n"), spec=spec, run_dir=folder, secret=SECRET
        )
        self.mailbox, self.listener = Mailbox(), SimpleNamespace(host="127.0.0.1", port=1)
        self.ready, self.told, self.error = threading.Event(), [], None
        self.thread = threading.Thread(target=self._run, name="atoll-test-serve", daemon=True)

    def tell(self, fact):
        self.told.append(fact)
        self.ready.set()

    def heard(self):
        """No lifeline here."""

    def _run(self):
        try:
            serve(self)
        except AtollError as error:
            self.error = error
        self.ready.set()

    def start(self):
        self.thread.start()
        assert self.ready.wait(20)
        assert self.error is None
        [fact] = self.told
        assert isinstance(fact, ServerReady)
        self.fact = fact
        return self

    def stop(self, timeout=15):
        self.mailbox.put(StopAtBoundary(reason="test"))
        self.join(timeout)

    def join(self, timeout=15):
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the replica does not end"

    def client(self):
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.fact.port}",
            headers={"authorization": f"Bearer {SECRET.hex()}"},
            trust_env=False,
            timeout=20,
        )

    def server(self):
        at = {"host": "127.0.0.1", "port": self.fact.port, "secret": SECRET.hex()}
        return {"run": "run", "trainer": "t", "model": "tiny", "step": 2, **at}


@pytest.fixture
def serving(folder):
    """Starts replicas; all end."""
    import sys

    started = []

    def start(**changes):
        started.append(Serving(folder, **changes).start())
        return started[-1]

    yield start
    tiny = sys.modules["served_tiny"].Tiny
    tiny.pause, tiny.broken = 0.0, False
    for one in started:
        if one.thread.is_alive():
            one.stop()
    assert not [t.name for t in threading.enumerate() if t.name == "atoll-engine"]


@pytest.fixture
def tiny(serving):
    """The served class, whose steps can be made slow or broken."""
    import sys

    return lambda: sys.modules["served_tiny"].Tiny


def greedy(prompt, most, **more):
    return {"prompt": prompt, "max_tokens": most, "temperature": 0, **more}


def events(lines):
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data.pop() == "[DONE]"
    return [json.loads(d) for d in data]


def text_of(made):
    return "".join(e["choices"][0]["text"] for e in made)


def test_newest_checkpoint_is_served_whole_and_streamed(serving):
    replica = serving()
    assert (replica.fact.model, replica.fact.step) == ("tiny", 2)
    with replica.client() as client:
        answer = client.post("/v1/completions", json=greedy("A", 4)).json()
        assert answer["choices"][0]["text"] == "CEGI"
        assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
        with client.stream("POST", "/v1/completions", json=greedy("A", 4, stream=True)) as stream:
            made = events(stream.iter_lines())
        assert text_of(made) == "CEGI"
        assert client.post("/v1/completions", json=greedy([65, 256], 4)).status_code == 400
        assert client.post("/v1/completions", json=greedy("A", 1), headers={"authorization": "no"}).status_code == 401


def test_checkpoint_named_by_its_step_is_served(serving, folder):
    name = next(p.name for p in (folder / "checkpoints").iterdir() if p.name.endswith("1"))
    replica = serving(resume=f"checkpoints/{name}")
    assert replica.fact.step == 1
    with replica.client() as client:
        assert client.post("/v1/completions", json=greedy("A", 3)).json()["choices"][0]["text"] == "BCD"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": None}, SpecError, "model is not set"),
        ({"model": "number"}, SpecError, "returned int"),
        ({"resume": None}, CheckpointError, "resume is not set"),
        ({"resume": "nowhere"}, CheckpointError, "no committed checkpoint"),
        ({"tokenizer": "none.json"}, AtollError, "no file"),
    ],
)
def test_replica_that_cannot_start_says_why(folder, changes, error, said):
    replica = Serving(folder, **changes)
    replica.thread.start()
    replica.join()
    assert isinstance(replica.error, error)
    assert said in str(replica.error)
    assert replica.told == []


def test_stop_lets_requests_in_hand_finish_and_takes_no_new_ones(serving, tiny):
    replica = serving()
    tiny().pause = 0.02
    with replica.client() as client, client.stream("POST", "/v1/completions", json=greedy("A", 40, stream=True)) as s:
        lines = s.iter_lines()
        first = next(lines)
        replica.mailbox.put(StopAtBoundary(reason="test"))
        made = events([first, *lines])
    assert len(made) == 40
    assert made[-1]["choices"][0]["finish_reason"] == "length"
    replica.join()
    assert replica.error is None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", replica.fact.port), timeout=2)


def test_request_in_hand_that_takes_too_long_does_not_hold_the_replica(serving, tiny, monkeypatch, capfd):
    monkeypatch.setattr(replica_server, "_DRAIN_S", 1)
    replica = serving()
    tiny().pause = 0.05
    began = time.monotonic()
    with replica.client() as client, client.stream("POST", "/v1/completions", json=greedy("A", 398, stream=True)) as s:
        lines = s.iter_lines()
        next(lines)
        replica.mailbox.put(StopAtBoundary(reason="test"))
        with contextlib.suppress(httpx.TransportError):
            list(lines)
    replica.join()
    assert replica.error is None
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_gives_its_place_to_others(serving, tiny, stream, eventually):
    """The gone one would take 8 s; the engine is idle long before."""
    replica = serving()
    tiny().pause = 0.02
    body = json.dumps(greedy("A", 398, stream=stream)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET.hex()}\r\n"
    calls = []
    forward = tiny().forward
    tiny().forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    try:
        with socket.create_connection(("127.0.0.1", replica.fact.port), timeout=5) as s:
            s.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            eventually(lambda: len(calls) > 3, 5)

        def idle():
            before = len(calls)
            time.sleep(0.1)
            return len(calls) == before

        eventually(idle, 5)
        assert len(calls) < 200
    finally:
        tiny().forward = forward


def test_engine_that_is_broken_ends_the_replica_with_the_reason(serving, tiny, capfd):
    replica = serving()
    with replica.client() as client:
        tiny().broken = True
        answer = client.post("/v1/completions", json=greedy("A", 4))
    assert answer.status_code == 500
    assert "device lost" in answer.json()["error"]["message"]
    replica.join()
    assert replica.error is not None
    assert "the engine can go on no more: OSError: device lost" in str(replica.error)


class Gateway:
    """The gateway on a socket of its own."""

    def __init__(self, servers):
        async def now():
            return servers

        app = FastAPI()
        app.include_router(gateway(now))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        self.thread = threading.Thread(
            target=self.server.run, args=([self.listener],), name="atoll-test-gateway", daemon=True
        )
        self.thread.start()

    def close(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()


def test_gateway_streams_from_real_replicas_and_passes_over_one_that_ended(serving):
    first, second = serving(), serving()
    front = Gateway([first.server(), second.server()])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{front.port}", trust_env=False, timeout=20) as client:
            for ended in (False, True):
                if ended:
                    first.stop()
                for _ in range(2):
                    body = greedy("A", 3, stream=True, model="tiny", stream_options={"include_usage": True})
                    with client.stream("POST", "/v1/completions", json=body) as stream:
                        *made, last = events(stream.iter_lines())
                    assert text_of(made) == "CEG"
                    assert last["usage"]["completion_tokens"] == 3
                    whole = client.post("/v1/completions", json=greedy(["A", "B"], 2)).json()
                    assert [c["text"] for c in whole["choices"]] == ["CE", "DF"]
    finally:
        front.close()
