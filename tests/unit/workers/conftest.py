"""A communicator of threads in one process, and hosts around it: sessions run here without sockets or processes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
from atoll.schema.messages import CopyDecided, CopyProposed, Member, Membership
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door
from atoll.workers.host import Identity, Mailbox


@dataclass(frozen=True)
class FakePoison:
    reason: str
    culprit: Any = None
    differ: bool = False


class FakeWork:
    def __init__(self, comm):
        self._comm = comm
        self._done = False
        self._calls = []
        self.result = None

    @property
    def poison(self):
        return None if self._done else self._comm.poisoned

    def finish(self, result):
        self.result, self._done = result, True
        calls, self._calls = self._calls, []
        for call in calls:
            call(self)

    def add_done_callback(self, call):
        with self._comm.group.changed:
            if not self._done:
                self._calls.append(call)
                return
        call(self)

    def wait(self, timeout=None):
        changed = self._comm.group.changed
        with changed:
            changed.wait_for(lambda: self._done or self._comm.poisoned is not None, timeout)
            return self._done


class FakeGroup:
    """All members of one epoch. An operation is carried out when the last member submits it."""

    def __init__(self, membership, split=()):
        self.membership = membership
        self.split = split
        self.votes = 0
        self.changed = threading.Condition()
        self.comms = {}
        self.slots = {}
        self.mail = {}

    def submit(self, comm, kind, payload, work):
        with self.changed:
            if comm.poisoned is not None:
                return
            index = comm.submitted
            comm.submitted += 1
            slot = self.slots.setdefault(index, {})
            slot[comm.rank] = (kind, payload, work)
            if len(slot) == len(self.membership.members):
                self._carry_out(slot)
                self.changed.notify_all()

    def _carry_out(self, slot):
        kinds = {kind for kind, _, _ in slot.values()}
        assert len(kinds) == 1, f"members disagree about an operation: {kinds}"
        payloads = [slot[r][1] for r in sorted(slot)]
        if kinds == {"gather"} and payloads[0].startswith(b'{"stop"'):
            self.votes += 1
            if self.split and self.votes == self.split[0]:
                self._end_in_the_vote(slot, payloads)
                return
        if kinds == {"gather"}:
            results = [list(payloads) for _ in payloads]
        else:
            total = payloads[0].clone()
            for other in payloads[1:]:
                assert other.shape == total.shape
                total += other
            for payload in payloads:
                payload.copy_(total)
            results = [None for _ in payloads]
        for rank, result in zip(sorted(slot), results, strict=True):
            slot[rank][2].finish(result)

    def _end_in_the_vote(self, slot, payloads):
        """Only some ranks learn that the vote passed; then the epoch ends for all."""
        for rank in self.split[1]:
            slot[rank][2].finish(list(payloads))
        for rank in sorted(slot):
            self.poison(rank, FakePoison("the network broke"))

    def poison(self, rank, poison):
        with self.changed:
            comm = self.comms[rank]
            if comm.poisoned is not None:
                return
            comm.poisoned = poison
            calls = list(comm.calls)
            self.changed.notify_all()
        for call in calls:
            call(poison)


class FakeComm:
    def detours(self):
        return ()

    def observations(self):
        return ()

    def __init__(self, group, rank):
        self.group, self.rank = group, rank
        self.epoch = group.membership.epoch
        self.members = group.membership.members
        self.size = len(self.members)
        self.poisoned = None
        self.calls = []
        self.submitted = 0

    def on_poison(self, call):
        self.calls.append(call)

    def all_reduce(self, buffer, *, op="sum", in_place=False):
        assert op == "sum"
        assert buffer.dim() == 1
        work = FakeWork(self)
        self.group.submit(self, f"reduce-{buffer.numel()}-{buffer.dtype}", buffer, work)
        return work

    def all_gather(self, payload):
        work = FakeWork(self)
        self.group.submit(self, "gather", payload, work)
        return work

    def send(self, buffer, *, to, tag=0, in_place=False):
        work = FakeWork(self)
        with self.group.changed:
            if self.poisoned is None:
                self.group.mail.setdefault((self.rank, to, tag), []).append(buffer.clone())
                work.finish(None)
                self.group.changed.notify_all()
        self._deliver(self.rank, to, tag)
        return work

    def recv(self, buffer, *, source, tag=0, in_place=False):
        work = FakeWork(self)
        with self.group.changed:
            self.group.mail.setdefault(("wanted", source, self.rank, tag), []).append((buffer, work))
        self._deliver(source, self.rank, tag)
        return work

    def _deliver(self, source, to, tag):
        with self.group.changed:
            wanted = self.group.mail.get(("wanted", source, to, tag), [])
            if source is None:  # from anybody: whoever has sent first
                sources = [k[0] for k, v in self.group.mail.items() if k[1:] == (to, tag) and v]
                source = sources[0] if sources else None
            elif not wanted:
                wanted = self.group.mail.get(("wanted", None, to, tag), [])
            mail = self.group.mail.get((source, to, tag), [])
            while mail and wanted:
                sent, (buffer, work) = mail.pop(0), wanted.pop(0)
                buffer.copy_(sent)
                work.finish(source)
            self.group.changed.notify_all()

    def abort(self, reason, culprit=None):
        self.group.poison(self.rank, FakePoison(reason, culprit))

    def close(self):
        """A closed member is a dead socket to the others."""
        me = self.members[self.rank].trainer
        self.group.poison(self.rank, FakePoison("closed"))
        for rank in list(self.group.comms):
            if rank != self.rank:
                self.group.poison(rank, FakePoison(f"{me} closed its connection", me))


class Fabric:
    """Connects the members of an epoch once all have come."""

    def __init__(self):
        self.changed = threading.Condition()
        self.groups = {}
        self.split = ()

    def connect(self, membership, me, listener, *, deadline_s, cancelled, on_wait=None):
        from atoll.errors import PeerLost

        rank = next(m.rank for m in membership.members if m.trainer == me)
        with self.changed:
            group = self.groups.setdefault(
                membership.epoch, FakeGroup(membership, self.split if membership.epoch == 1 else ())
            )
            comm = group.comms[rank] = FakeComm(group, rank)
            self.changed.notify_all()
            end = time.monotonic() + deadline_s
            while len(group.comms) < len(membership.members):
                self.changed.wait(0.02)
                if cancelled() or time.monotonic() > end:
                    del group.comms[rank]
                    raise PeerLost(f"epoch {membership.epoch}: a member did not come")
        return comm


@dataclass
class FakeListener:
    host: str = "127.0.0.1"
    port: int = 1
    doors: tuple[Door, ...] = ()


@dataclass
class FakeHost:
    identity: Identity
    mailbox: Mailbox = field(default_factory=Mailbox)
    listener: Any = field(default_factory=FakeListener)
    told: list = field(default_factory=list)
    on_tell: Any = None
    # As a control plane that no other trainer asks: what is proposed is decided on.
    decides: bool = True

    def tell(self, fact):
        self.told.append(fact)
        if self.decides and isinstance(fact, CopyProposed):
            self.mailbox.put(CopyDecided(step=fact.step, record=fact.record))
        if self.on_tell is not None:
            self.on_tell(self, fact)

    def heard(self):
        """No lifeline here."""

    def facts(self, cls):
        return [f for f in self.told if isinstance(f, cls)]


def make_spec(tmp_path: Path, **changes) -> JobSpec:
    return JobSpec(name="test", working_dir=str(tmp_path), file="train.py", **changes)


def make_host(tmp_path: Path, name: str = "a", copies=(), **changes) -> FakeHost:
    identity = Identity(
        run=RunId("run"),
        trainer=TrainerId(name),
        node=NodeId("node-1"),
        spec=make_spec(tmp_path, **changes),
        run_dir=tmp_path,
        secret=b"secret",
        copies=copies,
    )
    return FakeHost(identity=identity)


def members(epoch: int, *names: str) -> Membership:
    return Membership(
        run=RunId("run"),
        epoch=Epoch(epoch),
        members=tuple(
            Member(trainer=TrainerId(n), rank=Rank(r), node=NodeId("node-1"), host="127.0.0.1", port=1)
            for r, n in enumerate(names)
        ),
    )


class Crew:
    """Several trainers as threads of this process, all running one function."""

    def __init__(self, tmp_path, names, **spec):
        self.fabric = Fabric()
        self.hosts = {n: make_host(tmp_path, n, **spec) for n in names}
        self.status = {}
        self.threads = []

    def members(self, epoch, *names):
        for name in names:
            self.hosts[name].mailbox.put(members(epoch, *names))

    def start(self, function, *names):
        from atoll.workers.context import run_function

        def body(name):
            self.status[name] = run_function(self.hosts[name], function, connect=self.fabric.connect)

        for name in names or self.hosts:
            thread = threading.Thread(target=body, args=(name,), daemon=True, name=f"atoll-test-{name}")
            thread.start()
            self.threads.append(thread)

    def join(self, timeout=60):
        for thread in self.threads:
            thread.join(timeout)
            assert not thread.is_alive(), "a trainer hangs"


class Connected(Crew):
    """A crew whose trainers have listeners and meet over them."""

    def __init__(self, tmp_path, names):
        from atoll.collectives.tcp_communicator import connect
        from atoll.collectives.tcp_transport import Listener

        super().__init__(tmp_path, names, workers=len(names))
        self.fabric.connect = connect
        self.told = threading.Condition()
        for host in self.hosts.values():
            host.listener = Listener("127.0.0.1", b"secret", "run")
            host.on_tell = self._heard

    def _heard(self, *_):
        with self.told:
            self.told.notify_all()

    def until(self, true):
        with self.told:
            assert self.told.wait_for(true, 20), {n: h.told for n, h in self.hosts.items()}

    def meet(self, epoch, *names):
        whole = Membership(
            run=RunId("run"),
            epoch=Epoch(epoch),
            members=tuple(
                Member(
                    trainer=TrainerId(n),
                    rank=Rank(r),
                    node=NodeId("node-1"),
                    host="127.0.0.1",
                    port=self.hosts[n].listener.port,
                )
                for r, n in enumerate(names)
            ),
        )
        for name in names:
            self.hosts[name].mailbox.put(whole)

    def waits(self, name):
        from atoll.schema.messages import Waiting

        return self.hosts[name].facts(Waiting)

    def close(self):
        for host in self.hosts.values():
            host.listener.close()


@pytest.fixture
def connected(tmp_path):
    """Three trainers that meet over sockets."""
    crew = Connected(tmp_path, ("a", "b", "c"))
    yield crew
    crew.close()


@pytest.fixture
def crew(tmp_path):
    return lambda *names, **spec: Crew(tmp_path, names, **spec)


@pytest.fixture
def lone_host(tmp_path):
    """One trainer whose first membership is itself alone."""

    def make(**spec):
        from atoll.schema.messages import TrainerReady

        host = make_host(tmp_path, **spec)
        host.on_tell = lambda h, fact: isinstance(fact, TrainerReady) and h.mailbox.put(members(1, "a"))
        return host

    return make
