"""The GPUs of one island in one epoch: NCCL among them, TCP to the owners of the same pieces in the other islands.

Every rank of the epoch calls `open_island`; they agree on whether all of them have a device with NCCL, the first rank of
each island names its communicator, and if any rank fails all go without: `all_reduce` then takes its way over the host.

A thread carries the operations out one after the other (`nccl_staging`), in the order of the calls, which is the same on
all ranks: NCCL's ranks must agree on it, and between islands the slow link, not the gap between two operations, is
what takes the time. When the epoch ends, works end at once; a second thread then ends what still runs on the device by
NCCL's own abort. NCCL frees memory while it aborts, which can wait for the device, so nobody waits for that thread. Memory
that a kernel may still use is kept until the streams are idle. Ranks of one island tell a neighbour what they call: one
that calls something else ends the epoch with both in the reason, instead of hanging in a kernel.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

import torch

from atoll.collectives.call import Call, difference, pack
from atoll.collectives.nccl_crossing import AGREEMENT_TAG, Crossing, PeerCrossing, Peers
from atoll.collectives.nccl_device import NCCL_OPS, NCCL_TYPES, Device, Event, Library
from atoll.collectives.nccl_staging import Operation, Staging
from atoll.collectives.staging import DEPTH, SHARD_BYTES, Layout
from atoll.collectives.work import Poison, Work
from atoll.errors import InternalError, PeerLost

# The reason with which a communicator ends when it is closed on purpose.
CLOSED = "closed"
_CLOSE_S = 1.0
# A call only queues work and returns at once, unless NCCL is stuck in it: then the abort alone gets the thread out.
_CALL_S = 0.02
# An abort tells NCCL's kernels to leave. Streams that are still busy after this belong to a broken device.
_DRAIN_S = 10.0
# Between two questions to an event other threads of the program run; the pause doubles up to the longer one.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 20e-6, 500e-6
_LOOK_S = 0.01
# Memory of streams that never became idle: given back, it would be overwritten in a stranger's hands.
_KEPT: list[Staging] = []


class _EpochEnded(Exception):
    """Leave the operation: its work has its poison."""


class NcclIsland:
    """One rank's part in its island. `library` is aborted or destroyed with the epoch."""

    def __init__(
        self,
        peers: Peers,
        layout: Layout,
        device: Device,
        library: Library,
        *,
        crossing: Crossing | None = None,
        depth: int = DEPTH,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.layout = layout
        self._peers, self._device, self._library = peers, device, library
        self._island = layout.islands[layout.place(peers.rank)[0]]
        crossing = crossing or PeerCrossing(peers)
        self._staging: Staging | None = Staging(
            device, crossing, layout, peers.rank, depth=depth, shard_bytes=shard_bytes
        )
        self._queue: deque[Operation] = deque()
        self._current: Operation | None = None
        self._poison: Poison | None = None
        self._changed = threading.Condition()
        self._calls = threading.Lock()
        self._reaper = threading.current_thread()
        self._gone = threading.Event()
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._serve, name="atoll-nccl", daemon=True)
        self._thread.start()
        peers.on_poison(self.abort)

    # -- what callers use --------------------------------------------------------------------------------------------

    def takes(self, buffer: torch.Tensor, op: str) -> bool:
        """Whether `all_reduce` can: the same answer on all ranks that call the same."""
        return op in NCCL_OPS and buffer.dtype in NCCL_TYPES and self._device.owns(buffer)

    def all_reduce(self, buffer: torch.Tensor, op: str, work: Work) -> Work:
        """`buffer` becomes the `op` over all ranks of all islands; `work` ends once that is queued for its stream.

        The stream that is current here waits for it on the device. The buffer must not change before `work` ends.
        """
        if not self.takes(buffer, op):
            known = ", ".join(str(dtype) for dtype in NCCL_TYPES)
            raise InternalError(f"NCCL all_reduce {op!r} of {buffer.dtype} on {buffer.device}: it takes {known}")
        if buffer.numel() == 0:
            work.finish(buffer)
            return work
        plain = buffer.detach()
        source = plain.contiguous().view(-1)
        stream, ready = self._device.current_stream(), self._device.event()
        ready.record(stream)
        with self._changed:
            poison = self._poison
            if poison is None:
                self._queue.append(Operation(plain, source, op, work, stream, ready))
                self._changed.notify_all()
        if poison is not None:
            work.spoil(poison)
        return work

    def abort(self, poison: Poison) -> None:
        """End all operations with `poison`, from any thread; returns before NCCL has ended them on the device."""
        with self._changed:
            if self._poison is not None:
                return
            self._poison = poison
            operations = [*([self._current] if self._current else []), *self._queue]
            self._queue.clear()
            self._changed.notify_all()
        for operation in operations:
            operation.work.spoil(poison)
        # On purpose and with nothing running: the ranks of the island all do so, and NCCL parts in order.
        in_order = poison.reason == CLOSED and all(operation.work.poison is None for operation in operations)
        reap = self._destroy if in_order else self._abort
        self._reaper = threading.Thread(target=reap, name="atoll-nccl-abort", daemon=True)
        self._reaper.start()

    def close(self, *, epoch: int = 0) -> None:
        """Leave; returns once the device is clean, or after a second."""
        self.abort(Poison(reason=CLOSED, culprit=None, epoch=epoch))
        if self._gone.wait(_CLOSE_S) and self._reaper is not threading.current_thread():
            self._reaper.join(_CLOSE_S)

    # -- the thread that carries out ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._device.enter()
            while operation := self._next():
                self._carry_out(operation)
        except _EpochEnded:
            pass
        except Exception as error:  # noqa: BLE001 - the thread's edge: a failure of the device ends the epoch
            self._peers.abort(f"NCCL on rank {self._peers.rank}: {type(error).__name__}: {error}")

    def _next(self) -> Operation | None:
        with self._changed:
            self._current = None
            while not self._queue and self._poison is None:
                self._changed.wait(1.0)
            if self._poison is not None:
                return None
            self._current = self._queue.popleft()
            return self._current

    def _carry_out(self, operation: Operation) -> None:
        staging = self._staging
        if staging is not None:
            staging.carry_out(operation, self, self._agree(operation))

    def _agree(self, operation: Operation) -> Work | None:
        """Tell the next rank of the island what is called here, and hear it from the one before."""
        if len(self._island) == 1:
            return None
        position = self._island.index(self._peers.rank)
        to, source = self._island[(position + 1) % len(self._island)], self._island[position - 1]
        dtype = str(operation.buffer.dtype).removeprefix("torch.")
        said = pack(Call("all_reduce", dtype, operation.source.numel(), operation.op))
        heard = torch.empty(len(said), dtype=torch.uint8)

        def compare(work: Work) -> None:
            theirs = bytes(heard.tolist())
            if work.poison is None and theirs != said:
                self._peers.abort(difference(said, theirs, rank=self._peers.rank, peer=source))

        self._peers.send(torch.tensor(list(said), dtype=torch.uint8), to=to, tag=AGREEMENT_TAG)
        work = self._peers.recv(heard, source=source, tag=AGREEMENT_TAG)
        work.add_done_callback(compare)
        return work

    def until(self, event: Event) -> None:
        """Ask the event, more and more seldom."""
        pause, looked = _SHORTEST_PAUSE_S, time.monotonic()
        while not event.query():
            self._still()
            if time.monotonic() - looked > _LOOK_S:
                self.call(lambda library: library.check())
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def ended(self, work: Work) -> None:
        """Wait for the network."""
        while not work.wait(_LOOK_S):
            self._still()
            if work.poison is not None:
                raise _EpochEnded

    def call(self, function: Callable[[Library], None]) -> None:
        """Not while or after the library is aborted."""
        with self._calls:
            self._still()
            function(self._library)

    def _still(self) -> None:
        if self._poison is not None:
            raise _EpochEnded

    # -- the thread that cleans up -----------------------------------------------------------------------------------

    def _destroy(self) -> None:
        self._reap(self._library.destroy)

    def _abort(self) -> None:
        self._reap(self._library.abort)

    def _reap(self, end: Callable[[], None]) -> None:
        held = self._calls.acquire(timeout=_CALL_S)
        try:
            self._device.enter()
            end()
        except Exception as error:  # noqa: BLE001 - the thread's edge: the epoch is over, this tells why memory is kept
            self.trouble = f"{type(error).__name__}: {error}"
        finally:
            if held:
                self._calls.release()
        self._thread.join(_CLOSE_S)
        self._let_go()
        self._gone.set()

    def _let_go(self) -> None:
        staging, until = self._staging, time.monotonic() + _DRAIN_S
        if staging is None:
            return
        idle = False
        with contextlib.suppress(RuntimeError):  # a device in error says so here; its memory is kept
            while not (idle := staging.idle) and time.monotonic() < until:
                time.sleep(_LONGEST_PAUSE_S)
        self._staging = self._current = None
        if not idle:
            _KEPT.append(staging)


