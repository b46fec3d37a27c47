"""Which pieces of which logs are to be fetched from agents, so that what trainers wrote outlives their nodes.

Each trainer that began is asked for what is new, in turn, until its process is gone and nothing is new. What is fetched
goes into the history, which bounds it. After a restart it goes on where the history ends; of runs that ended long before
nothing is asked, their nodes were asked then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.control_plane import effects as fx
from atoll.control_plane.state import Cluster, Run
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.messages import LogChunk

# Agents are asked this often; what a node wrote in between is lost with it.
KEEP_EVERY_S = 5.0
PIECE_BYTES = 1 << 16
# For each trainer in each round: 200 KB/s, more than anybody reads, and a hundredth of what a link carries.
PIECES = 16
# A run that ended before may have a node that was away for a while.
LATE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWanted:
    """The next piece of one log."""

    run: RunId
    trainer: TrainerId
    node: NodeId
    offset: int


class LogKeeper:
    """How far each log was kept. `known` is how far the history goes."""

    def __init__(self, known: Mapping[tuple[RunId, TrainerId], int]) -> None:
        self._kept = dict(known)
        self._done: set[tuple[RunId, TrainerId]] = set()

    def wanted(self, cluster: Cluster, now: float) -> list[LogWanted]:
        """One piece of each log that may have news."""
        runs = [run for run in cluster.runs.values() if run.ended_at is None or now - run.ended_at < LATE_S]
        return [
            LogWanted(run=run.run, trainer=t.trainer, node=t.node, offset=self._kept.get((run.run, t.trainer), 0))
            for run in runs
            for t in run.trainers.values()
            if t.began is not None and (run.run, t.trainer) not in self._done
        ]

    def take(self, want: LogWanted, chunk: LogChunk, run: Run | None, now: float) -> fx.KeepLog | None:
        """What to keep of an answer, or None: nothing is new. A log of a process that is gone is then done."""
        key = (want.run, want.trainer)
        if chunk.next_offset <= want.offset or chunk.problem:
            trainer = run.trainers.get(want.trainer) if run else None
            if trainer is None or trainer.gone:
                self._done.add(key)
            return None
        self._kept[key] = chunk.next_offset
        return fx.KeepLog(
            run=want.run,
            trainer=want.trainer,
            start=want.offset,
            stop=chunk.next_offset,
            text=chunk.text,
            at=now,
        )
