"""What `Client` and `AsyncClient` promise, held on both against the real application on a real socket."""

import asyncio
import contextlib
import dataclasses
import re
import threading

import httpx
import pytest
import uvicorn
from starlette.responses import StreamingResponse

from atoll import _client_calls as calls
from atoll import _client_http as wire
from atoll.client import AsyncClient, Client, LogPiece
from atoll.control_plane.rest_auth import Guard
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader
from atoll.control_plane.rest_server import application
from atoll.control_plane.rest_source import ClusterSource
from atoll.control_plane.web_server import bind
from atoll.errors import AuthError, ConnectError, ForbiddenError, NotFoundError, PeerLost, SpecError
from atoll.schema.codec import from_plain
from atoll.schema.harm import Harm, HarmWish
from atoll.schema.people import Role, UserWish
from atoll.schema.spec import JobSpec
from atoll.schema.views import EventView, MetricPoint, NodeView, RunState, RunView, unknown_topology

TOKEN = "contract-token"
SPEC = JobSpec(name="tiny", working_dir="/work", file="train.py", workers=2)


class Server:
    """The application behind uvicorn in a thread."""

    def __init__(self):
        self.reader = MemoryReader()
        self.control = MemoryControl(self.reader)
        app = application(ClusterSource(self.reader, self.control))
        self.broken_off = False
        self._add_model(app)
        self.app = Guard(app, token=TOKEN, hosts=frozenset({"127.0.0.1"}))
        self.port = 0
        self.start()

    def _add_model(self, app):
        @app.get("/v1/models")
        async def models():
            return {"data": [{"id": "tiny"}]}

        @app.post("/v1/completions")
        async def completions(body: dict):
            if not body["stream"]:
                return {"choices": [{"text": "self):"}]}
            lines = [f'data: {{"choices": [{{"text": "{t}"}}]}}\n\n' for t in ("se", "lf", "):")]
            return StreamingResponse([*lines, *([] if self.broken_off else ["data: [DONE]\n\n"])])

    def start(self):
        listener = bind("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        options = uvicorn.Config(self.app, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(options)
        self._listener = listener
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="atoll-test-web", daemon=True)
        self._thread.start()

    def stop(self):
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


class Sync:
    """The sync client, called as the tests do."""

    kind = "sync"

    def __init__(self, url, token=TOKEN, **rest):
        self._client = Client(url, token, sleep=lambda _: None, **rest)

    def __getattr__(self, name):
        return getattr(self._client, name)

    def items(self, name, *args, **rest):
        return list(getattr(self._client, name)(*args, **rest))

    def stream(self, prompt):
        return list(self._client.complete(prompt, stream=True))


class Async:
    """The async client, each call in an event loop of its own test."""

    kind = "async"

    def __init__(self, url, token=TOKEN, **rest):
        async def sleep(_):
            await asyncio.sleep(0)

        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, token, sleep=sleep, **rest)

    def __getattr__(self, name):
        return lambda *args, **rest: self._runner.run(getattr(self._client, name)(*args, **rest))

    def items(self, name, *args, **rest):
        async def collect():
            return [item async for item in getattr(self._client, name)(*args, **rest)]

        return self._runner.run(collect())

    def stream(self, prompt):
        return self.items("stream", prompt)

    def close(self):
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def connect(request, server):
    with contextlib.ExitStack() as stack:

        def make(token=TOKEN, **rest):
            made = request.param(server.url, token, **rest)
            stack.callback(made.close)
            return made

        yield make


def test_submitted_job_is_listed_and_shown_with_its_spec(server, connect):
    client = connect()
    run = client.submit(SPEC)
    assert client.run(run).spec == dataclasses.replace(SPEC, run_id=run)
    assert [view.run for view in client.runs()] == [run]


def test_job_file_is_submitted_as_its_spec_and_its_faults_are_told_with_lines(server, connect, tmp_path):
    (tmp_path / "train.py").touch()
    job = tmp_path / "tiny.toml"
    job.write_text('file = "train.py"\nworkers = "2..4"\n')
    client = connect()
    spec = client.run(client.submit(job)).spec
    assert (spec.name, spec.workers, spec.min_workers, spec.working_dir) == ("tiny", 4, 2, str(tmp_path))
    job.write_text('file = "train.py"\nwrokers = 2\n')
    with pytest.raises(SpecError, match=r"tiny.toml:2: wrokers = 2: no such key; the nearest valid key is 'workers'"):
        client.submit(str(job))


def test_submission_whose_answer_was_lost_is_sent_again_and_is_one_job(server, connect, monkeypatch):
    read, lost = wire.read_answer, []

    def loses_the_first(call, response, url):
        if call.method == "POST" and not lost:
            lost.append(response.status_code)
            raise httpx.ReadError("the connection broke")
        return read(call, response, url)

    monkeypatch.setattr(wire, "read_answer", loses_the_first)
    client = connect()
    run = client.submit(SPEC)
    assert lost == [201]
    assert [view.run for view in client.runs()] == [run]


