"""The actor ends its process whenever its loop does, so that Ray starts the next one; whoever asked is told why first."""

import threading

import pytest

from atoll.control_plane import ray_actor
from atoll.errors import ClusterError, ConnectError

FULL = "the disk of the journal is full; free some space"


@pytest.fixture
def ended(monkeypatch):
    """How the process would have ended, and when."""
    codes, over = [], threading.Event()
    monkeypatch.setattr(ray_actor.os, "_exit", lambda code: (codes.append(code), over.set()))
    monkeypatch.setattr(ray_actor, "TOLD_S", 0.2)
    monkeypatch.setattr(ray_actor.traceback, "print_exc", lambda **_: None)
    return codes, over


def test_control_plane_that_cannot_begin_tells_why_and_then_ends(monkeypatch, ended, tmp_path):
    async def full(_self):
        raise ClusterError(FULL)

    monkeypatch.setattr(ray_actor.ControlPlane, "_run", full)
    codes, over = ended
    actor = ray_actor.ControlPlane(str(tmp_path), str(tmp_path))
    with pytest.raises(ConnectError, match="free some space"):
        actor.ready()
    assert over.wait(10)
    assert codes == [ray_actor._FAILED]
    actor._thread.join(10)


def test_control_plane_that_served_ends_at_once(monkeypatch, ended, tmp_path):
    async def served(self):
        self._ready.set()
        raise ClusterError(FULL)

    monkeypatch.setattr(ray_actor.ControlPlane, "_run", served)
    monkeypatch.setattr(ray_actor, "TOLD_S", 60.0)
    codes, over = ended
    actor = ray_actor.ControlPlane(str(tmp_path), str(tmp_path))
    assert over.wait(10)
    assert codes == [ray_actor._FAILED]
    actor._thread.join(10)
