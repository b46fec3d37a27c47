"""Where the dashboard gets its facts.

The pages ask a `Source` about once a second for each open browser tab and keep what they were told, so every method that
can grow takes a cursor: `after` is the last event number or step the caller already holds, and the answer starts behind
it, oldest first. A source may answer with part of what it has; the page asks again from the new cursor. A run that does
not exist is a `NotFoundError`; any `AtollError` is shown as a notice above what the page still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.sharing_views import TopView
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, RunView, TopologyView


class Source(Protocol):
    """What the dashboard reads, and the one thing it may do: ask a run to stop."""

    async def runs(self) -> Sequence[RunView]:
        """All runs that the history holds."""
        ...

    async def run(self, run: RunId) -> RunView:
        """One run. Raises `NotFoundError`."""
        ...

    async def events(self, run: RunId | None, after: int) -> Sequence[EventView]:
        """Events with a number above `after`, of `run` or of the whole cluster, oldest first."""
        ...

    async def metrics(self, run: RunId, after: int) -> Sequence[MetricPoint]:
        """Committed steps above `after`, oldest first."""
        ...

    async def checkpoints(self, run: RunId) -> Sequence[CheckpointView]:
        """Durable checkpoints of the run."""
        ...

    async def nodes(self) -> Sequence[NodeView]:
        """The hosts of the cluster."""
        ...

    async def top(self) -> TopView | None:
        """Queues and goodput; None while the control plane is away."""
        ...

    async def topology(self) -> TopologyView:
        """The network: NICs, measured links, trunks and islands."""
        ...

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        """Up to `limit` bytes of a trainer's log from `offset`; a negative offset counts from the end."""
        ...

    async def stop(self, run: RunId) -> None:
        """Ask the run to end at its next step boundary."""
        ...
