"""One all-reduce at a time through the stages of `staging`: three streams, pinned memory, the host's part between them.

The caller's buffer is only read, after what its stream had queued for it. The result grows in memory of ours, and is
copied into the buffer once the host has seen the last gathering end: an aborted kernel leaves early with anything in
its target, and what was queued behind it runs. The copy is queued while the operation's work is locked, so either the
operation is done or the buffer is never written. The caller's stream waits for the copy by an event, its thread never.

Memory is kept from operation to operation and grows. It belongs to the island's stream; the two streams for copies use
it only between steps that the host has seen the end of, so freeing it is safe whenever that stream is idle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from atoll.collectives.nccl_crossing import Crossing
from atoll.collectives.nccl_device import Device, Event, Library, Stream
from atoll.collectives.staging import (
    DEPTH,
    SHARD_BYTES,
    Layout,
    Mark,
    Queue,
    Stage,
    Step,
    chunks,
    pieces_of,
    schedule,
    shard,
    width,
)
from atoll.collectives.work import Work


@dataclass(slots=True)
class Operation:
    """`source` [elements] is the buffer's memory, or a dense copy of it; `stream` is the caller's, `ready` a place in it."""

    buffer: torch.Tensor
    source: torch.Tensor
    op: str
    work: Work
    stream: Stream
    ready: Event


class Host(Protocol):
    """How the thread that carries operations out waits and calls; both raise where the epoch has ended."""

    def until(self, event: Event) -> None:
        """Return once the device has passed it."""

    def ended(self, work: Work) -> None:
        """Return once it is done."""

    def call(self, function: Callable[[Library], None]) -> None:
        """Call the library, unless it was aborted."""


@dataclass(slots=True)
class _Progress:
    """One operation's ranges, events and crossings under way."""

    operation: Operation
    ranges: tuple[tuple[int, int], ...]
    result: torch.Tensor
    events: dict[Mark, Event] = field(default_factory=dict)
    crossings: dict[Mark, list[Work]] = field(default_factory=dict)


