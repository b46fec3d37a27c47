"""What plain Ray gives gangs: placement groups, all or nothing, of the size that was asked for, first come first served.

`Fifo` is strict: while the oldest does not fit, nobody starts. `Backfill` lets others start before it if they delay it not
(EASY: Lifka, "The ANL/IBM SP Scheduling System", 1995): they end before the oldest begins, or take what is left over then.
It is told exactly when each run will end, which no real queue knows: it is as good as backfill gets. Both pack as Ray's
PACK strategy does: on the fullest node that holds the whole gang, else on as few nodes as possible. Neither asks what
type of device a node has nor on which island it is, and neither takes anything back.
"""

from __future__ import annotations

from collections.abc import Iterator

from atoll.schema.ids import NodeId
from atoll.simulate.policy import Start, Untold
from atoll.simulate.progress import pace
from atoll.simulate.world import Run, World


class _Room:
    """What is free, as it becomes less while one decision is made."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._taken: dict[NodeId, int] = {}
        self.devices = world.free_devices

    def pack(self, workers: int) -> tuple[NodeId, ...] | None:
        """Nodes for a gang, or None if they do not suffice."""
        if workers > self.devices:
            return None
        chosen: list[NodeId] = []
        while left := workers - len(chosen):
            node, room = self._best(left)
            count = min(room, left)
            self._taken[node] = self._taken.get(node, 0) + count
            chosen += [node] * count
        self.devices -= workers
        return tuple(chosen)

    def undo(self, nodes: tuple[NodeId, ...]) -> None:
        """Not taken after all."""
        for node in nodes:
            self._taken[node] -= 1
        self.devices += len(nodes)

    def _best(self, wanted: int) -> tuple[NodeId, int]:
        """The fullest that holds it all, else that with most room."""
        best: tuple[NodeId, int] | None = None
        for node, room in self._candidates():
            fits, before = room >= wanted, best is not None and best[1] >= wanted
            if (
                best is None
                or (fits and (not before or room < best[1]))
                or (not fits and not before and room > best[1])
            ):
                best = (node, room)
        if best is None:
            raise LookupError(wanted)
        return best

    def _candidates(self) -> Iterator[tuple[NodeId, int]]:
        """One node of each amount of room, and those that this decision touched."""
        for room, nodes in enumerate(self._world.by_room):
            if room and (node := next((n for n in nodes if n not in self._taken), None)):
                yield node, room
        for node, count in self._taken.items():
            if left := self._world.free[node] - count:
                yield node, left


class Fifo(Untold):
    """Strictly in order of submission."""

    name = "fifo"

    def decide(self, world: World) -> Iterator[Start]:
        """The oldest ones, as far as they fit."""
        room = _Room(world)
        for run in world.waiting.values():
            nodes = room.pack(run.job.workers)
            if nodes is None:
                return
            yield Start(run=run.job.id, nodes=nodes)


class Backfill(Untold):
    """In order of submission, and others where they delay the oldest not."""

    name = "fifo-backfill"

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s

    def decide(self, world: World) -> Iterator[Start]:
        """The oldest ones, then those that fit around the first that does not."""
        room = _Room(world)
        started: list[tuple[float, int]] = []
        head: Run | None = None
        begins, spare = 0.0, 0
        for run in world.waiting.values():
            workers = run.job.workers
            if workers > room.devices:
                if head is None:
                    head = run
                    begins, spare = _reservation(world, started, room.devices, workers)
                continue
            nodes = room.pack(workers)
            if nodes is None:
                continue
            ends = world.now + self._start_s + run.job.samples / pace(run.job, nodes, world.cluster).rate
            if head is None or ends <= begins or workers <= spare:
                spare -= workers if head is not None and ends > begins else 0
                started.append((ends, workers))
                yield Start(run=run.job.id, nodes=nodes)
            else:
                room.undo(nodes)


def _reservation(world: World, started: list[tuple[float, int]], free: int, wanted: int) -> tuple[float, int]:
    """When so many devices will be free at the latest, and how many more then."""
    ends = sorted([(run.ends_at, len(run.nodes)) for run in world.running.values()] + started)
    for at, count in ends:
        free += count
        if free >= wanted:
            return at, free - wanted
    return float("inf"), free
