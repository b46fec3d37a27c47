"""A dashboard over an imagined cluster, for the browser tests and for working on the pages.

    python tests/browser/imagined_cluster.py --scene story --at 60

Prints one JSON line with the URL, then serves until its standard input closes. Scene `story` is a run that has been
going for `--at` seconds when the server starts and goes on: after 24 s a member is lost and the spare takes its rank,
a replacement rejoins as the new spare, and after 44 s another is lost while no spare is ready, so that the run goes on
with three members and then grows again. Scene `empty` has nothing at all; scene `broken` answers with an error; scene
`mute` is the story without a control plane, so that no log can be read.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from atoll.clock import SystemClock
from atoll.errors import ConnectError, NotFoundError
from atoll.schema.ids import Epoch, NodeId, Rank, RunId, Step, TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.sharing_views import GoodputView, QueueView, TopView
from atoll.schema.spec import JobKind
from atoll.schema.views import (
    CheckpointView,
    EventView,
    MetricPoint,
    NodeView,
    RunState,
    RunView,
    TopologyView,
    TrainerView,
    unknown_topology,
)

RUN = RunId("gpt-stdlib-7f3a")
STEP_S = 0.21
# (from this second on, epoch, members, length of a step): what happened to the members.
ERAS = ((2.0, 1, 4, 0.21), (24.0, 2, 4, 0.21), (44.0, 3, 3, 0.27), (52.0, 4, 4, 0.21))
PAUSE_S = 0.8
DIVERGED = "non-finite: the loss of step 42 is nan on rank 0; lower the rate or clip gradients. Nothing was committed."
TOLD = (
    (0.1, "", "submitted", "train examples/train_gpt.py:train on 4 workers"),
    (0.6, "", "placed", "the cluster has room for all its workers"),
    (1.9, "", "epoch", "1 of t1, t2, t3, t4: all members are ready"),
    (13.0, "", "checkpoint", "step 50 is durable, 61.4 MiB"),
    (24.0, "t3", "lost", "killed by SIGKILL"),
    (24.1, "", "epoch", "2 of t1, t2, t4, t5: t3 was lost, t5 joins"),
    (24.8, "t5", "joined", "epoch 2 from step 103"),
    (26.0, "t6", "ready", "warm, listens at 10.0.0.4:40413"),
    (34.0, "", "checkpoint", "step 150 is durable, 61.4 MiB"),
    (43.5, "t6", "lost", "killed by SIGKILL"),
    (44.0, "t1", "lost", "killed by SIGKILL"),
    (44.1, "", "epoch", "3 of t2, t4, t5: t1 was lost"),
    (52.0, "", "epoch", "4 of t2, t4, t5, t7: t7 joins"),
    (52.4, "t8", "ready", "warm, listens at 10.0.0.4:40951"),
)


class ImaginedCluster:
    """A `Source` whose every answer is a function of the seconds since the run began."""

    def __init__(self, clock: SystemClock, *, at: float, scene: str) -> None:
        self._clock, self._scene = clock, scene
        self._began = clock.now() - at
        self._stopped_at: float | None = None
        self._points = _points(self._began)

    def _age(self) -> float:
        age = self._clock.now() - self._began
        return age if self._stopped_at is None else min(age, self._stopped_at)

    def _check(self) -> None:
        if self._scene == "broken":
            raise ConnectError("the history at history.sqlite does not answer. Run `atoll doctor`.")

    async def runs(self) -> Sequence[RunView]:
        self._check()
        return [] if self._scene == "empty" else [self._run(), *self._others()]

    async def run(self, run: RunId) -> RunView:
        self._check()
        found = next((r for r in await self.runs() if r.run == run), None)
        if found is None:
            raise NotFoundError(f"no run {run!r} in the history. `atoll ls` lists them.")
        return found

    async def events(self, run: RunId | None, after: int) -> Sequence[EventView]:
        if run not in {None, RUN}:
            return []
        age = self._age()
        return [
            EventView(seq=i, at=self._began + at, run=RUN, subject=f"{RUN}-{whom}".rstrip("-"), kind=kind, text=text)
            for i, (at, whom, kind, text) in enumerate(TOLD, start=1)
            if i > after and at <= age
        ]

    async def metrics(self, run: RunId, after: int) -> Sequence[MetricPoint]:
        end = self._began + self._age()
        return [p for p in self._points if p.step > after and p.at <= end] if run == RUN else []

    async def checkpoints(self, run: RunId) -> Sequence[CheckpointView]:
        reached = [p for p in await self.metrics(run, -1) if p.step % 50 == 0 and p.step]
        return [_checkpoint(p.step, p.at + 0.6) for p in reached]

    async def nodes(self) -> Sequence[NodeView]:
        self._check()
        if self._scene == "empty":
            return []
        labels = {"island": "a", "nic": "eth0 10 Gbit/s"}
        return [
            _node("node-10-0-0-4", "10.0.0.4", cpus=8, free=5.5, labels=labels),
            _node("node-10-0-0-5", "10.0.0.5", cpus=8, free=7.6, gpus=1, labels=labels | {"island": "b"}),
            _node("node-10-0-0-6", "10.0.0.6", cpus=8, free=8, alive=False),
        ]

    async def top(self) -> TopView | None:
        self._check()
        if self._scene == "empty":
            return TopView(at=0.0, since=0.0, queues=())
        queue = QueueView(
            name="default", weight=1.0, cohort="", share=0.35, lately=0.2, fair_share=1.0, running=3, waiting=1
        )
        spent = GoodputView(by="device", name="cpu", useful=900.0, starting=40.0, resharding=10.0, idle=50.0)
        return TopView(at=0.0, since=0.0, queues=(queue,), goodput=(spent,))

    async def topology(self) -> TopologyView:
        self._check()
        return unknown_topology() if self._scene == "empty" else _network(self._began)

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        if self._scene == "mute":
            raise ConnectError("the control plane does not answer at 127.0.0.1:4; it is started again within seconds.")
        points = await self.metrics(run, -1)
        lines = [f"{trainer} warm in 0.94 s, torch threads 1", f"{trainer} \x1b[32mjoined epoch 1\x1b[0m as a member"]
        lines += [f"step {p.step:>4}  loss {p.metrics['loss']:.4f}  {p.step_s * 1000:.0f} ms" for p in points]
        data = "".join(line + "\n" for line in lines).encode()
        start = max(0, len(data) + offset) if offset < 0 else offset
        part = data[start : start + limit]
        return LogChunk(request="", text=part.decode(), next_offset=start + len(part))

    async def stop(self, run: RunId) -> None:
        self._stopped_at = self._age()

    def _run(self) -> RunView:
        age = self._age()
        points = [p for p in self._points if p.at <= self._began + age]
        last = points[-1] if points else None
        era = max((e for e in ERAS if e[0] <= age), default=(0.0, 0, 0, 0.0))
        saved = [p for p in points if p.step % 50 == 0 and p.step]
        return RunView(
            run=RUN,
            name="gpt-stdlib",
            kind=JobKind.TRAIN,
            state=RunState.STOPPED if self._stopped_at is not None else RunState.RUNNING,
            reason="stopped from the dashboard" if self._stopped_at is not None else "",
            submitted_at=self._began,
            ended_at=None if self._stopped_at is None else self._began + self._stopped_at,
            epoch=Epoch(era[1]),
            workers_wanted=4,
            members=era[2],
            spares=sum(t.role == "spare" for t in _trainers(age)),
            step=Step(last.step if last else 0),
            last=last,
            checkpoint=_checkpoint(saved[-1].step, saved[-1].at + 0.6) if saved else None,
            trainers=_trainers(age),
        )

    def _others(self) -> list[RunView]:
        def made(name: str, run: str, state: RunState, ago: float, **kw: object) -> RunView:
            base = {
                "kind": JobKind.TRAIN,
                "reason": "",
                "submitted_at": self._began - ago,
                "ended_at": self._began - ago + 300,
                "epoch": Epoch(3),
                "workers_wanted": 4,
                "members": 0,
                "spares": 0,
                "step": Step(300),
                "last": MetricPoint(
                    step=Step(300), at=0, step_s=0.2, samples=16, members=4, epoch=Epoch(3), metrics={"loss": 1.834}
                ),
                "checkpoint": None,
            }
            return RunView(run=RunId(run), name=name, state=state, **(base | kw))  # type: ignore[arg-type]

        serve = {
            "kind": JobKind.SERVE,
            "ended_at": None,
            "workers_wanted": 1,
            "members": 1,
            "epoch": Epoch(1),
            "last": None,
            "endpoint": "http://127.0.0.1:8321/v1",
            "trainers": (_trainer("s1", "server", None, "answering"),),
        }
        return [
            made("gpt-stdlib-serve", "serve-91bc", RunState.RUNNING, -30, **serve),
            made("gpt-small", "gpt-small-02d1", RunState.SUCCEEDED, 4000),
            made("gpt-wide-lr", "gpt-wide-lr-77aa", RunState.FAILED, 9000, step=Step(41), reason=DIVERGED),
        ]


def _network(now: float) -> TopologyView:
    # Beside the harnesses of other tests, where this script finds nothing by itself.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
    from imagined_network import imagined_network

    return imagined_network(now)


def _points(began: float) -> list[MetricPoint]:
    chance, points, at = random.Random(7), [], ERAS[0][0]
    eras = [*ERAS[1:], (math.inf, 0, 0, 0.0)]
    epoch, members, pace = ERAS[0][1:]
    for step in range(1, 3000):
        if at + pace > eras[0][0]:
            _, epoch, members, pace = eras.pop(0)
            at += PAUSE_S
        took = pace * chance.uniform(0.93, 1.09) * (2.2 if step % 97 == 0 else 1.0)
        at += took
        loss = 1.55 + 4.0 * math.exp(-step / 60) + chance.gauss(0, 0.05)
        metrics = {"loss": loss, "tokens": 16 * 4 * 128.0}
        if step % 20 == 0:
            metrics["heldout_loss"] = 1.68 + 3.9 * math.exp(-step / 58)
        points.append(
            MetricPoint(
                step=Step(step),
                at=began + at,
                step_s=took,
                samples=64,
                members=members,
                epoch=Epoch(epoch),
                metrics=metrics,
            )
        )
    return points


def _checkpoint(step: int, at: float) -> CheckpointView:
    path = f"runs/{RUN}/checkpoints/step-{step:08d}"
    return CheckpointView(run=RUN, step=Step(step), path=path, bytes=64_382_112, seconds=0.61, at=at)


def _trainer(trainer: str, role: str, rank: int | None, state: str) -> TrainerView:
    pid = 4100 + int(trainer[1:]) * 7
    node = NodeId("node-10-0-0-4")
    return TrainerView(
        trainer=TrainerId(f"{RUN}-{trainer}"),
        node=node,
        role=role,
        rank=None if rank is None else Rank(rank),
        pid=pid,
        state=state,
    )


def _trainers(age: float) -> tuple[TrainerView, ...]:
    def ranks(*names: str) -> list[TrainerView]:
        return [_trainer(name, "worker", i, "training") for i, name in enumerate(names)]

    def gone(*names: str) -> list[TrainerView]:
        return [_trainer(name, "gone", None, "lost") for name in names]

    if age < ERAS[0][0]:
        return tuple(_trainer(f"t{i}", "spare", None, "starting") for i in range(1, 6))
    if age < ERAS[1][0]:
        return (*ranks("t1", "t2", "t3", "t4"), _trainer("t5", "spare", None, "ready"))
    if age < ERAS[2][0]:
        spare = "ready" if age > 26 else "starting"
        return (*ranks("t1", "t2", "t5", "t4"), _trainer("t6", "spare", None, spare), *gone("t3"))
    if age < ERAS[3][0]:
        return (*ranks("t2", "t5", "t4"), _trainer("t7", "spare", None, "starting"), *gone("t3", "t6", "t1"))
    return (*ranks("t2", "t5", "t4", "t7"), _trainer("t8", "spare", None, "ready"), *gone("t3", "t6", "t1"))


def _node(
    node: str,
    address: str,
    *,
    cpus: float,
    free: float,
    gpus: float = 0,
    alive: bool = True,
    labels: dict[str, str] | None = None,
) -> NodeView:
    return NodeView(
        node=NodeId(node),
        address=address,
        alive=alive,
        cpus=cpus,
        gpus=gpus,
        cpus_free=free,
        agent=alive,
        labels=labels or {},
    )


def main() -> None:
    """Serve one scene on a free port of this machine."""
    from atoll.ui.pages import mount

    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--scene", choices=("story", "empty", "broken", "mute"), default="story")
    asked.add_argument("--at", type=float, default=60.0)
    asked.add_argument("--port", type=int, default=0)
    given = asked.parse_args()
    app = FastAPI()
    mount(app, ImaginedCluster(SystemClock(), at=given.at, scene=given.scene))
    listener = socket.create_server(("127.0.0.1", given.port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))

    def end_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end_with_parent, name="atoll-parent", daemon=True).start()
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
    sys.stdout.flush()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