def open_island(
    peers: Peers,
    layout: Layout,
    device: Device | None,
    *,
    deadline_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    missing: str = "",
) -> tuple[NcclIsland | None, str]:
    """(this rank's part in its island, "") once all islands are open; (None, why) on all ranks if any rank cannot.

    `device` is None where this rank has none, `missing` says why. Raises `PeerLost` when the epoch ends or `deadline_s` passes meanwhile.
    """
    deadline = time.monotonic() + deadline_s
    island = layout.islands[layout.place(peers.rank)[0]]
    position = island.index(peers.rank)
    name = b"" if device is None or position else device.unique_id()
    said = _gathered(peers, b"-" + missing.encode() if device is None else b"+" + name, deadline, cancelled)
    without = {rank: payload[1:].decode() for rank, payload in enumerate(said) if not payload.startswith(b"+")}
    if without or device is None:
        return None, "no NCCL on " + "; ".join(f"rank {rank}: {why or 'no device'}" for rank, why in without.items())
    library, why = _library(device, (len(island), position, said[island[0]][1:]), deadline, cancelled)
    # Another half of the time: a rank whose NCCL refuses at once waits here for those that time out.
    failed = _gathered(peers, why.encode(), deadline + deadline_s / 2, cancelled)
    reasons = [f"rank {rank}: {reason.decode()}" for rank, reason in enumerate(failed) if reason]
    if reasons or library is None:
        if library is not None:
            library.abort()
        return None, "; ".join(reasons)
    return NcclIsland(peers, layout, device, library), ""


