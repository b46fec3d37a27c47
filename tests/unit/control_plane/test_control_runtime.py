"""The shell without Ray: real gRPC and SQLite, an agent and a Ray that are played by the test."""

import asyncio
import contextlib
import dataclasses
import sqlite3

import grpc
import pytest
from sqlalchemy.exc import OperationalError

from atoll.clock import SystemClock
from atoll.control_plane import durable_runtime
from atoll.control_plane import events as ev
from atoll.control_plane.control_runtime import ControlConfig, ControlRuntime
from atoll.control_plane.grpc_client import ControlClient
from atoll.control_plane.sql_history import HistoryReader
from atoll.errors import CapacityError, ConnectError, HandshakeError, NotFoundError, SpecError
from atoll.schema import messages as m
from atoll.schema.agent_pb2 import Frame
from atoll.schema.agent_pb2_grpc import ControlPlaneStub
from atoll.schema.codec import Registry, decode_as, encode, to_plain
from atoll.schema.handshake import Challenge, Proof, check, proof
from atoll.schema.spec import JobSpec

SECRET = b"s" * 32
NODE = "node-a"
VERSIONS = m.Versions(atoll="0", protocol=m.PROTOCOL, python="3")
COMMANDS = Registry(m.AGENT_COMMANDS)
SPEC = JobSpec(name="tiny", working_dir="/", file="f.py", workers=1, spares=0, detach=True)


class FakeRay:
    def __init__(self):
        self.seats = []
        self.agents_asked = []
        self.kept = []
        self.down = False

    def listing(self):
        if self.down:
            raise ConnectionError("the controller is dead")
        node = ev.NodeSeen(node=NODE, address="127.0.0.1", alive=True, cpus=2.0, gpus=0.0, local=True)
        return ev.ClusterListed(nodes=(node,), seats=tuple(self.seats))

    def create_seat(self, wanted):
        self.seats.append(wanted.seat)
        return ev.SeatCreated(seat=wanted.seat)

    def kill_seat(self, seat):
        self.seats.remove(seat)

    def keep_package(self, uri, keep_s):
        if self.down:
            raise ConnectionError("the controller is dead")
        self.kept.append((uri, keep_s))

    def start_agent(self, node):
        self.agents_asked.append(node)
        return 1


class FakeAgent:
    def __init__(self, stream, node):
        self.stream = stream
        self.node = node
        self.commands = []
        self.beats = 0

    async def say(self, *facts):
        await self.stream.write(Frame(body=b"\n".join(encode(fact) for fact in facts)))

    async def until(self, kind):
        async with asyncio.timeout(5):
            while True:
                frame = await self.stream.read()
                assert frame is not grpc.aio.EOF
                if not frame.body:
                    self.beats += 1
                    continue
                self.commands.append(COMMANDS.decode(frame.body))
                if isinstance(self.commands[-1], kind):
                    return self.commands[-1]


@contextlib.asynccontextmanager
async def control(tmp_path, ray):
    config = ControlConfig(
        cluster_dir=tmp_path,
        home=tmp_path,
        host="127.0.0.1",
        port=0,
        secret=SECRET,
        pid=1,
        start_ticks=1,
        versions=VERSIONS,
    )
    runtime = ControlRuntime(config, ray, SystemClock())
    ready = asyncio.Event()
    task = asyncio.create_task(runtime.run(ready.set))
    try:
        async with asyncio.timeout(5):
            await ready.wait()
        yield runtime
    finally:
        runtime.close()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def client(runtime, secret=SECRET):
    made = ControlClient(f"127.0.0.1:{runtime.port}", secret, deadline_s=3)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def agent(runtime, *, secret=SECRET, node=NODE, versions=VERSIONS, trainers=()):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{runtime.port}") as channel:
        stream = ControlPlaneStub(channel).Attach(metadata=(("atoll-node", node),))
        challenge = decode_as(Challenge, (await stream.read()).body)
        mac = proof(secret, "agent", bytes.fromhex(challenge.nonce), node.encode())
        await stream.write(Frame(body=encode(Proof(nonce="00", mac=mac.hex()))))
        answer = decode_as(Proof, (await stream.read()).body)
        assert check(SECRET, "control", b"\0", node.encode(), bytes.fromhex(answer.mac))
        hello = m.AgentHello(
            node=node,
            pid=9,
            address="127.0.0.1",
            state_dir="/",
            versions=versions,
            last_incarnation=0,
            trainers=trainers,
        )
        await stream.write(Frame(body=encode(hello)))
        try:
            yield FakeAgent(stream, node)
        finally:
            stream.cancel()


