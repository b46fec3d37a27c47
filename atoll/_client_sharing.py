"""Calls about the queue, for both clients: what would become of a job, why a run waits, who has what."""

from __future__ import annotations

from typing import Any, TypeVar

from atoll._client_calls import Call, run_path
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.queues import Sharing
from atoll.schema.sharing_views import PlanView, TopView, WhyView
from atoll.schema.spec import JobSpec

T = TypeVar("T")


def plan(spec: JobSpec) -> Call[PlanView]:
    """A dry run of the scheduler."""
    return Call(method="POST", path="/api/plan", body=to_plain(spec), read=lambda a: from_plain(PlanView, a))


def why(run: str) -> Call[WhyView]:
    """Why a run stands as it does."""
    return Call(method="GET", path=run_path(run, "/why"), read=lambda a: from_plain(WhyView, a))


def top() -> Call[TopView]:
    """Queues, shares and goodput."""
    return Call(method="GET", path="/api/top", read=lambda a: from_plain(TopView, a))


def queues() -> Call[Sharing]:
    """How the cluster is shared."""
    return Call(method="GET", path="/api/queues", read=lambda a: from_plain(Sharing, a))


def set_queues(sharing: Sharing) -> Call[None]:
    """Share it otherwise. Twice is as once."""
    return Call(method="PUT", path="/api/queues", body=to_plain(sharing), read=_nothing)


def resize(run: str, workers: int, reason: str) -> Call[None]:
    """Another size. Twice is as once."""
    body = {"workers": workers, "reason": reason}
    return Call(method="POST", path=run_path(run, "/resize"), body=body, read=_nothing)


def suspend(run: str, reason: str) -> Call[None]:
    """Out of its seats."""
    path = run_path(run, "/suspend")
    return Call(method="POST", path=path, body={"reason": reason}, read=_nothing, repeatable=False)


def resume(run: str, reason: str) -> Call[None]:
    """Back into the queue."""
    path = run_path(run, "/resume")
    return Call(method="POST", path=path, body={"reason": reason}, read=_nothing, repeatable=False)


def _nothing(plain: Any) -> None:
    del plain


class SharingCalls:
    """What `Client` says about the queue."""

    def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    def plan(self, spec: JobSpec) -> PlanView:
        """What would become of a job if it were submitted now. Raises `SpecError`."""
        return self._send(plan(spec))

    def why(self, run: str) -> WhyView:
        """Why a run waits, or stands as it does. Raises `NotFoundError`."""
        return self._send(why(run))

    def top(self) -> TopView:
        """Queues and shares now, and what the devices were used for."""
        return self._send(top())

    def queues(self) -> Sharing:
        """How the cluster is shared."""
        return self._send(queues())

    def set_queues(self, sharing: Sharing) -> None:
        """Share the cluster so from now on. Raises `SpecError`."""
        self._send(set_queues(sharing))

    def resize(self, run: str, workers: int, reason: str = "asked by a client") -> None:
        """Have an elastic run go on with so many workers, and with no more. Raises `SpecError`."""
        self._send(resize(run, workers, reason))

    def suspend(self, run: str, reason: str = "asked by a client") -> None:
        """Have a run save, leave its seats and wait until it is resumed. Raises `SpecError`."""
        self._send(suspend(run, reason))

    def resume(self, run: str, reason: str = "asked by a client") -> None:
        """Let a run that was suspended wait for seats again. Raises `SpecError`."""
        self._send(resume(run, reason))


class AsyncSharingCalls:
    """What `AsyncClient` says about the queue."""

    async def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def plan(self, spec: JobSpec) -> PlanView:
        """What would become of a job if it were submitted now. Raises `SpecError`."""
        return await self._send(plan(spec))

    async def why(self, run: str) -> WhyView:
        """Why a run waits, or stands as it does. Raises `NotFoundError`."""
        return await self._send(why(run))

    async def top(self) -> TopView:
        """Queues and shares now, and what the devices were used for."""
        return await self._send(top())

    async def queues(self) -> Sharing:
        """How the cluster is shared."""
        return await self._send(queues())

    async def set_queues(self, sharing: Sharing) -> None:
        """Share the cluster so from now on. Raises `SpecError`."""
        await self._send(set_queues(sharing))

    async def resize(self, run: str, workers: int, reason: str = "asked by a client") -> None:
        """Have an elastic run go on with so many workers, and with no more. Raises `SpecError`."""
        await self._send(resize(run, workers, reason))

    async def suspend(self, run: str, reason: str = "asked by a client") -> None:
        """Have a run save, leave its seats and wait until it is resumed. Raises `SpecError`."""
        await self._send(suspend(run, reason))

    async def resume(self, run: str, reason: str = "asked by a client") -> None:
        """Let a run that was suspended wait for seats again. Raises `SpecError`."""
        await self._send(resume(run, reason))
