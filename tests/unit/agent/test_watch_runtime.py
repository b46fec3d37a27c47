"""Pulses of real processes and beats over real sockets."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time

import pytest

from atoll.clock import SystemClock
from atoll.schema.messages import PeersWatched, TrainerWatched, WatchedPeer, WatchPeers
from atoll.schema.topology import Door, Nic
from atoll.workers.beat_runtime import Beats
from atoll.workers.proc_runtime import ProcessView, read_stat, start_ticks
from atoll.workers.pulse_runtime import Pulse, pulse_path, read_pulse
from atoll.workers.watch_runtime import Watcher

HERE = (Nic(name="one", host="127.0.0.1"), Nic(name="two", host="127.0.0.2"))
KEY = "5a" * 32
LIMIT_S = 10.0


def until(true, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return found


# -- pulses ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def forked(folder, work):
    """A process with a pulse that does `work`."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            Pulse(pulse_path(folder, "t"), every_s=0.01).start()
            work()
        os._exit(0)
    try:
        until(lambda: read_pulse(pulse_path(folder, "t")))
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def child(tmp_path):
    with forked(tmp_path, lambda: time.sleep(60)) as pid:
        yield pid


def hold_the_interpreter():
    """As an extension does that never gives its lock back: `PyDLL` keeps it during the call."""
    time.sleep(0.1)
    ctypes.PyDLL(None).sleep(60)


def spin():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


def test_pulse_counts_on_and_tells_the_time_of_its_last_beat(tmp_path):
    pulse = Pulse(tmp_path / "pulse", every_s=0.001)
    began = time.monotonic()
    pulse.start()
    try:
        first = read_pulse(tmp_path / "pulse")
        later = until(lambda: (r := read_pulse(tmp_path / "pulse")) and r.count > first.count + 3 and r)
        assert began <= first.at < later.at <= time.monotonic()
    finally:
        pulse.close()
    assert read_pulse(tmp_path / "pulse") is None
    assert not [t for t in threading.enumerate() if t.name == "atoll-pulse"]


def test_trainer_without_room_for_a_pulse_goes_on(tmp_path, capsys):
    pulse = Pulse(tmp_path / "missing" / "pulse")
    pulse.start()
    pulse.close()
    assert "goes on without a pulse" in capsys.readouterr().err


def test_link_that_leads_to_something_else_is_no_pulse(tmp_path):
    (tmp_path / "short").write_bytes(b"12")
    (tmp_path / "other").write_bytes(b"x" * 64)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("short", "other", "pipe", "folder", "nothing"):
        assert read_pulse(tmp_path / name) is None


def test_pulse_of_a_stopped_process_stands_still_and_goes_on(child, tmp_path):
    path = pulse_path(tmp_path, "t")
    view = ProcessView(child, start_ticks(child))
    os.kill(child, signal.SIGSTOP)
    until(lambda: view.look().state == "T")
    still = read_pulse(path)
    time.sleep(0.05)
    assert read_pulse(path) == still
    os.kill(child, signal.SIGCONT)
    until(lambda: read_pulse(path).count > still.count)
    view.close()


def test_pulse_of_a_process_that_holds_its_interpreter_stands_still_though_nothing_stopped_it(tmp_path):
    path = pulse_path(tmp_path, "t")
    with forked(tmp_path, hold_the_interpreter) as pid:
        until(lambda: time.monotonic() - read_pulse(path).at > 0.3)
        still = read_pulse(path)
        assert read_stat(pid).state in "SR"
        time.sleep(0.05)
        assert read_pulse(path) == still


def test_pulse_of_a_busy_program_goes_on(tmp_path):
    path = pulse_path(tmp_path, "t")
    with forked(tmp_path, spin) as pid:
        first = read_pulse(path)
        until(lambda: read_pulse(path).count > first.count + 3)
        view = ProcessView(pid, start_ticks(pid))
        until(lambda: view.look().cpu_s > 0)
        view.close()


def test_pulse_ends_with_its_process(child, tmp_path):
    view = ProcessView(child, start_ticks(child))
    os.kill(child, signal.SIGKILL)
    until(lambda: view.look().state == "Z")
    assert read_pulse(pulse_path(tmp_path, "t")) is None
    view.close()


def test_view_of_another_process_shows_nothing(child):
    view = ProcessView(child, start_ticks(child) + 1)
    assert view.look() is None
    view.close()
    gone = ProcessView(2**22 + 1, 1)
    assert gone.look() is None