def test_long_lists_come_page_by_page_and_whole(server, connect, monkeypatch):
    client = connect()
    runs = [client.submit(dataclasses.replace(SPEC, run_id=f"r{n}")) for n in range(5)]
    for step in range(1, 6):
        server.reader.tell(runs[0], runs[0], "note", str(step))
        server.reader.commit(runs[0], step)
    monkeypatch.setattr(calls, "PAGE", 2)
    monkeypatch.setattr(calls, "RUNS_PAGE", 2)
    assert sorted(view.run for view in client.runs()) == runs
    assert [event.text for event in client.events(runs[0])] == ["1", "2", "3", "4", "5"]
    assert [point.step for point in client.metrics(runs[0], 1)] == [2, 3, 4, 5]


def test_log_that_its_node_took_along_is_read_from_what_was_kept(server, connect):
    client = connect()
    run = client.submit(SPEC)
    trainer = server.reader.views[run].trainers[0].trainer
    server.control.logs.pop(trainer, None)
    with pytest.raises(NotFoundError):
        client.log(run, trainer)
    server.reader.kept_logs[trainer] = b"kept\n"
    assert client.log(run, trainer).text == "kept\n"
    assert [piece.text for piece in client.items("logs", run)] == ["kept\n"]  # of the other one there is none
    with pytest.raises(NotFoundError):
        client.items("logs", run, server.reader.views[run].trainers[1].trainer)


def test_refusal_is_raised_as_the_error_it_was(server, connect):
    client = connect()
    with pytest.raises(NotFoundError, match="no run 'nope'"):
        client.run("nope")
    with pytest.raises(NotFoundError, match=r"no run '\.\./etc'"):
        client.run("../etc")
    with pytest.raises(SpecError, match="workers=0"):
        client.submit(JobSpec(name="tiny", working_dir="/", file="a.py", workers=0))


def test_wrong_token_is_an_auth_error_that_names_the_file(server, connect):
    with pytest.raises(AuthError, match="token"):
        connect(token="wrong").runs()


def test_server_that_is_not_there_is_named_after_patience_is_over(server, connect):
    client = connect(patience_s=0.3)
    server.stop()
    with pytest.raises(ConnectError, match=re.escape(server.url)):
        client.runs()
    with pytest.raises(ConnectError, match="atoll up"):
        client.submit(SPEC)
    server.start()
    assert client.runs() == []


def test_stop_and_beat_reach_the_control_plane(server, connect):
    client = connect()
    run = client.submit(SPEC)
    client.beat(run)
    client.stop(run, "enough")
    assert server.control.asked[1:] == [
        ("driver_beat", {"run": run}),
        ("stop", {"run": run, "reason": "enough"}),
    ]


def test_control_plane_that_is_away_is_a_connect_error_after_patience(server, connect):
    client = connect(patience_s=0.3)
    server.control.away = True
    with pytest.raises(ConnectError, match="being restarted"):
        client.submit(SPEC)


def test_control_plane_that_comes_back_in_time_is_not_noticed(server, connect, monkeypatch):
    client, tries = connect(), []
    invoke = server.control.invoke

    async def away_at_first(method, body):
        tries.append(method)
        server.control.away = len(tries) < 4
        return await invoke(method, body)

    monkeypatch.setattr(server.control, "invoke", away_at_first)
    assert client.submit(SPEC) in server.reader.views
    assert tries == ["submit"] * 4


def test_followed_run_gives_events_steps_and_its_end_in_order(server, connect):
    client = connect()
    run = client.submit(SPEC)
    server.reader.tell(run, run, "epoch", "epoch 1")
    for step in (1, 2, 3):
        server.reader.commit(run, step, loss=1.0 / step)
    server.reader.become(run, state=RunState.SUCCEEDED, exit_code=0)
    items = client.items("follow", run)
    assert [type(item) for item in items] == [EventView, MetricPoint, MetricPoint, MetricPoint, RunView]
    assert items[-1].state is RunState.SUCCEEDED
    assert [type(i) for i in client.items("follow", run, after=1, after_step=2)] == [MetricPoint, RunView]


def test_followed_run_survives_a_restart_of_the_server_without_loss_or_repetition(server, connect):
    client, gaps = connect(patience_s=20), []
    run = client.submit(SPEC)
    server.reader.commit(run, 1, loss=1.0)

    def restart(problem):
        gaps.append(problem)
        if len(gaps) == 1:
            stopper.join(10)
            server.reader.commit(run, 2, loss=0.5)
            server.reader.become(run, state=RunState.SUCCEEDED)
            server.start()

    stopper = threading.Timer(0.4, server.stop)
    stopper.start()
    items = client.items("follow", run, on_gap=restart)
    assert [item.step for item in items if isinstance(item, MetricPoint)] == [1, 2]
    assert gaps


