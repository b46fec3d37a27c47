"""torch's handle of an operation in flight, and the future that torch's own C++ waits for.

A poisoned operation is judged by its group: in a plain `torch.distributed` program it raises, naming the operation and
the rank at fault; under elastic training it ends as if done, with buffers unchanged, because a retry never passes through
torch's insides (the epoch's end is raised where Atoll owns the stack).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from atoll.collectives.work import Work
from atoll.errors import AtollError

NO_TIMEOUT = timedelta(0)


@dataclass(frozen=True, slots=True)
class Label:
    """Which operation: `number` counts the collectives of the group, or the messages from and to `peer`."""

    kind: str
    number: int
    tensors: Sequence[torch.Tensor]
    group: str
    peer: int | None = None

    def __str__(self) -> str:
        size = sum(t.numel() for t in self.tensors)
        of = f" of {str(self.tensors[0].dtype).removeprefix('torch.')}[{size}]" if self.tensors else ""
        numbered = f"operation {self.number}" if self.peer is None else f"message {self.number}"
        return f"{self.kind}{of}, {numbered} of group {self.group!r}"


class Judge(Protocol):
    """The group, as its handles see it."""

    def failure(self, inner: Work, label: Label) -> Exception | None:
        """What a poisoned operation raises; None where it ends as if done."""

    def late(self, label: Label, limit_s: float) -> Exception:
        """What raises where an operation is not done within `limit_s`."""


class _Failed:
    """The value of a future that failed.

    torch keeps no error in a future that Python fails: its C++ would take the error for a result. But before DDP uses a
    result it has Python look for tensors in it by pickling, and that raises the error here.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self.error


def _value_of(result: Any) -> Any:
    if isinstance(result, _Failed):
        raise result.error
    return result


class Promise(torch.futures.Future[Any]):
    """A future whose Python continuations run on threads of their own.

    The transport's thread completes it, and a continuation may wait for the next collective (PowerSGD's does), which that
    thread must move.
    """

    def set_exception(self, result: Any) -> None:
        """Fail: for waiters in Python, and for DDP's C++."""
        self._set_unwrap_func(_value_of)
        self.set_result(_Failed(result))

    def then(self, callback: Callable[[torch.futures.Future[Any]], Any]) -> torch.futures.Future[Any]:
        """The future of what `callback(self)` returns."""
        following = Promise()

        def run() -> None:
            try:
                following.set_result(callback(self))
            except Exception as error:  # noqa: BLE001 - the callback's error belongs to who waits for it
                following.set_exception(error)

        self.add_done_callback(lambda _: threading.Thread(target=run, name="atoll-future", daemon=True).start())
        return following


class Handle(dist.Work):
    """An operation of ours as torch's `Work`. `after` runs on the transport's thread before anyone is told it is done."""

    def __init__(
        self,
        inner: Work,
        label: Label,
        judge: Judge,
        results: Sequence[torch.Tensor],
        after: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.label = inner, label
        self._judge, self._results = judge, list(results)
        self._after = after
        self._problem: Exception | None = None
        self._finished: threading.Event | None = None
        if after is not None:
            self._finished = threading.Event()
            inner.add_done_callback(self._finish)

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        """True once done. Raises what the group makes of a failure, or where `timeout` passes first."""
        limit = timeout.total_seconds()
        if not self._ended_within(limit if limit > 0 else None):
            raise self._judge.late(self.label, limit)
        error = self.exception()
        if error is not None:
            raise error
        return True

    def is_completed(self) -> bool:
        """Whether it is over, well or not."""
        return self.inner.ended if self._finished is None else self._finished.is_set()

    def is_success(self) -> bool:
        """Whether it is over and well."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> Exception | None:
        """Why it failed; None while it is under way and when it is well."""
        if self._problem is not None:
            return self._problem
        return self._judge.failure(self.inner, self.label) if self.inner.poison is not None else None

    def result(self) -> list[torch.Tensor]:
        """The tensors that it wrote."""
        return self._results

    def set_results(self, results: Sequence[torch.Tensor]) -> None:
        """Name other tensors than the pieces that were written."""
        self._results = list(results)

    def synchronize(self) -> None:
        """As `wait`: on the CPU a result is there when its operation is done."""
        self.wait()

    def source_rank(self) -> int:
        """Of a receive: the rank in the group whose message came."""
        return int(self.inner.result)

    _source_rank = source_rank

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Holds the results; or the failure."""
        return self._promise(lambda: self._results)

    def get_future_result(self) -> torch.futures.Future[int]:
        """Holds 0 once done (`WorkResult.SUCCESS`); or the failure."""
        return self._promise(lambda: 0)

    def on_end(self, call: Callable[[], None]) -> None:
        """Have `call` run when it is over: on the transport's thread, or at once."""
        # Registered after `_finish`, so it runs after it.
        self.inner.add_done_callback(lambda _: call())

    def _promise(self, value: Callable[[], Any]) -> Promise:
        promise = Promise()

        def keep() -> None:
            error = self.exception()
            if error is None:
                promise.set_result(value())
            else:
                promise.set_exception(error)

        self.on_end(keep)
        return promise

    def _ended_within(self, limit: float | None) -> bool:
        if self._finished is not None:
            return self._finished.wait(limit)
        self.inner.wait(limit)
        return self.inner.ended

    def _finish(self, inner: Work) -> None:
        try:
            if inner.poison is None and self._after is not None:
                self._after()
        except (RuntimeError, ValueError, AtollError) as error:
            self._problem = error
        finally:
            if self._finished is not None:
                self._finished.set()


class Several(dist.Work):
    """Operations that were started between `_start_coalescing` and `_end_coalescing`, as one."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        super().__init__()
        self._handles = list(handles)

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        """True once all are done."""
        return all(handle.wait(timeout) for handle in self._handles)

    def is_completed(self) -> bool:
        """Whether all are over."""
        return all(handle.is_completed() for handle in self._handles)

    def is_success(self) -> bool:
        """Whether all are over and well."""
        return all(handle.is_success() for handle in self._handles)

    def exception(self) -> Exception | None:
        """The first failure."""
        return next((error for handle in self._handles if (error := handle.exception()) is not None), None)

    def result(self) -> list[torch.Tensor]:
        """What all of them wrote."""
        return [tensor for handle in self._handles for tensor in handle.result()]

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Holds all results."""
        futures = [handle.get_future() for handle in self._handles]
        promise = Promise()
        whole = torch.futures.collect_all(futures)

        def keep(_: Any) -> None:
            error = self.exception()
            if error is None:
                promise.set_result(self.result())
            else:
                promise.set_exception(error)

        whole.add_done_callback(keep)
        return promise
