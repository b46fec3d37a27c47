"""What goes on beside the decisions so that runs outlive drivers and nodes.

Logs are fetched, measurements of ended runs go to Parquet, and what a job brought along stays for as long as it waits or
runs. Loops of the control plane's process, none of which may end it: an agent that does not answer is asked again, an
archive that cannot be written is said in `problem`, and the points stay where they are until it can.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from atoll.clock import Clock
from atoll.control_plane import effects as fx
from atoll.control_plane.log_keeping import KEEP_EVERY_S, PIECES, LogKeeper, LogWanted
from atoll.control_plane.proc_heap import trim
from atoll.control_plane.sql_archive import Archivist
from atoll.control_plane.state import Cluster
from atoll.errors import AtollError
from atoll.schema.ids import NodeId
from atoll.schema.messages import LogChunk

TIDY_EVERY_S = 30.0
# Each time leaves a timer in Ray's controller.
PACKAGES_EVERY_S = 600.0
KEEP_LIMIT_S = 5.0
Ask = Callable[[LogWanted], Awaitable[LogChunk]]


class LogFetcher:
    """Asks agents for what `LogKeeper` wants, one piece at a time, and hands it to the history."""

    def __init__(self, keeper: LogKeeper, cluster: Cluster, clock: Clock, ask: Ask) -> None:
        self._keeper, self._cluster, self._clock, self._ask = keeper, cluster, clock, ask

    async def run(self, put: Callable[[fx.KeepLog], None]) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            await self.round(put)

    async def round(self, put: Callable[[fx.KeepLog], None]) -> None:
        """Ask every log for its news once."""
        away: set[NodeId] = set()
        for wanted in self._keeper.wanted(self._cluster, self._clock.now()):
            if wanted.node in away:
                continue
            try:
                await self._fetch(wanted, put)
            except AtollError:  # asked again in the next round; one that hangs takes seconds to be found out
                away.add(wanted.node)

    async def _fetch(self, wanted: LogWanted, put: Callable[[fx.KeepLog], None]) -> None:
        for _ in range(PIECES):
            chunk = await self._ask(wanted)
            kept = self._keeper.take(wanted, chunk, self._cluster.runs.get(wanted.run), self._clock.now())
            if kept is None:
                return
            put(kept)
            wanted = LogWanted(run=wanted.run, trainer=wanted.trainer, node=wanted.node, offset=kept.stop)


class Packages:
    """Keeps the packed working directories of jobs that Ray started.

    Ray counts who uses them, and a run that waits, or lost all its seats, is nobody to Ray once its driver is gone.
    """

    def __init__(self, keep: Callable[[str, int], None]) -> None:
        self._keep = keep

    async def run(self, cluster: Cluster) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(PACKAGES_EVERY_S)
            for uri in {run.spec.working_dir_uri for run in cluster.open_runs()}:
                await self.keep(uri)

    async def keep(self, uri: str | None) -> None:
        """Keep one until some time after the next round."""
        if uri is None:
            return
        with contextlib.suppress(Exception):  # Ray may be away in any way; what seats hold stays without this
            await asyncio.wait_for(asyncio.to_thread(self._keep, uri, round(3 * PACKAGES_EVERY_S)), KEEP_LIMIT_S)


class Tidier:
    """Runs the archivist now and then, in a thread of its own, and gives back what this process does not use any more."""

    def __init__(self, make: Callable[[], Archivist], clock: Clock) -> None:
        self._make, self._clock = make, clock
        self._archivist: Archivist | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="atoll-archive")
        self.problem = ""

    async def run(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            await loop.run_in_executor(self._pool, self.tidy)

    def tidy(self) -> None:
        """Once. What fails is said in `problem` and tried again."""
        try:
            self._archivist = self._archivist or self._make()
            self._archivist.tidy(self._clock.now())
            self.problem = ""
        except Exception as error:  # noqa: BLE001 - a shell's outer edge: a store of any kind fails in any way
            self.problem = f"metrics are not archived: {error}"
        trim()

    def close(self) -> None:
        """End the thread, when what it does is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._archivist is not None:
            self._archivist.close()
