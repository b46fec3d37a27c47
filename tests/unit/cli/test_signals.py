"""What an attached command does when it is told to end; in a process of its own, since signals are a process's."""

import signal
import subprocess
import sys
import threading

import pytest

from atoll.schema.views import RunState

# A suite that was started in the background ignores interrupts, and so would what it starts.
SCRIPT = """
import signal

import atoll

def train(ctx):
    pass

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atoll.run(train, workers=2)
"""


@pytest.fixture
def attached(cluster, tmp_path):
    """A script attached to its run, past the point where it shows the first event."""
    (tmp_path / "train.py").write_text(SCRIPT)
    real = cluster.control._submit

    def submit(spec):
        answer = real(spec)
        cluster.reader.tell(answer["run"], answer["run"], "epoch", "epoch 1")
        return answer

    cluster.control._submit = submit
    process = subprocess.Popen([sys.executable, "train.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while "epoch 1" not in process.stdout.readline():
        assert process.poll() is None
    yield process
    process.kill()
    process.wait(10)
    process.stdout.close()


def stops(cluster):
    return [body["reason"] for method, body in cluster.control.asked if method == "stop"]


def test_interrupt_asks_the_run_to_stop_and_watches_it_end(cluster, attached):
    attached.send_signal(signal.SIGINT)
    out, _ = attached.communicate(timeout=20)
    assert attached.returncode == 130
    assert "stopping at the next step boundary" in out
    assert f"run {cluster.only_run} stopped: Ctrl-C in the attached terminal" in out
    assert stops(cluster) == ["Ctrl-C in the attached terminal"]


def test_second_interrupt_leaves_at_once(cluster, attached):
    real = cluster.control.invoke

    async def ignore_stop(method, body):
        return {} if method == "stop" else await real(method, body)

    cluster.control.invoke = ignore_stop
    attached.send_signal(signal.SIGINT)
    while "stopping" not in attached.stdout.readline():
        assert attached.poll() is None
    attached.send_signal(signal.SIGINT)
    attached.communicate(timeout=20)
    assert attached.returncode == 130
    assert cluster.reader.views[cluster.only_run].state is RunState.RUNNING


def test_termination_asks_the_run_to_stop_and_leaves_within_rays_three_seconds(cluster, attached):
    attached.send_signal(signal.SIGTERM)
    attached.communicate(timeout=3)
    assert attached.returncode == 143
    assert stops(cluster) == ["SIGTERM to the attached driver"]


def test_attached_driver_beats(cluster, attached):
    real, beaten = cluster.control.invoke, threading.Event()

    async def listen(method, body):
        if method == "driver_beat":
            beaten.set()
        return await real(method, body)

    cluster.control.invoke = listen
    assert ("driver_beat", {"run": cluster.only_run}) in cluster.control.asked or beaten.wait(20)
