"""Faults on purpose, on the node: signals to exactly one process, and what a trainer does to itself."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from atoll.fault import inject
from atoll.schema.harm import Harm
from atoll.schema.messages import (
    Adopt,
    Inject,
    Misbehave,
    StartTrainer,
    TrainerHello,
    Versions,
)
from atoll.schema.spec import JobSpec
from atoll.workers.agent_core import AgentCore, Self
from atoll.workers.agent_messages import Attached, CommandCame, Connected, Ended, Forked, Hurt, Tell
from atoll.workers.harm_runtime import SLOWNESS, Harms
from atoll.workers.hurt_runtime import hurt
from atoll.workers.proc_runtime import start_ticks

ME = Self(node="n", pid=7, address="h", state_dir="/s", home="/h", versions=Versions(atoll="0", protocol=1, python="3"))
START = StartTrainer(
    run="r", trainer="t", seat="s", spec=JobSpec(name="j", working_dir="/", file="f.py"), run_dir="/r", secret="00"
)


@pytest.fixture
def core():
    core = AgentCore(ME)
    for event in (
        Attached(),
        CommandCame(incarnation=1, command=Adopt(incarnation=1, keep=())),
        CommandCame(incarnation=1, command=START),
        Forked(trainer="t", pid=100, start_ticks=5),
        Connected(hello=TrainerHello(trainer="t", run="r", pid=100, start_ticks=5, epoch=0, ready=False)),
    ):
        core.handle(event, now=0.0)
    return core


def ordered(core, harm, **changes):
    order = Inject(trainer="t", harm=harm, **changes)
    return core.handle(CommandCame(incarnation=1, command=order), now=0.0)


def test_signal_is_sent_to_the_process_on_record(core):
    (effect,) = ordered(core, Harm.STOP, for_s=3.0)
    assert effect == Hurt(order=Inject(trainer="t", harm=Harm.STOP, for_s=3.0), pid=100, start_ticks=5)


def test_what_happens_inside_is_told_to_the_trainer(core):
    (effect,) = ordered(core, Harm.DIE, place="before-vote")
    assert effect == Tell(trainer="t", command=Misbehave(harm=Harm.DIE, place="before-vote"))


@pytest.mark.parametrize("harm", list(Harm))
def test_trainer_that_has_ended_is_not_hurt_again(core, harm):
    core.handle(Ended(trainer="t", exit_status=0), now=0.0)
    assert ordered(core, harm) == []


@pytest.fixture
def victim():
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait()


def wish(child, harm, **changes):
    return Hurt(order=Inject(trainer="t", harm=harm, **changes), pid=child.pid, start_ticks=start_ticks(child.pid))


def test_killed_one_is_killed_and_a_stranger_with_its_pid_is_not(victim):
    stranger = Hurt(order=Inject(trainer="t", harm=Harm.KILL), pid=victim.pid, start_ticks=1)
    asyncio.run(hurt(stranger))
    assert victim.poll() is None
    asyncio.run(hurt(wish(victim, Harm.KILL)))
    assert victim.wait(5) == -signal.SIGKILL


def test_stopped_one_goes_on_after_its_time(victim):
    async def watched():
        task = asyncio.ensure_future(hurt(wish(victim, Harm.STOP, for_s=0.05)))
        stopped = await asyncio.to_thread(os.waitpid, victim.pid, os.WUNTRACED)
        await task
        return stopped, await asyncio.to_thread(os.waitpid, victim.pid, os.WCONTINUED)

    (_, stopped), (_, went_on) = asyncio.run(watched())
    assert os.WIFSTOPPED(stopped)
    assert os.WIFCONTINUED(went_on)


class FakeClock:
    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def monotonic(self):
        return self.time


@pytest.fixture
def slept(monkeypatch):
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    yield found
    inject.disarm()


def test_slow_trainer_takes_three_times_as_long_for_a_grain_until_its_time_is_over(slept):
    clock = FakeClock()
    Harms(clock).suffer(Misbehave(harm=Harm.SLOW, for_s=10.0))
    for _ in range(2):
        inject.failpoint("step-entry")
        clock.time += 0.2
        inject.failpoint("before-backward")
        clock.time += 0.1
        inject.failpoint("after-backward")
    assert slept == pytest.approx([(SLOWNESS - 1) * 0.2] * 2)
    clock.time += 10.0
    inject.failpoint("step-entry")
    inject.failpoint("step-entry")
    slept.clear()
    for _ in range(2):
        inject.failpoint("before-backward")
    assert len(slept) == 1


def test_death_waits_for_its_place(slept, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    Harms(FakeClock()).suffer(Misbehave(harm=Harm.DIE, place="before-vote"))
    inject.failpoint("after-vote")
    assert killed == []
    inject.failpoint("before-vote")
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Misbehave(harm=Harm.KILL), "kill is not done from inside"),
        (Misbehave(harm=Harm.DIE, place="nowhere"), "no failpoint 'nowhere'"),
    ],
)
def test_order_that_makes_no_sense_is_a_line_in_the_log(slept, capsys, order, said):
    Harms(FakeClock()).suffer(order)
    assert said in capsys.readouterr().err


GIL = """
import sys, threading, time
from atoll.clock import SystemClock
from atoll.schema.harm import Harm
from atoll.schema.messages import Misbehave
from atoll.workers.harm_runtime import Harms

order = Misbehave(harm=Harm.GIL, for_s=1.0)
begun, longest, last = time.monotonic(), 0.0, time.monotonic()
threading.Thread(target=Harms(SystemClock()).suffer, args=[order]).start()
while time.monotonic() < begun + 1.5:
    time.sleep(0.01)
    now = time.monotonic()
    longest, last = max(longest, now - last), now
print(longest)
"""


def test_kept_gil_gives_no_other_thread_a_turn():
    done = subprocess.run([sys.executable, "-c", GIL], capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) > 0.9
