"""`Client` and `AsyncClient`: the cluster's REST interface as typed calls.

    with atoll.Client() as client:
        run = client.submit(spec)
        for item in client.follow(run):     # EventView | MetricPoint | RunView, until the run has ended
            ...

Without arguments a client finds the cluster as `atoll.config.locate` says. Results are the views of
`atoll.schema.views`; refusals are the errors of `atoll.errors`. Calls that can be repeated without harm survive a
restart of the server; `follow` takes its stream up where it broke.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from atoll import _client_calls as calls
from atoll import _client_http as wire
from atoll import config
from atoll._client_async import AsyncClient
from atoll._client_calls import Call, VersionView
from atoll._client_logs import LOG_PIECE, LogFollower, LogPiece, LogReader
from atoll._client_people import PeopleCalls
from atoll._client_sharing import SharingCalls
from atoll._client_sse import Completion, Followed, Follower, FollowItem
from atoll.errors import ConnectError, NotFoundError, PeerLost
from atoll.launch_spec import read_job
from atoll.schema.harm import HarmWish
from atoll.schema.ids import RunId
from atoll.schema.messages import Finding, LogChunk
from atoll.schema.offers import Offers
from atoll.schema.spec import JobSpec
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, RunView, TopologyView

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

__all__ = ["AsyncClient", "Client", "FollowItem", "LogPiece", "VersionView"]


class Client(SharingCalls, PeopleCalls):
    """Speaks to one cluster. Close it, or use it as a context manager.

    `patience_s` is how long a repeatable call is tried while no connection comes about, `answer_s` how long one answer
    may take.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = wire.PATIENCE_S,
        answer_s: float = wire.ANSWER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx  # noqa: PLC0415 - 150 ms that `import atoll` must not cost

        target = config.locate(config.load(), address, token)
        self.url = target.url
        self.token = target.token
        self._patience_s = patience_s
        self._sleep = sleep
        self._http = httpx.Client(**wire.settings(target, answer_s))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- calls -------------------------------------------------------------------------------------------------------

    def submit(self, job: JobSpec | str | Path) -> RunId:
        """Hand over a job: a spec, or the path of a job file in TOML or YAML. Sent again after a break it is one job.

        Raises `SpecError`, with the lines at fault where a file has some, and `CapacityError`.
        """
        spec = job if isinstance(job, JobSpec) else read_job(job)
        return self._send(calls.submit(spec, wire.new_key()))

    def runs(self) -> list[RunView]:
        """All runs, the newest first."""
        found: list[RunView] = []
        while True:
            page = self._send(calls.runs(found[-1].run if found else None))
            found += page
            if len(page) < calls.RUNS_PAGE:
                return found

    def run(self, run: str) -> RunView:
        """One run with its spec. Raises `NotFoundError`."""
        return self._send(calls.run(run))

    def stop(self, run: str, reason: str = "asked by a client") -> None:
        """Ask a run to stop at its next step boundary."""
        self._send(calls.stop(run, reason))

    def harm(self, run: str, wish: HarmWish) -> float:
        """Hurt a trainer on purpose, where the run's spec says `chaos=True`; the moment of the order, in Unix seconds.

        Raises `NotFoundError`, and `SpecError` where the run does not allow it.
        """
        return self._send(calls.harm(run, wish))

    def beat(self, run: str) -> None:
        """Say that the run's driver lives; an attached run without a beat for 30 s stops."""
        self._send(calls.beat(run))

    def events(self, run: str, after: int = 0) -> list[EventView]:
        """Events numbered above `after`, oldest first."""
        found: list[EventView] = []
        while True:
            page = self._send(calls.events(run, found[-1].seq if found else after))
            found += page
            if len(page) < calls.PAGE:
                return found

    def metrics(self, run: str, after_step: int = -1) -> list[MetricPoint]:
        """Measurements of committed steps above `after_step`, oldest first."""
        found: list[MetricPoint] = []
        while True:
            page = self._send(calls.metrics(run, found[-1].step if found else after_step))
            found += page
            if len(page) < calls.PAGE:
                return found

    def checkpoints(self, run: str) -> list[CheckpointView]:
        """Durable checkpoints."""
        return self._send(calls.checkpoints(run))

    def nodes(self) -> list[NodeView]:
        """The hosts of the cluster."""
        return self._send(calls.nodes())

    def drain(self, node: str, within_s: float = 30.0, reason: str = "asked by a client") -> float:
        """Have a node emptied within so many seconds: trainers move at a step boundary, what is left then is ended.

        Until when, in Unix seconds; `nodes()` shows how far it is. Raises `NotFoundError`, `SpecError`.
        """
        return self._send(calls.drain(node, within_s, reason))

    def undrain(self, node: str) -> None:
        """Let trainers be placed on a drained node again. Raises `NotFoundError` where it is not drained."""
        self._send(calls.undrain(node))

    def offer(self, offers: Offers) -> None:
        """Tell which machines an autoscaler would start, so that runs which would fit with them are not refused."""
        self._send(calls.offer(offers))

    def topology(self) -> TopologyView:
        """The network: NICs, measured links, trunks and islands."""
        return self._send(calls.topology())

    def story(self, subject: str, limit: int = 200) -> list[EventView]:
        """What happened to a run, trainer or node, or what one cause brought about."""
        return self._send(calls.story(subject, limit))

    def doctor(self) -> list[Finding]:
        """Check every node."""
        return self._send(calls.doctor())

    def version(self) -> VersionView:
        """What answers at the address."""
        return self._send(calls.version())

    def models(self) -> list[str]:
        """The names of the models that are served."""
        return self._send(calls.models())

    def log(self, run: str, trainer: str, offset: int = 0, limit: int = LOG_PIECE) -> LogChunk:
        """A piece of one trainer's log; a negative `offset` counts from the end."""
        return self._send(calls.log(run, trainer, offset, limit))

    # -- streams -----------------------------------------------------------------------------------------------------

    def follow(
        self, run: str, *, after: int = 0, after_step: int = -1, on_gap: Callable[[str], None] | None = None
    ) -> Iterator[FollowItem]:
        """The run's events, steps and states as they come, until it has ended.

        A broken stream is taken up again; `on_gap` hears of each break. Raises `ConnectError` after `patience_s`
        without any answer.
        """
        follower: Followed[FollowItem] = Follower(after, after_step)
        yield from self._streamed(calls.run_path(run, "/stream"), follower, on_gap)

    def _streamed(self, path: str, follower: Followed[T], on_gap: Callable[[str], None] | None = None) -> Iterator[T]:
        """What `follower` makes of the stream at `path`, which is taken up where it breaks."""
        pauses = wire.pauses(self._patience_s)
        while not follower.ended:
            try:
                for item in self._streamed_once(path, follower):
                    pauses = wire.pauses(self._patience_s)
                    yield item
            except wire.transport_errors() as error:
                pause = next(pauses, None)
                if pause is None:
                    raise wire.unreachable(self.url, error) from None
                if on_gap is not None:
                    on_gap(str(error) or type(error).__name__)
                self._sleep(pause)

    def _streamed_once(self, path: str, follower: Followed[T]) -> Iterator[T]:
        given: dict[str, Any] = {"params": follower.reconnect(), "headers": follower.headers()}
        with self._http.stream("GET", path, timeout=wire.stream_timeout(), **given) as response:
            self._raise_refusal(response)
            for line in response.iter_lines():
                item = follower.feed(line)
                if item is not None:
                    yield item
        if not follower.ended:
            raise wire.ended_early()

    def logs(
        self,
        run: str,
        trainer: str | None = None,
        *,
        follow: bool = False,
        on_gap: Callable[[str], None] | None = None,
    ) -> Iterator[LogPiece]:
        """What the run's trainers wrote, piece by piece; of all of them unless one is named.

        With `follow` it goes on until the run has ended; a broken stream is taken up again, `on_gap` hears of each break.
        """
        if follow:
            yield from self._streamed(calls.run_path(run, "/logs/stream"), LogFollower(trainer), on_gap)
            return
        reader = LogReader(trainer)
        reader.see(self.run(run))
        while (want := reader.next()) is not None:
            try:
                chunk = self.log(run, want.trainer, want.offset)
            except NotFoundError:  # its node is gone, and it had written nothing: the others are read all the same
                if trainer is not None:
                    raise
                chunk = None
            piece = reader.take(want, chunk)
            if piece is not None:
                yield piece

    @overload
    def complete(
        self, prompt: str, *, model: str | None = None, stream: Literal[False] = False, **options: Any
    ) -> str: ...
    @overload
    def complete(
        self, prompt: str, *, model: str | None = None, stream: Literal[True], **options: Any
    ) -> Iterator[str]: ...
    def complete(
        self, prompt: str, *, model: str | None = None, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """A completion of `prompt` by a served model, the only one unless named; with `stream`, piece by piece.

        `options` are OpenAI's: max_tokens, temperature, seed, stop.
        """
        name = model or calls.only_model(self.models())
        call = calls.completion(prompt, name, stream=stream, options=options)
        return self._stream_completion(call) if stream else self._send(call)

    def _stream_completion(self, call: Call[str]) -> Iterator[str]:
        completion = Completion()
        try:
            with self._http.stream(**wire.request_arguments(call), timeout=wire.stream_timeout()) as response:
                self._raise_refusal(response)
                for line in response.iter_lines():
                    text = completion.feed(line)
                    if text:
                        yield text
        except wire.transport_errors() as error:
            raise wire.unreachable(self.url, error) from None
        if not completion.done:
            raise PeerLost(f"the completion from {self.url} broke off before its end; ask again")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _send(self, call: Call[T]) -> T:
        for pause in [*wire.pauses(self._patience_s), None]:
            try:
                response = self._http.request(**wire.request_arguments(call))
                return wire.read_answer(call, response, self.url)
            except wire.transport_errors() as error:
                if pause is None or not wire.may_repeat(call, error):
                    raise wire.unreachable(self.url, error) from None
            except ConnectError:  # the web process answers, the control plane not yet again
                if pause is None or not call.repeatable:
                    raise
            self._sleep(pause)
        raise AssertionError("the last try either returns or raises")

    def _raise_refusal(self, response: httpx.Response) -> None:
        if response.status_code >= calls.HTTP_ERROR:
            raise wire.refusal(response.status_code, response.read(), self.url)
