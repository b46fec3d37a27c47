from __future__ import annotations

import socket
import sys
import threading

import pytest

from atoll.clock import SystemClock
from atoll.errors import ScriptNotFound
from atoll.schema.codec import Registry, encode
from atoll.schema.messages import (
    TRAINER_FACTS,
    EpochJoined,
    Membership,
    StepCommitted,
    StopAtBoundary,
    TrainerFinished,
    TrainerHello,
    TrainerReady,
)
from atoll.schema.spec import JobSpec
from atoll.workers.host import Mailbox
from atoll.workers.program_runtime import failure, load_function
from atoll.workers.trainer_link_runtime import SOCKET, AgentLink, socket_address

HELLO = TrainerHello(trainer="t", run="r", pid=1, start_ticks=2, epoch=0, ready=False)


class FakeAgent:
    """The other end of the socket."""

    def __init__(self, state_dir):
        (state_dir / SOCKET).unlink(missing_ok=True)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(state_dir) as address:
            self.server.bind(address)
        self.server.listen()
        self.server.settimeout(5)
        self.line, self.file = None, None

    def accept(self):
        self.line, _ = self.server.accept()
        self.line.settimeout(5)
        self.file = self.line.makefile("rb")

    def read(self):
        return Registry(TRAINER_FACTS).decode(self.file.readline())

    def hang_up(self):
        self.file.close()
        self.line.close()

    def close(self):
        if self.line:
            self.hang_up()
        self.server.close()


@pytest.fixture(autouse=True)
def forget_program():
    yield
    sys.modules.pop("program_under_test", None)


@pytest.fixture
def state_dir(tmp_path):
    deep = tmp_path / ("d" * 120)  # longer than a socket's path may be
    deep.mkdir()
    return deep


@pytest.fixture
def agent(state_dir):
    agent = FakeAgent(state_dir)
    yield agent
    agent.close()


@pytest.fixture
def mailbox():
    return Mailbox()


@pytest.fixture
def link(state_dir, mailbox):
    link = AgentLink(HELLO, mailbox, state_dir, SystemClock())
    yield link
    link.close()


def test_hello_comes_first_and_facts_follow_in_order(agent, link):
    finished = TrainerFinished(trainer="t", step=1)
    link.tell(TrainerReady(trainer="t", host="h", port=1))
    link.tell(finished)
    link.start()
    agent.accept()
    hello, ready, last = agent.read(), agent.read(), agent.read()
    assert (hello.trainer, hello.ready) == ("t", True)
    assert (type(ready), last) == (TrainerReady, finished)
    assert link.flush(5)
    assert link.outcome == finished


def test_after_a_break_hello_says_the_newest_epoch_and_what_holds_is_said_again(agent, link):
    link.start()
    agent.accept()
    agent.read()
    link.tell(TrainerReady(trainer="t", host="h", port=1))
    link.tell(EpochJoined(trainer="t", epoch=3, step=7))
    assert [type(agent.read()) for _ in range(2)] == [TrainerReady, EpochJoined]
    agent.hang_up()
    agent.accept()
    hello = agent.read()
    assert (hello.epoch, hello.ready) == (3, True)
    assert [type(agent.read()) for _ in range(2)] == [TrainerReady, EpochJoined]


def test_commands_reach_the_mailbox_and_unknown_words_do_not_end_the_line(agent, link, mailbox):
    arrived = threading.Event()
    mailbox.subscribe(lambda _m: arrived.set())
    link.start()
    agent.accept()
    agent.line.sendall(b'\n{"type":"FromTheFuture"}\n')
    agent.line.sendall(encode(StopAtBoundary(reason="x")) + b"\n")
    agent.line.sendall(encode(Membership(run="r", epoch=1, members=())) + b"\n")
    assert arrived.wait(5)
    assert mailbox.stop.reason == "x"


def test_telling_never_waits_for_an_agent_that_is_away(link):
    link.start()
    for step in range(20_000):
        link.tell(StepCommitted(trainer="t", epoch=1, step=step, at=0.0, step_s=0.0, samples=1))
    assert not link.flush(0.01)


def test_telling_never_waits_for_an_agent_that_is_frozen_and_keeps_what_holds(agent, link):
    link.start()
    agent.accept()
    agent.line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    done = threading.Event()

    def train():
        for step in range(20_000):
            link.tell(StepCommitted(trainer="t", epoch=1, step=step, at=0.0, step_s=0.0, samples=1))
        link.tell(EpochJoined(trainer="t", epoch=2, step=20_000))
        done.set()

    threading.Thread(target=train, name="atoll-test-training").start()
    assert done.wait(20), "training waits for an agent that reads nothing"
    assert not link.flush(0.01)
    agent.hang_up()  # as it is ended, and the next one comes
    agent.accept()
    assert agent.read().epoch == 2
    link.tell(TrainerFinished(trainer="t", step=20_000))
    assert any(isinstance(agent.read(), TrainerFinished) for _ in range(20_001))


def test_silence_past_the_lifeline_ends_the_process_unless_a_peer_is_heard(link):
    ended = []
    link.on_lifeline = lambda: ended.append(True)
    now = 0.0
    link._clock = type("Clock", (), {"monotonic": lambda _self: now})()
    for second in range(100):
        now = float(second)
        if second == 50:
            link.heard()
        link._look()
        assert ended == [], second
    for second in range(100, 112):
        now = float(second)
        link._look()
    assert ended


def spec(tmp_path, text):
    (tmp_path / "program_under_test.py").write_text(text)
    return JobSpec(name="j", working_dir=str(tmp_path), file="program_under_test.py")


def test_a_function_is_found_by_its_dotted_name_and_the_file_runs_once(tmp_path):
    job = spec(
        tmp_path,
        "class A:\n    @staticmethod\n    def f(): return 7\nRUNS = []\nRUNS.append(1)\ndef g(): return RUNS\n",
    )
    assert load_function(job, "A.f")() == 7
    assert load_function(job, "g")() == [1]


def test_a_missing_function_is_named_with_those_there_are(tmp_path):
    job = spec(tmp_path, "def first(): pass\ndef second(): pass\n")
    with pytest.raises(ScriptNotFound, match=r"no function 'third'; it defines first, second"):
        load_function(job, "third")


def test_a_failure_shows_the_users_frames_alone(tmp_path):
    job = spec(tmp_path, "def f():\n    raise ValueError('x')\nf()\n")
    with pytest.raises(ValueError, match="x") as caught:
        load_function(job, "f")
    fact = failure(caught.value, job, "t", 0)
    assert (fact.code, fact.problem) == ("program-failed", "ValueError: x")
    assert fact.traceback.count("File ") == fact.traceback.count("program_under_test.py") == 2


def test_a_syntax_error_is_shown_with_its_line(tmp_path):
    job = spec(tmp_path, "def f(:\n")
    with pytest.raises(SyntaxError) as caught:
        load_function(job, "f")
    fact = failure(caught.value, job, "t", 0)
    assert "program_under_test.py" in fact.traceback
    assert "importlib" not in fact.traceback