def play(scene):
    async def limited():
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(limited())


def test_run_goes_from_submission_to_its_end(tmp_path):
    async def scene():
        ray = FakeRay()
        async with control(tmp_path, ray) as runtime, client(runtime) as web, agent(runtime) as there:
            assert isinstance(await there.until(m.Adopt), m.Adopt)
            run = (await web.invoke("submit", {"spec": to_plain(SPEC)}))["run"]
            start = await there.until(m.StartTrainer)
            assert ray.seats == [start.seat]
            trainer = start.trainer
            await there.say(m.TrainerStarted(trainer=trainer, run=run, pid=5, start_ticks=6))
            await there.say(m.TrainerSaid(run=run, fact=m.TrainerReady(trainer=trainer, host="h", port=1)))
            told = await there.until(m.TellTrainer)
            assert told.command.epoch == 1
            finished = m.TrainerSaid(run=run, fact=m.TrainerFinished(trainer=trainer, step=3))
            await there.say(finished, m.TrainerExited(trainer=trainer, run=run, pid=5, exit_status=0))  # in one frame
            await there.until(m.ForgetTrainer)
            assert (tmp_path / "runs" / run).is_dir()
        reader = HistoryReader(tmp_path / "history.sqlite")
        assert reader.run(run)["state"] == "succeeded"
        assert [e["kind"] for e in reader.events(run)][-1] == "ended"
        reader.close()
        assert ray.agents_asked == [NODE]

    play(scene)


def test_questions_and_wishes_about_the_queue_are_answered_from_the_cores_state(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime) as web, agent(runtime):
            spec = to_plain(SPEC)
            assert (await web.invoke("plan", {"spec": spec}))["verdict"] == "starts"
            run = (await web.invoke("submit", {"spec": spec}))["run"]
            assert (await web.invoke("why", {"run": run}))["reason"].startswith("placed: as asked")
            with pytest.raises(NotFoundError):
                await web.invoke("why", {"run": "nobody"})
            assert [q["name"] for q in (await web.invoke("top", {}))["queues"]] == ["default"]
            sharing = await web.invoke("queues", {})
            told = {"sharing": {**sharing, "queue": [*sharing["queue"], {"name": "lab"}]}, "by": "me"}
            assert await web.invoke("set_queues", told) == {"queues": ["default", "lab"]}
            assert [q["running"] for q in (await web.invoke("top", {}))["queues"]] == [1, 0]
            with pytest.raises(SpecError, match="workers=7: run"):
                await web.invoke("resize", {"run": run, "workers": 7})
            assert (await web.invoke("suspend", {"run": run}))["state"] == "stopping"
            assert (await web.invoke("resume", {"run": run}))["run"] == run

    play(scene)


def test_packed_directory_of_a_job_is_kept_before_its_driver_hears_that_it_may_leave(tmp_path):
    async def scene():
        ray = FakeRay()
        async with control(tmp_path, ray) as runtime, client(runtime) as web:
            packed = dataclasses.replace(SPEC, working_dir_uri="gcs://_ray_pkg_1.zip")
            await web.invoke("submit", {"spec": to_plain(packed)})
            assert ray.kept == [("gcs://_ray_pkg_1.zip", 3 * durable_runtime.PACKAGES_EVERY_S)]
            ray.down = True  # which keeps nobody from submitting
            await web.invoke("submit", {"spec": to_plain(packed)})

    play(scene)


