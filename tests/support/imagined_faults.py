"""Processes and hosts of the cluster that is played (`imagined_failures`), and all that may befall them.

Times are whole tenths of a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.control_plane.records import RECORDS
from atoll.schema import messages as m

TICK_S = 0.1
RUN = "gpt"
AGENT_RESTART_TICKS = 30


@dataclass(eq=False)
class Proc:
    """A trainer's process. `does`: works, stopped, gil, sleeps, evaluates."""

    trainer: str
    seat: str
    node: str
    ready_at: int
    does: str = "works"
    alive: bool = True
    ready: bool = False
    newest: m.Membership | None = None
    joined: int = 0
    step: int = 0
    holds: bool = False
    cpu_s: float = 0.0
    beat: int = 0
    status: int | None = None
    told: tuple = ()
    told_at: int = 0
    blocked_at: int | None = None
    said_wait_at: int = 0
    waiting: bool = False
    bits: int = 0

    @property
    def able(self):
        """It would enter the next collective."""
        return self.alive and self.does == "works"

    @property
    def talks(self):
        """Its threads run, whatever the main one does."""
        return self.alive and self.does not in {"stopped", "gil"}


@dataclass(eq=False)
class Host:
    """A node and its agent. `heard`: when it last heard each other one; `queue`: what it said and nobody read yet; `inbox`: what it was told likewise."""

    name: str
    on: bool = True
    agent: bool = True
    frozen: bool = False
    agent_back: int | None = None
    listens: tuple = ()
    heard: dict = field(default_factory=dict)
    told: frozenset = frozenset()
    told_at: int = 0
    queue: list = field(default_factory=list)
    inbox: list = field(default_factory=list)
    attached: bool = False
    hung_up: bool = False

    @property
    def acts(self):
        return self.on and self.agent and not self.frozen


class Faults:
    """What can be done to a cluster; the base of what is played."""

    def proc(self, short):
        return self.procs[f"{RUN}-{short}"]

    def does(self, short, what):
        self.proc(short).does = what

    def kill(self, short):
        self.end(self.proc(short), status=-9)

    def busy(self, short, limit_s):
        proc = self.proc(short)
        proc.does = "evaluates" if limit_s else "works"
        self.say(proc, m.Busy(trainer=proc.trainer, what="eval", limit_s=limit_s))

    def flip(self, short):
        """A bit of what it holds; each flip makes other bits."""
        self.flips += 1
        self.proc(short).bits = self.flips

    def power_off(self, name):
        self.hosts[name].on = False
        for proc in self.procs.values():
            if proc.node == name:
                proc.alive = False

    def power_on(self, name):
        host = self.hosts[name]
        host.on, host.agent, host.frozen, host.queue = True, True, False, []
        for proc in self.procs.values():
            if proc.node == name:
                proc.status = -9
        self.lose_stream(host)
        self.attach(host)

    def lose_stream(self, host):
        if host.attached:
            host.attached = host.hung_up = False
            self.do(ev.AgentDetached(node=host.name, evidence="its stream broke"))

    def end_agent(self, name):
        host = self.hosts[name]
        host.agent, host.agent_back = False, self.now + AGENT_RESTART_TICKS
        host.queue = []
        self.lose_stream(host)

    def cut(self, ones, others, *, both=True):
        pairs = {(a, b) for a in ones for b in others}
        self.cuts |= pairs | ({(b, a) for a, b in pairs} if both else set())

    def heal(self):
        self.cuts.clear()

    def stall(self, seconds):
        """The control plane is stopped for so long, and goes on."""
        self.down_until = self.now + round(seconds / TICK_S)
        self.go(seconds)

    def restart(self, seconds=1.0):
        """The control plane dies and is back after so long; agents come back within a second."""
        self.down_until = self.now + round(seconds / TICK_S) + 1
        for host in self.hosts.values():
            host.attached = False
        self.go(seconds)
        self.incarnation += 1
        before = self.run.epoch
        self.core = Core(self.incarnation, [RECORDS.decode(line) for line in self.journal], beat_key="00")
        assert self.run.epoch == before
        self.list_nodes()

    def save(self):
        """A durable checkpoint of the last committed step."""
        self.saved, self.saved_in = self.commits[-1]
        first = self.procs[self.run.members[0].trainer]
        said = m.CheckpointCommitted(trainer=first.trainer, step=self.saved, path="/c", bytes=1, seconds=0.1)
        self.say(first, said)
