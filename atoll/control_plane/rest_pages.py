"""What a page of the dashboard reads and may do, in the name of whoever opened it.

A page stays open for days and asks over its WebSocket, past the routes and their table: so each reading asks whether the
session is still good, and stopping a run asks what the route of the same name asks, and is written into the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from atoll.control_plane.identity import Caller
from atoll.control_plane.permissions import check_owner, check_role, required
from atoll.control_plane.rest_answers import status_of
from atoll.control_plane.rest_authorize import owner_of, people_of, shown_to
from atoll.control_plane.rest_people import People, caller_of
from atoll.control_plane.rest_source import ClusterSource
from atoll.errors import AtollError, ForbiddenError
from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import LogChunk
from atoll.schema.sharing_views import TopView
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, RunView, TopologyView

_STOP = "/api/runs/{run}/stop"
_ACCEPTED = 202


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSource:
    """The cluster as `caller` may see it; satisfies `atoll.ui.source.Source`."""

    source: ClusterSource
    people: People
    caller: Caller
    scope: Scope

    @classmethod
    def of(cls, source: ClusterSource, request: Request) -> PageSource:
        """The source of the page that `request` asks for."""
        return cls(source=source, people=people_of(request), caller=caller_of(request.scope), scope=request.scope)

    def _seen(self) -> ClusterSource:
        self.people.still(self.caller)
        return self.source

    async def runs(self) -> Sequence[RunView]:
        """All runs."""
        return await self._seen().runs()

    async def run(self, run: RunId) -> RunView:
        """One run."""
        return shown_to(self.caller, await self._seen().run(run))

    async def events(self, run: RunId | None, after: int) -> Sequence[EventView]:
        """Events numbered above `after`."""
        return await self._seen().events(run, after)

    async def metrics(self, run: RunId, after: int) -> Sequence[MetricPoint]:
        """Committed steps above `after`."""
        return await self._seen().metrics(run, after)

    async def checkpoints(self, run: RunId) -> Sequence[CheckpointView]:
        """Durable checkpoints."""
        return await self._seen().checkpoints(run)

    async def nodes(self) -> Sequence[NodeView]:
        """The hosts."""
        return await self._seen().nodes()

    async def top(self) -> TopView | None:
        """Queues and goodput."""
        return await self._seen().top()

    async def topology(self) -> TopologyView:
        """The network."""
        return await self._seen().topology()

    async def logs(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk:
        """A piece of a log."""
        return await self._seen().logs(run, trainer, offset, limit)

    async def stop(self, run: RunId) -> None:
        """Ask the run to end. Raises `ForbiddenError` where the caller may not."""
        path = _STOP.format(run=run)
        caller = self.people.still(self.caller)
        try:
            check_role(caller, required("POST", _STOP), "stopping a run")
            check_owner(caller, owner_of(await self.source.run(run)), run)
        except ForbiddenError as error:
            await self.people.tell({**self.scope, "path": path, "method": "PAGE"}, caller, status_of(error), error.code)
            raise
        entry = await self.people.begin({**self.scope, "method": "PAGE"}, caller, path=path)
        status, code = _ACCEPTED, ""
        try:
            await self.source.stop(run, f"asked at the dashboard by {caller.user}")
        except AtollError as error:
            status, code = status_of(error), error.code
            raise
        finally:
            if entry is not None:
                await self.people.finish(entry, status, code)
