"""Views with defaults, so that a test names only what it is about."""

from __future__ import annotations

import pytest

from atoll.schema.ids import Epoch, NodeId, Rank, RunId, Step, TrainerId
from atoll.schema.spec import JobKind
from atoll.schema.views import CheckpointView, MetricPoint, NodeView, RunState, RunView, TrainerView


def _point(step, *, epoch=1, members=4, at=None, step_s=0.2, samples=64, **metrics):
    return MetricPoint(
        step=Step(step),
        at=float(step) if at is None else at,
        step_s=step_s,
        samples=samples,
        members=members,
        epoch=Epoch(epoch),
        metrics=metrics,
    )


def _run(run="r1", **given):
    base = {
        "name": "gpt",
        "kind": JobKind.TRAIN,
        "state": RunState.RUNNING,
        "reason": "",
        "submitted_at": 100.0,
        "ended_at": None,
        "epoch": Epoch(1),
        "workers_wanted": 4,
        "members": 4,
        "spares": 1,
        "step": Step(10),
        "last": None,
        "checkpoint": None,
    }
    return RunView(run=RunId(run), **(base | given))


def _trainer(name, role, rank=None, state="training"):
    rank = None if rank is None else Rank(rank)
    return TrainerView(trainer=TrainerId(name), node=NodeId("node-a"), role=role, rank=rank, pid=41, state=state)


def _node(name="node-a", **given):
    base = {"address": "127.0.0.1", "alive": True, "cpus": 2.0, "gpus": 0.0, "cpus_free": 0.4, "agent": True}
    return NodeView(node=NodeId(name), **(base | given))


def _checkpoint(step=50, at=150.0):
    return CheckpointView(run=RunId("r1"), step=Step(step), path=f"c/step-{step}", bytes=3 << 20, seconds=0.5, at=at)


@pytest.fixture
def point():
    return _point


@pytest.fixture
def run():
    return _run


@pytest.fixture
def trainer():
    return _trainer


@pytest.fixture
def node():
    return _node


@pytest.fixture
def checkpoint():
    return _checkpoint