def test_logs_of_all_trainers_are_read_to_their_end(server, connect):
    client = connect()
    run = client.submit(SPEC)
    server.control.logs = {f"{run}-t0": b"zero\n", f"{run}-t1": b""}
    zero = LogPiece(trainer=f"{run}-t0", text="zero\n", offset=0, next_offset=5)
    assert client.items("logs", run) == [zero]
    assert client.items("logs", run, f"{run}-t0")[0].text == "zero\n"
    with pytest.raises(NotFoundError, match="has no trainer 'mars'"):
        client.items("logs", run, "mars")


def test_followed_logs_end_with_the_run_and_lose_nothing_at_a_restart_of_the_server(server, connect):
    client, gaps = connect(patience_s=20), []
    run = client.submit(SPEC)
    server.control.logs = {f"{run}-t0": b"zero\n", f"{run}-t1": b"one\n"}

    def restart(problem):
        gaps.append(problem)
        if len(gaps) == 1:
            stopper.join(10)
            server.control.logs[f"{run}-t0"] += b"two\n"
            server.reader.become(run, state=RunState.SUCCEEDED)
            server.start()

    stopper = threading.Timer(0.4, server.stop)
    stopper.start()
    pieces = client.items("logs", run, follow=True, on_gap=restart)
    assert "".join(p.text for p in pieces if p.trainer == f"{run}-t0") == "zero\ntwo\n"
    assert [p.text for p in pieces if p.trainer == f"{run}-t1"] == ["one\n"]
    assert gaps


def test_followed_log_of_one_trainer_is_that_of_no_other(server, connect):
    client = connect()
    run = client.submit(SPEC)
    server.control.logs = {f"{run}-t0": b"zero\n", f"{run}-t1": b"one\n"}
    server.reader.become(run, state=RunState.SUCCEEDED)
    assert [p.text for p in client.items("logs", run, f"{run}-t1", follow=True)] == ["one\n"]


def test_users_are_added_rotated_and_revoked_and_the_audit_log_tells_of_it(server, connect):
    client = connect()
    assert (client.me().user, client.me().role) == ("admin", Role.ADMIN)
    assert client.set_team("research", ["a", "b"]).queues == ("a", "b")
    given = client.add_user(UserWish(name="ann", team="research"))
    ann = connect(token=given.token)
    assert (ann.me().team, ann.me().queues) == ("research", ("a", "b"))
    with pytest.raises(ForbiddenError, match="needs the role admin"):
        ann.users()
    with pytest.raises(ForbiddenError, match="may submit to: a, b"):
        ann.submit(SPEC)
    again = client.rotate_token("ann")
    with pytest.raises(AuthError, match="was revoked"):
        ann.me()
    assert connect(token=again.token).me().user == "ann"
    assert [u.name for u in client.revoke("ann")] == ["admin"]
    assert [t.team for t in client.teams()] == ["research"]
    done = [line.path for line in client.audit(limit=4) if line.status < 400]
    assert done == ["/api/users/ann/revoke", "/api/users/ann/rotate"]
    assert [line.status for line in client.audit(user="ann")][-2:] == [403, 403]


def test_events_metrics_checkpoints_nodes_story_doctor_and_version_are_typed(server, connect):
    client = connect()
    run = client.submit(SPEC)
    server.reader.tell(run, "worker-7", "lost", "gone")
    server.reader.commit(run, 1, loss=2.0)
    assert client.events(run)[0].kind == "lost"
    assert client.metrics(run)[0].metrics == {"loss": 2.0}
    assert (client.checkpoints(run), client.nodes()) == ([], [])
    assert client.story("worker-7")[0].text == "gone"
    assert client.doctor()[0].ok
    assert client.topology() == unknown_topology()
    server.reader.network = dataclasses.replace(unknown_topology(), version=3, at=5.0)
    assert client.topology() == server.reader.network
    assert client.version().protocol >= 1


def test_node_is_drained_and_taken_back(server, connect):
    client = connect()
    server.reader.hosts = [
        NodeView(node="node-1", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=2.0, agent=True)
    ]
    assert client.drain("node-1", 45.0) == 45.0
    assert client.nodes()[0].drain.left
    client.undrain("node-1")
    assert client.nodes()[0].drain is None
    for name in ("nope", "no such/node"):
        with pytest.raises(NotFoundError, match="no node"):
            client.drain(name)


def test_trainer_is_hurt_where_it_was_asked_for(server, connect):
    client = connect()
    run = client.submit(SPEC)
    wish = HarmWish(trainer=f"{run}-t0", harm=Harm.STOP, for_s=3.0)
    assert client.harm(run, wish) == 5.0
    method, body = server.control.asked[-1]
    assert (method, body["run"], from_plain(HarmWish, body["wish"])) == ("harm", run, wish)


def test_completion_comes_whole_or_in_pieces_from_the_only_model(server, connect):
    client = connect()
    assert client.complete("def __init__(") == "self):"
    assert client.stream("def __init__(") == ["se", "lf", "):"]


def test_completion_that_breaks_off_is_an_error_and_not_a_short_answer(server, connect):
    server.broken_off = True
    with pytest.raises(PeerLost, match="broke off"):
        connect().stream("def __init__(")