class Staging:
    """Streams and memory of one rank in its island. One thread calls `carry_out`."""

    def __init__(
        self,
        device: Device,
        crossing: Crossing,
        layout: Layout,
        rank: int,
        *,
        depth: int = DEPTH,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._device, self._crossing, self._layout, self._rank = device, crossing, layout, rank
        self._depth, self._shard_bytes = depth, shard_bytes
        number, self._position = layout.place(rank)
        self._size = layout.sizes[number]
        self._streams = {q: device.side_stream() for q in (Queue.ISLAND, Queue.DOWN, Queue.UP)}
        self._memory: dict[str, torch.Tensor] = {}

    @property
    def idle(self) -> bool:
        """True where nothing of ours runs or waits on the device."""
        return all(stream.query() for stream in self._streams.values())

    def carry_out(self, operation: Operation, host: Host, agreed: Work | None) -> None:
        """All steps, then the result into the caller's buffer, if by then the ranks are known to mean the same."""
        count, itemsize = operation.source.numel(), operation.source.itemsize
        whole = self._layout.alone
        ranges = ((0, count),) if whole else chunks(count, itemsize, self._layout, self._shard_bytes)
        padded = sum(self._size * width(end - start, self._size) for start, end in ranges)
        progress = _Progress(operation, ranges, self._on_device("result", padded, operation.source.dtype))
        self._streams[Queue.ISLAND].wait_event(operation.ready)
        steps = schedule(len(ranges), self._depth, alone=whole)
        self._prepare(steps, progress)
        for step in steps:
            self._wait(step, progress, host)
            self._issue(step, progress, host)
        # Its stream's last: whoever has seen this one has seen them all.
        host.until(progress.events[steps[-1].mark])
        if agreed is not None:
            host.ended(agreed)
        result = progress.result[:count]
        operation.work.finish(operation.buffer, write=lambda: self._bring_home(operation, result))

    def _bring_home(self, operation: Operation, result: torch.Tensor) -> None:
        stream, home = self._streams[Queue.ISLAND], self._device.event()
        self._device.copy(result.view(operation.buffer.shape), operation.buffer, stream)
        home.record(stream)
        operation.stream.wait_event(home)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _wait(self, step: Step, progress: _Progress, host: Host) -> None:
        for mark in step.host_waits:
            if mark.stage is Stage.CROSS:
                for work in progress.crossings.pop(mark):
                    host.ended(work)
            else:
                host.until(progress.events[mark])
        for mark in step.queue_waits:
            self._streams[step.queue].wait_event(progress.events[mark])

    def _issue(self, step: Step, progress: _Progress, host: Host) -> None:
        match step.stage:
            case Stage.REDUCE:
                self._reduce(step, progress, host)
            case Stage.FETCH:
                memory, own = self._shards(step, progress)
                self._device.copy(memory[: own.numel()], own, self._streams[step.queue])
            case Stage.CROSS:
                self._cross(step, progress)
                return
            case Stage.PUT:
                memory, own = self._shards(step, progress)
                self._device.copy(own, memory[: own.numel()], self._streams[step.queue])
            case Stage.GATHER:
                self._gather(step, progress, host)
            case Stage.WHOLE:
                source, op, stream = progress.operation.source, progress.operation.op, self._streams[step.queue]
                target = progress.result[: source.numel()]
                host.call(lambda library: library.all_reduce(source, target, op, stream))
        progress.events[step.mark] = event = self._device.event()
        event.record(self._streams[step.queue])

    def _reduce(self, step: Step, progress: _Progress, host: Host) -> None:
        start, end = progress.ranges[step.chunk]
        source, stream = progress.operation.source[start:end], self._streams[step.queue]
        target = self._shards(step, progress)[0]
        padded = self._padding(step, progress)
        if padded is not None:
            # What the padding holds is summed and never looked at.
            self._device.copy(source, padded[: source.numel()], stream)
            source = padded
        host.call(lambda library: library.reduce_scatter(source, target, progress.operation.op, stream))

    def _gather(self, step: Step, progress: _Progress, host: Host) -> None:
        start, _ = progress.ranges[step.chunk]
        source, stream = self._shards(step, progress)[0], self._streams[step.queue]
        target = progress.result[start : start + self._size * source.numel()]
        host.call(lambda library: library.all_gather(source, target, stream))

    def _cross(self, step: Step, progress: _Progress) -> None:
        """Each piece over its owners; pieces lie in the shard one after the other."""
        start, end = progress.ranges[step.chunk]
        first, _ = shard(end - start, self._size, self._position)
        own = self._shards(step, progress)[1]
        progress.crossings[step.mark] = [
            self._crossing.all_reduce(p.members, own[p.start - first : p.end - first], progress.operation.op)
            for p in pieces_of(end - start, self._layout, self._rank)
        ]

    # -- memory ------------------------------------------------------------------------------------------------------

    def _prepare(self, steps: tuple[Step, ...], progress: _Progress) -> None:
        """All memory before the first call: making some can wait for the device, and a kernel there for other ranks."""
        for step in steps:
            if step.stage is Stage.REDUCE and (step.chunk < self._depth or step.chunk == len(progress.ranges) - 1):
                self._shards(step, progress)
                self._padding(step, progress)

    def _padding(self, step: Step, progress: _Progress) -> torch.Tensor | None:
        """Memory for a chunk that does not divide evenly (only the last), filled up to where it does."""
        start, end = progress.ranges[step.chunk]
        even = self._size * width(end - start, self._size)
        return self._on_device("padded", even, progress.operation.source.dtype) if even != end - start else None

    def _shards(self, step: Step, progress: _Progress) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's shard: on the device with its padding, on the host without."""
        start, end = progress.ranges[step.chunk]
        longest, dtype = progress.ranges[0][1], progress.operation.source.dtype
        each, most = width(end - start, self._size), width(longest, self._size)
        first, last = shard(end - start, self._size, self._position)
        on_device = self._on_device(f"shard {step.slot}", most, dtype)
        pinned = self._typed(f"pinned {step.slot}", most, dtype, lambda n: self._device.pinned(n, torch.uint8))
        return on_device[:each], pinned[: last - first]

    def _on_device(self, name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        stream = self._streams[Queue.ISLAND]
        return self._typed(name, count, dtype, lambda n: self._device.memory(n, torch.uint8, stream))

    def _typed(self, name: str, count: int, dtype: torch.dtype, make: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """[count] of what is kept under `name`, made anew where it is too small."""
        need = count * dtype.itemsize
        kept = self._memory.get(name)
        if kept is None or kept.numel() < need:
            self._memory.pop(name, None)
            self._memory[name] = kept = make(need)
        return kept[:need].view(dtype)
