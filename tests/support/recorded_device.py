"""A device that is none: streams, events, memory and a collective library of several ranks, on CPU tensors.

It is as lazy as CUDA may be. A stream carries out nothing until somebody asks an event, and then only what that event
depends on: what nobody ordered before is not done yet. Every access (of a copy, a collective, the program, the network)
is held against all earlier ones of the same bytes: two that conflict must be ordered by streams, events, and what the
host has seen, or `World.faults` says which. An aborted collective leaves garbage in its target, as NCCL's do.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field

import torch

from atoll.collectives.nccl_cuda import _fitting
from atoll.collectives.work import Work

GARBAGE = 0x7F
_OPS = {"sum": torch.add, "min": torch.minimum, "max": torch.maximum}


@dataclass(eq=False)
class Task:
    """Something in a stream. `run` returns whether it could be carried out."""

    what: str
    run: object
    clock: dict


@dataclass
class Access:
    start: int
    end: int
    write: bool
    actor: str
    tick: int
    what: str


@dataclass(eq=False)
class World:
    """All ranks of a test."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    calls: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    groups: dict = field(default_factory=dict)
    accesses: dict = field(default_factory=lambda: defaultdict(list))
    network: list = field(default_factory=list)
    alive: list = field(default_factory=list)  # tensors whose addresses must not be given to others

    def touch(self, tensor, what, clock, actor, *, write):
        """An access that is ordered after what `clock` knows."""
        if tensor.numel() == 0:
            return
        base = tensor.untyped_storage().data_ptr()
        start = tensor.data_ptr() - base
        end = start + tensor.numel() * tensor.itemsize
        self.alive.append(tensor)
        for area, who in self.network:
            if area[0] == base and area[1] < end and start < area[2]:
                self.faults.append(f"{what} touches what {who} still uses")
        for old in self.accesses[base]:
            conflict = old.start < end and start < old.end and (old.write or write)
            if conflict and clock.get(old.actor, 0) < old.tick:
                self.faults.append(f"{what} is not ordered after {old.what}")
        self.accesses[base].append(Access(start, end, write, actor, clock[actor], what))


class Event:
    def __init__(self, device):
        self.device, self.clock, self.stream, self.done = device, None, None, False

    def record(self, stream):
        with self.device.world.lock:
            self.clock, self.stream, self.done = dict(stream.clock), stream, False
            stream.add("record", self._reached)

    def _reached(self):
        self.done = True
        return True

    def query(self):
        world = self.device.world
        with world.lock:
            if self.stream is None:
                world.faults.append("an event was asked before it was recorded")
                return True
            self.stream.drive(lambda: self.done)
            if self.done:
                merge(self.device.host, self.clock)
            return self.done


class Stream:
    def __init__(self, device, name):
        self.device, self.name = device, name
        self.actor = f"{name} of rank {device.rank}"
        self.clock = {self.actor: 0}
        self.tasks = deque()
        self.driving = False

    def add(self, what, run):
        """In its turn, after what the host knows now."""
        merge(self.clock, self.device.host)
        self.clock[self.actor] += 1
        self.tasks.append(Task(what, run, dict(self.clock)))
        return self.tasks[-1]

    def work(self, what, run, reads=(), writes=()):
        with self.device.world.lock:
            said = f"{what} in {self.actor}"
            self.device.world.calls.append((self.device.rank, self.name, what))
            task = self.add(said, run)
            for tensors, write in ((reads, False), (writes, True)):
                for tensor in tensors:
                    self.device.world.touch(tensor, said, task.clock, self.actor, write=write)
            return task

    def wait_event(self, event):
        with self.device.world.lock:
            self.add("wait", lambda: event.stream.drive(lambda: event.done))
            merge(self.clock, event.clock)

    def drive(self, enough):
        """Carry out until `enough()`; False where that is not possible yet."""
        if self.driving:
            return enough()
        self.driving = True
        try:
            while not enough():
                if not self.tasks or not self.tasks[0].run():
                    return False
                self.tasks.popleft()
            return True
        finally:
            self.driving = False

    def query(self):
        with self.device.world.lock:
            return self.drive(lambda: not self.tasks)


def merge(clock, other):
    for actor, tick in other.items():
        clock[actor] = max(clock.get(actor, 0), tick)