def test_logs_outlive_the_agent_that_they_were_read_from(tmp_path, monkeypatch):
    monkeypatch.setattr(durable_runtime, "KEEP_EVERY_S", 0.02)

    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime) as web:
            async with agent(runtime) as there:
                run = (await web.invoke("submit", {"spec": to_plain(SPEC)}))["run"]
                start = await there.until(m.StartTrainer)
                await there.say(m.TrainerStarted(trainer=start.trainer, run=run, pid=5, start_ticks=6))
                asked = await there.until(m.ReadLog)
                await there.say(m.LogChunk(request=asked.request, text="hello\n", next_offset=6))
                assert (await there.until(m.ReadLog)).offset == 6
            while runtime._core.desk.nodes[NODE].attached:  # noqa: ASYNC110 - nobody is told of it
                await asyncio.sleep(0)
            with pytest.raises(ConnectError, match="no agent of node-a is attached"):
                await web.invoke("read_log", {"run": run, "trainer": start.trainer})
        reader = HistoryReader(tmp_path / "history.sqlite")
        assert reader.log(run, start.trainer, 0, 99).text == "hello\n"
        reader.close()

    play(scene)


def test_next_incarnation_adopts_what_the_agent_holds(tmp_path):
    async def scene():
        ray = FakeRay()
        async with control(tmp_path, ray) as runtime, client(runtime) as web, agent(runtime) as there:
            run = (await web.invoke("submit", {"spec": to_plain(SPEC)}))["run"]
            start = await there.until(m.StartTrainer)
        found = m.FoundTrainer(
            trainer=start.trainer,
            run=run,
            seat=start.seat,
            pid=5,
            start_ticks=6,
            epoch=0,
            ready=True,
            host="h",
            port=1,
        )
        async with control(tmp_path, ray) as runtime, agent(runtime, trainers=(found,)) as there:
            adopt = await there.until(m.Adopt)
            assert (adopt.incarnation, adopt.keep) == (2, (start.trainer,))
            assert (await there.until(m.TellTrainer)).command.epoch == 1
            assert not [c for c in there.commands if isinstance(c, m.StartTrainer)]

    play(scene)


def test_full_journal_ends_the_incarnation_untold_and_the_next_one_goes_on_from_what_the_agent_says(tmp_path):
    async def scene():
        ray = FakeRay()
        async with control(tmp_path, ray) as runtime, client(runtime) as web, agent(runtime) as there:
            run = (await web.invoke("submit", {"spec": to_plain(SPEC)}))["run"]
            start = await there.until(m.StartTrainer)
            trainer = start.trainer
            journal = runtime._journal
            journal._write, journal._reserve = disk_full, tmp_path / "no reserve"
            # Membership is durable before anyone is told (law 8): here it cannot be, so nobody is told.
            await there.say(m.TrainerSaid(run=run, fact=m.TrainerReady(trainer=trainer, host="h", port=1)))
            async with asyncio.timeout(5):
                await runtime._closing.wait()
            assert "disk is full" in str(runtime._failure)
            assert not [c for c in there.commands if isinstance(c, m.TellTrainer | m.FenceTrainer)]
        found = m.FoundTrainer(
            trainer=trainer,
            run=run,
            seat=start.seat,
            pid=5,
            start_ticks=6,
            epoch=0,
            ready=True,
            host="h",
            port=1,
        )
        async with control(tmp_path, ray) as runtime, agent(runtime, trainers=(found,)) as there:
            assert (await there.until(m.Adopt)).keep == (trainer,)
            assert (await there.until(m.TellTrainer)).command.epoch == 1

    play(scene)


def disk_full(_records):
    raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))