# -- beats -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    ends = [Beats(name, HERE, first=1) for name in ("a", "b")]
    yield ends
    for end in ends:
        end.close()


def order(peer, doors, *, listen=None, key=KEY):
    return WatchPeers(beat=(WatchedPeer(node=peer, doors=doors),), listen=listen or (peer,), key=key)


def talk(a, b, rounds, start=0.0):
    told = []
    for n in range(rounds):
        now = start + n / 10
        told += [f for f in (a.tick(now=now, behind_s=0.0), b.tick(now=now, behind_s=0.0)) if f is not None]
    return told


def last(told, node):
    return [f for f in told if f.node == node][-1]


def test_two_agents_hear_each_other_and_miss_the_one_that_ends(pair):
    a, b = pair
    assert [door.nic for door in a.doors] == ["one", "two"]
    a.obey(order("b", b.doors))
    b.obey(order("a", a.doors))
    told = talk(a, b, 15)
    assert last(told, "a").heard == ("b",)
    assert last(told, "b").heard == ("a",)
    silent = [f for n in range(10) if (f := a.tick(now=2.0 + n / 10, behind_s=0.0)) is not None]
    assert [peer.node for peer in silent[-1].silent] == ["b"]


def test_beat_that_comes_by_any_nic_counts(pair):
    a, b = pair
    a.obey(order("b", (b.doors[1], Door(nic="cut", host="127.0.0.1", port=9))))
    b.obey(order("a", ()))
    assert last(talk(a, b, 15), "b").heard == ("a",)


def test_beats_under_another_key_are_not_heard(pair):
    a, b = pair
    a.obey(order("b", b.doors, key="77" * 32))
    b.obey(order("a", a.doors))
    assert [peer.node for peer in last(talk(a, b, 15), "b").silent] == ["a"]


def test_unreachable_door_harms_nobody(pair):
    a, b = pair
    a.obey(order("b", (Door(nic="x", host="203.0.113.1", port=9), Door(nic="y", host="::1", port=9), *b.doors)))
    b.obey(order("a", a.doors))
    assert last(talk(a, b, 15), "b").heard == ("a",)


# -- the thread ------------------------------------------------------------------------------------------------------


@pytest.fixture
def watcher(tmp_path):
    made = Watcher("me", HERE, tmp_path, SystemClock())
    yield made
    made.close()


def test_thread_tells_of_a_stopped_trainer_and_of_a_silent_peer(watcher, child, tmp_path):
    told = []
    watcher.start(lambda facts, _at: told.append(facts))
    watcher.watch("t", "r", child, start_ticks(child))
    watcher.obey(order("gone", watcher.doors))

    def facts(kind):
        return [f for batch in list(told) if batch for f in batch if isinstance(f, kind)]

    until(lambda: facts(TrainerWatched))
    os.kill(child, signal.SIGSTOP)
    until(lambda: facts(TrainerWatched)[-1].state == "T")
    until(lambda: facts(PeersWatched) and facts(PeersWatched)[-1].silent)
    os.kill(child, signal.SIGCONT)
    until(lambda: facts(TrainerWatched)[-1].state in "SR")
    watcher.forget("t")
    until(lambda: not pulse_path(tmp_path, "t").is_symlink())
    watcher.close()
    assert told[-1] is None


def test_turn_tells_nothing_of_a_trainer_that_is_gone(watcher):
    watcher.watch("t", "r", 2**22 + 1, 5)
    assert watcher.turn(now=1.0, behind_s=0.0) == ()


def test_door_of_a_kind_that_this_host_cannot_reach_is_left_out(pair, monkeypatch):
    a, b = pair
    real = socket.socket

    def without_six(family=socket.AF_INET, *rest):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", without_six)
    a.obey(order("b", (Door(nic="six", host="fd00::1", port=9), *b.doors)))
    b.obey(order("a", a.doors))
    assert last(talk(a, b, 15), "b").heard == ("a",)


def test_peer_whose_doors_changed_may_begin_its_numbers_lower():
    ends = [Beats(name, HERE, first=first) for name, first in (("a", 1), ("b", 1000), ("b", 1))]
    a, before, after = ends
    try:
        for b in (before, after):
            a.obey(order("b", b.doors))
            b.obey(order("a", a.doors))
            talk(a, b, 3)
            a.tick(now=0.4, behind_s=0.0)  # the last one is read long before another agent has begun
        told = talk(a, after, 15, start=5.0)
        assert last(told, "a").silent == ()
    finally:
        for end in ends:
            end.close()