class RecordedDevice:
    """One rank's device; `caller` is the stream that its program works in."""

    def __init__(self, world, rank):
        self.world, self.rank = world, rank
        self.host = {f"host of rank {rank}": 0}
        self.caller = Stream(self, "caller")
        self.streams = []
        self.entered = set()

    def enter(self):
        self.entered.add(threading.get_ident())

    def _inside(self, what):
        if threading.get_ident() not in self.entered:
            self.world.faults.append(f"{what} by a thread of rank {self.rank} that has not entered the device")

    def owns(self, buffer):
        return buffer.device.type == "cpu"

    def current_stream(self):
        return self.caller

    def side_stream(self):
        self.streams.append(Stream(self, ("island", "down", "up")[len(self.streams)]))
        return self.streams[-1]

    def event(self):
        return Event(self)

    def memory(self, count, dtype, stream):
        self._inside("memory")
        mine = [g[r] for g in self.world.groups.values() for r in g if g[r].device is self]
        if any(not call.done for library in mine for call in library.issued if not library.aborted):
            self.world.faults.append("memory is made while a collective is under way: that can wait for it")
        return torch.full((count * dtype.itemsize,), GARBAGE, dtype=torch.uint8).view(dtype)

    def pinned(self, count, dtype):
        return self.memory(count, dtype, None)

    def copy(self, source, target, stream):
        self._inside("copy")
        assert source.shape == target.shape
        assert source.dtype == target.dtype
        stream.work("copy", lambda: target.copy_(source) is not None, [source], [target])

    def unique_id(self):
        return bytes([self.rank]) * 128

    def library(self, size, rank, unique_id):
        self._inside("library")
        group = self.world.groups.setdefault(unique_id, {})
        assert rank not in group
        group[rank] = Library(self, size, rank, group)
        return group[rank]

    def program(self, what, run, reads=(), writes=()):
        """Work of the caller, in its stream."""
        self.caller.work(what, lambda: run() is not None or True, reads, writes)

    def finish(self):
        """Everything in all streams that can be carried out."""
        for stream in (self.caller, *self.streams):
            stream.query()


class Library:
    def __init__(self, device, size, rank, group):
        self.device, self.size, self.rank, self.group = device, size, rank, group
        self.issued = []
        self.aborted = self.destroyed = False
        self.error = None

    def reduce_scatter(self, source, target, op, stream):
        _fitting(source, target, self.size, 1)
        self._call("reduce_scatter", source, target, op, stream)

    def all_gather(self, source, target, stream):
        _fitting(source, target, 1, self.size)
        self._call("all_gather", source, target, None, stream)

    def all_reduce(self, source, target, op, stream):
        _fitting(source, target, 1, 1)
        self._call("all_reduce", source, target, op, stream)

    def _call(self, kind, source, target, op, stream):
        assert not self.aborted, "called after the abort"
        self.device._inside(kind)
        call = Call(kind, source, target, op, stream)
        with self.device.world.lock:
            number = len(self.issued)
            self.issued.append(call)
            call.task = stream.work(kind, lambda: self._run(number), [source], [target])

    def _run(self, number):
        call = self.issued[number]
        if call.done:
            return True
        if self.aborted:
            call.target.view(torch.uint8).fill_(GARBAGE)
            return True
        members = [self.group.get(r) for r in range(self.size)]
        if any(m is None or m.aborted or len(m.issued) <= number for m in members):
            return False
        calls = [m.issued[number] for m in members]
        if len({(c.kind, c.op, c.source.numel(), c.source.dtype) for c in calls}) > 1:
            return False  # as NCCL: it hangs
        for other in calls:
            if other is not call and not other.stream.drive(lambda c=other: c.stream.tasks[0] is c.task):
                return False
        compute(calls)
        return True

    def check(self):
        if self.error:
            raise self.error

    def abort(self):
        self.device._inside("abort")
        with self.device.world.lock:
            self.aborted = True

    def destroy(self):
        self.device._inside("destroy")
        self.destroyed = True


@dataclass(eq=False)
class Call:
    kind: str
    source: torch.Tensor
    target: torch.Tensor
    op: str | None
    stream: Stream
    task: Task | None = None
    done: bool = False


def compute(calls):
    if calls[0].kind == "all_gather":
        whole = torch.cat([c.source for c in calls])
    else:
        wide = torch.float64 if calls[0].source.is_floating_point() else torch.int64
        whole = calls[0].source.to(wide)
        for c in calls[1:]:
            whole = _OPS[c.op](whole, c.source.to(wide))
        whole = whole.to(calls[0].source.dtype)
    for position, c in enumerate(calls):
        each = c.target.numel()
        scattered = c.kind == "reduce_scatter"
        c.target.copy_(whole[position * each : (position + 1) * each] if scattered else whole)
        c.done = True


class RecordedCrossing:
    """A `Crossing` whose use of host memory is held against the device's."""

    def __init__(self, inner, device):
        self.inner, self.device = inner, device

    def all_reduce(self, members, buffer, op):
        world, outer = self.device.world, Work()
        with world.lock:
            who = f"the network of rank {self.device.rank}"
            world.calls.append((self.device.rank, "host", "cross"))
            actor = next(iter(self.device.host))
            self.device.host[actor] += 1
            world.touch(buffer, who, self.device.host, actor, write=True)
            base = buffer.untyped_storage().data_ptr()
            start = buffer.data_ptr() - base
            area = ((base, start, start + buffer.numel() * buffer.itemsize), who)
            world.network.append(area)

        def ended(work):
            with world.lock:
                world.network.remove(area)
            if work.poison is None:
                outer.finish(buffer)
            else:
                outer.spoil(work.poison)

        self.inner.all_reduce(members, buffer, op).add_done_callback(ended)
        return outer