def _gathered(peers: Peers, payload: bytes, deadline: float, cancelled: Callable[[], bool]) -> list[bytes]:
    work = peers.all_gather(payload)
    while not work.wait(_LOOK_S):
        if work.poison is not None:
            raise PeerLost(f"the epoch ended while its islands were opened: {work.poison.reason}")
        if cancelled() or time.monotonic() > deadline:
            raise PeerLost("not all ranks came to open their islands in time: one is gone, or did not call open_island")
    result: list[bytes] = work.result
    return result


def _library(
    device: Device, named: tuple[int, int, bytes], deadline: float, cancelled: Callable[[], bool]
) -> tuple[Library | None, str]:
    """NCCL's meeting of the ranks cannot be interrupted: it has a thread of its own, which is left behind if it hangs."""
    made: list[Library] = []
    reason: list[str] = []
    lock, left, over = threading.Lock(), threading.Event(), threading.Event()

    def meet() -> None:
        try:
            device.enter()
            library = device.library(*named)
            with lock:
                made.append(library)
                late = left.is_set()
            if late:
                library.abort()
        except Exception as error:  # noqa: BLE001 - the thread's edge: told to all ranks
            reason.append(f"{type(error).__name__}: {error}")
        over.set()

    threading.Thread(target=meet, name="atoll-nccl-meet", daemon=True).start()
    while not over.wait(_LOOK_S) and time.monotonic() < deadline and not cancelled():
        pass
    with lock:
        left.set()
        if made:
            return made[0], ""
    return None, reason[0] if reason else "the ranks of its island did not meet in NCCL in time"