def test_agent_that_was_hung_up_on_may_come_again(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime) as web:
            async with agent(runtime) as there:
                await there.until(m.Adopt)
                runtime._port.hang_up(NODE)
                with pytest.raises(grpc.aio.AioRpcError):
                    await there.until(m.LeaveNode)
                assert (await web.invoke("status", {}))["agents"] == {}
            async with agent(runtime) as again:
                await again.until(m.Adopt)
                assert (await web.invoke("status", {}))["agents"] == {NODE: 9}

    play(scene)


def test_dead_ray_disturbs_neither_agents_nor_calls(tmp_path):
    async def scene():
        ray = FakeRay()
        ray.down = True
        async with control(tmp_path, ray) as runtime, client(runtime) as web, agent(runtime) as there:
            await there.until(m.Adopt)
            assert (await web.invoke("status", {}))["agents"] == {NODE: 9}

    play(scene)


def test_loop_beats_to_its_agents(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, agent(runtime) as there:
            await there.until(m.Adopt)
            async with asyncio.timeout(3):
                assert not (await there.stream.read()).body

    play(scene)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"workers": 99}, CapacityError, "99 workers"),
        ({"workers": 0}, SpecError, "workers=0"),
        ({"name": "../up"}, SpecError, "name='../up'"),
        ({"run_id": "a/b"}, SpecError, "run_id='a/b'"),
    ],
)
def test_impossible_job_is_refused_with_its_own_error(tmp_path, changes, error, words):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime) as web:
            with pytest.raises(error, match=words):
                await web.invoke("submit", {"spec": {**to_plain(SPEC), **changes}})

    play(scene)


def test_unknown_run_is_not_found(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime) as web:
            for method in ("stop", "read_log"):
                with pytest.raises(NotFoundError, match="nope"):
                    await web.invoke(method, {"run": "nope", "trainer": "nope"})

    play(scene)


def test_log_and_doctor_are_answered_by_the_agent(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime) as web, agent(runtime) as there:
            await there.until(m.Adopt)
            run = (await web.invoke("submit", {"spec": to_plain(SPEC)}))["run"]
            trainer = (await there.until(m.StartTrainer)).trainer
            asked = asyncio.create_task(web.invoke("read_log", {"run": run, "trainer": trainer}))
            read = await there.until(m.ReadLog)
            await there.say(m.LogChunk(request=read.request, text="hello", next_offset=5))
            assert (await asked)["text"] == "hello"
            asked = asyncio.create_task(web.invoke("doctor", {}))
            examine = await there.until(m.Examine)
            finding = m.Finding(node=NODE, check="disk", ok=True, detail="fine")
            await there.say(m.DoctorReport(request=examine.request, findings=(finding,)))
            assert [f["check"] for f in (await asked)["findings"]] == ["disk", "ray ports"]

    play(scene)


def test_call_without_the_secret_learns_nothing(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, client(runtime, b"x" * 32) as web:
            with pytest.raises((ConnectError, HandshakeError)):
                await web.invoke("status", {})

    play(scene)


def test_agent_without_the_secret_is_turned_away(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime:
            with pytest.raises(grpc.RpcError, match="does not know the cluster's secret"):
                async with agent(runtime, secret=b"x" * 32):
                    pass

    play(scene)


def test_agent_of_another_build_is_turned_away(tmp_path):
    async def scene():
        other = m.Versions(atoll="9", protocol=m.PROTOCOL, python="3")
        async with control(tmp_path, FakeRay()) as runtime, agent(runtime, versions=other) as there:
            with pytest.raises(grpc.RpcError, match="install the same"):
                await there.until(m.Adopt)

    play(scene)


def test_second_stream_of_a_node_replaces_the_first(tmp_path):
    async def scene():
        async with control(tmp_path, FakeRay()) as runtime, agent(runtime) as first:
            await first.until(m.Adopt)
            async with agent(runtime) as second, client(runtime) as web:
                await second.until(m.Adopt)
                assert (await web.invoke("status", {}))["agents"] == {NODE: 9}

    play(scene)
