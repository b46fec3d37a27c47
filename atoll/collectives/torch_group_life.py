"""A group's identity, its communicator, and how its operations end: done, lost, overdue, or with the epoch.

A group that met its peers through a store (`Own`) ends its communicator when an operation is not done within the group's
limit: it asks everyone how far they are (`tcp_roll_call`), and all ranks raise with the names of those that are missing.
A lost peer ends it at once. A group that was given its communicator leaves failures to who gave it.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.tcp_roll_call import RollCall
from atoll.collectives.torch_barrier import Barrier
from atoll.collectives.torch_deadlines import Deadlines
from atoll.collectives.torch_rendezvous import NOWHERE, Place
from atoll.collectives.torch_work import Handle, Label
from atoll.collectives.work import Poison, Work

BACKEND = "atoll"
_ROLL_CALL_S = 1.0
_NOT_ADOPTED = Poison(reason="the group has no communicator", culprit=None, epoch=0)
_MESSAGES = frozenset({"send", "recv"})

_deadlines = Deadlines()
_living: weakref.WeakSet[GroupLife] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a group has that met its peers itself. `names`: the ranks as people know them (of the default group)."""

    store: Store
    timeout: timedelta
    names: Sequence[int]
    network: Place = NOWHERE


class GroupLife:
    """What is not an operation. Comes before torch's class in the order of methods."""

    # Whether torch may make groups of some of its ranks. They would have no communicator.
    divisible = True

    def __init__(self, rank: int, size: int, communicator: Communicator | None, own: Own | None = None) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # torch's class comes next
        self._rank, self._size, self._communicator, self._own = rank, size, communicator, own
        self._name, self._description, self._pid = BACKEND, "undefined", os.getpid()
        self._lock = threading.Lock()
        self._called = 0
        self._messages = 0
        self._barriers = 0
        self._open: dict[Handle, tuple[float, float]] = {}  # when due, and by which limit
        self._batch: list[Handle] | None = None
        self._limit_s = own.timeout.total_seconds() if own else float("inf")
        self._roll_call = RollCall(communicator, lambda: self._called) if own and communicator else None
        self._gone = False
        _living.add(self)
        if own:
            _deadlines.watch(self)

    # -- identity, as torch asks for it ------------------------------------------------------------------------------

    def getBackendName(self) -> str:  # noqa: N802 - torch's C++ looks for this name
        """The name by which torch knows it."""
        return BACKEND

    def name(self) -> str:
        """The name by which torch knows it."""
        return BACKEND

    def rank(self) -> int:
        """This rank in the group; of its present communicator."""
        return self._rank

    def size(self) -> int:
        """How many ranks the group has; those of its present communicator."""
        return self._size

    getRank, getSize = rank, size  # noqa: N815 - torch's C++ looks for these names

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:
        """The name that torch gave."""
        return self._name

    def _set_group_desc(self, description: str) -> None:
        self._description = description

    @property
    def group_desc(self) -> str:
        """The description that torch gave."""
        return self._description

    def getGroupName(self) -> str:  # noqa: N802 - torch's C++ looks for this name
        """As `group_name`."""
        return self._name

    def getGroupDesc(self) -> str:  # noqa: N802 - torch's C++ looks for this name
        """As `group_desc`."""
        return self._description

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _get_backend(self, device: torch.device) -> GroupLife:
        """The group is its own backend, without the abilities that torch asks of NCCL's."""
        del device
        return self

    supports_splitting = supports_coalescing = supports_time_estimate = False

    def _get_sequence_number_for_group(self) -> int:
        return self._called

    def set_timeout(self, timeout: timedelta) -> None:
        """The limit of operations that start from now on."""
        self._limit_s = timeout.total_seconds()
        _deadlines.nudge()

    _set_default_timeout = set_timeout

    # -- the communicator --------------------------------------------------------------------------------------------

    @property
    def communicator(self) -> Communicator | None:
        """What carries the group at present."""
        return self._communicator

    @property
    def adopted(self) -> bool:
        """Whether its communicator is somebody else's: then failures end operations as if done."""
        return self._own is None

    @property
    def place(self) -> Place:
        """What is known of the network."""
        return self._own.network if self._own else NOWHERE

    def adopt(self, communicator: Communicator | None) -> None:
        """From now on operations go over `communicator`, whose epoch, size and rank become the group's.

        The former one is its owner's to close. None: operations end as if done, with buffers unchanged.
        """
        if self._own is not None:
            raise ValueError(f"group {self._name!r} met its peers itself; only a group made without a store can adopt")
        with self._lock:
            self._communicator = communicator
            if communicator is not None:
                self._rank, self._size = communicator.rank, communicator.size

    def shutdown(self) -> None:
        """Leave in good order; of a group that was given its communicator: let go of it."""
        communicator = self._let_go()
        if communicator is not None:
            communicator.close()

    def abort(self) -> None:
        """End all operations, here and on all peers."""
        communicator = self._communicator
        if communicator is not None and self._own is not None:
            communicator.abort(f"rank {self._named(self._rank)} aborted group {self._name!r}")
        self.shutdown()

    def forked(self) -> None:
        """In a child process: the sockets are the parent's. Open here they would hide its end from the peers."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            for sock in (s for lines in communicator.sockets().values() for s in lines):
                with suppress(OSError):
                    os.close(sock.detach())

    def _let_go(self) -> Communicator | None:
        with self._lock:
            communicator, self._communicator = self._communicator, None
            self._gone = True
        _living.discard(self)
        if self._own is None:
            return None
        _deadlines.leave(self)
        return communicator

    # -- operations --------------------------------------------------------------------------------------------------

    def _run(
        self,
        kind: str,
        results: Sequence[torch.Tensor],
        begin: Callable[[Communicator], Work],
        opts: Any = None,
        after: Callable[[], None] | None = None,
        peer: int | None = None,
    ) -> Handle:
        """Start an operation. `opts` may limit it further; `peer` is that of a message, -1 for any."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"group {self._name!r} belongs to process {self._pid}, which forked this one ({os.getpid()}); "
                "a child process makes groups of its own"
            )
        with self._lock:  # numbered in the order in which they start
            inner = self._begun(begin)
            number = self._numbered(kind)
        label = Label(kind, number, results, self._name, peer)
        handle = Handle(inner, label, self, results, after)
        if self._own is not None:
            self._hold(handle, getattr(opts, "timeout", None))
        if self._batch is not None:
            self._batch.append(handle)
        return handle

    def _numbered(self, kind: str) -> int:
        if kind in _MESSAGES:
            self._messages += 1
            return self._messages
        self._called += 1
        return self._called

    def _begun(self, begin: Callable[[Communicator], Work]) -> Work:
        if self._communicator is not None:
            return begin(self._communicator)
        if self._own is not None or self._gone:
            raise RuntimeError(f"group {self._name!r} was destroyed; make it anew with init_process_group or new_group")
        inner = Work()
        inner.spoil(_NOT_ADOPTED)
        return inner

    def _hold(self, handle: Handle, timeout: timedelta | None) -> None:
        limit = self._limit_s
        given = timeout.total_seconds() if timeout is not None else 0
        if 0 < given < limit:
            limit = given
        self._open[handle] = time.monotonic() + limit, limit
        if limit < self._limit_s:
            _deadlines.nudge()
        handle.on_end(lambda: self._forget(handle))

    def _forget(self, handle: Handle) -> None:
        self._open.pop(handle, None)

    # -- how they end ------------------------------------------------------------------------------------------------

    def failure(self, inner: Work, label: Label) -> Exception | None:
        """What a poisoned operation raises."""
        if self._own is None or inner.poison is None:
            return None
        lost = f", lost {inner.poison.culprit}" if inner.poison.culprit else ""
        return dist.DistBackendError(f"{label} failed on rank {self._named(self._rank)}{lost}: {inner.poison.reason}")

    def late(self, label: Label, limit_s: float) -> Exception:
        """What raises where an operation is not done within `limit_s`; the operation itself goes on."""
        words, _ = self._overdue(label, limit_s)
        return dist.DistBackendError(words)

    def due_s(self, now: float) -> float:
        """When to look for overdue operations again."""
        with suppress(RuntimeError):  # changed while we read: look again soon
            return min((due for due, _ in self._open.values()), default=now + self._limit_s)
        return now

    def look(self, now: float) -> None:
        """End the communicator if an operation is overdue."""
        overdue = [(handle, limit) for handle, (due, limit) in list(self._open.items()) if due <= now]
        communicator = self._communicator
        if not overdue or communicator is None:
            return
        first, limit = overdue[0]
        words, missing = self._overdue(first.label, limit)
        if not first.is_completed():
            culprit = communicator.members[missing[0]].trainer if missing else None
            communicator.abort(words, culprit)
        for handle, _ in overdue:
            self._open.pop(handle, None)

    def _overdue(self, label: Label, limit_s: float) -> tuple[str, list[int]]:
        """In words, and the ranks that are missing."""
        words = f"{label} is not done within {limit_s:g} s on rank {self._named(self._rank)}: "
        if self._roll_call is None:
            return words + "who is missing is not known", []
        called = self._roll_call.ask(_ROLL_CALL_S)
        others = [r for r in range(self._size) if r != self._rank]
        silent = [r for r in others if r not in called]
        behind = [r for r in others if label.peer is None and called.get(r, label.number) < label.number]
        found = []
        if behind:
            found.append(f"rank {self._listed(behind)} has not called it")
        if silent:
            found.append(f"rank {self._listed(silent)} does not answer")
        if label.peer is not None and not silent:
            whom = "any rank" if label.peer < 0 else f"rank {self._named(label.peer)}"
            found.append(f"{whom} has not {'received' if label.kind == 'send' else 'sent'} it")
        return words + ("; ".join(found) or "all ranks have called it"), [*silent, *behind]

    def _named(self, rank: int) -> int:
        return self._own.names[rank] if self._own else rank

    def _listed(self, ranks: Sequence[int]) -> str:
        return ", ".join(str(self._named(r)) for r in ranks)

    # -- a barrier that names who is missing -------------------------------------------------------------------------

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """As `barrier`; if ranks do not come within the limit, all others raise with the names of all of those."""
        del wait_all_ranks  # all are named either way
        if self._own is None:
            self._run("barrier", [], lambda c: c.barrier()).wait()
            return
        self._barriers += 1
        place = Barrier(
            store=self._own.store,
            names=self._own.names,
            limit_s=timeout.total_seconds() if timeout is not None else self._limit_s,
            number=self._barriers,
            group=self._name,
        )
        words = place.gather() if self._rank == 0 else place.come(self._rank)
        if words:
            raise dist.DistBackendError(words)


def _in_child() -> None:
    global _deadlines  # noqa: PLW0603 - its lock may have been held, and its thread is the parent's
    _deadlines = Deadlines()
    for group in list(_living):
        group.forked()


def _at_exit() -> None:
    for group in list(_living):
        group.shutdown()


@functools.cache
def install() -> None:
    """Once for a process: what happens to groups in a child, and when the program ends without destroying them."""
    os.register_at_fork(after_in_child=_in_child)
    atexit.register(_at_exit)
