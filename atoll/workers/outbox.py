"""What is still to be said on a connection that comes and goes.

Items leave in the order they came. Whether the other side read what was written last before a connection broke cannot
be known, so `rewind` puts what left within `recent_s` back in front, and says again what still holds ("standing": the
newest item of each key). Every fact is idempotent, so saying twice is harmless; never saying is not. The queue is
bounded: when it is full the oldest measurement goes, for measurements are all that may be lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# A frozen control plane is ended after 3 s: what it had received and not read by then is said again.
RECENT_S = 5.0
# At a hundred steps a second of eight trainers: twelve seconds; at the usual few steps a second, half an hour.
LIMIT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Generic[T]):
    """One fact. `owner` is whom `forget` names; an item with a `key` stands until a newer one of that key comes."""

    owner: Hashable
    fact: T
    key: Hashable | None = None


class Outbox(Generic[T]):
    """A bounded queue of facts that survives its connection."""

    def __init__(self, *, may_drop: Callable[[T], bool], limit: int = LIMIT, recent_s: float = RECENT_S) -> None:
        self._may_drop = may_drop
        self._limit = limit
        self._recent_s = recent_s
        self._queue: deque[Item[T]] = deque()
        self._left: deque[tuple[float, Item[T]]] = deque()
        self._standing: dict[Hashable, Item[T]] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, item: Item[T]) -> None:
        """Queue `item`."""
        if item.key is not None:
            self._standing.pop((item.owner, item.key), None)  # the newest stands last
            self._standing[item.owner, item.key] = item
        if len(self._queue) >= self._limit:
            self._drop_one()
        self._queue.append(item)

    def take(self, *, now: float) -> T | None:
        """The next fact to say, or None. It is remembered as said at `now`."""
        if not self._queue:
            return None
        item = self._queue.popleft()
        self._left.append((now, item))
        while self._left[0][0] < now - self._recent_s:
            self._left.popleft()
        return item.fact

    def rewind(self, *, now: float) -> None:
        """The connection broke, or a new one began: queue again what may not have been read, and what still holds.

        Called at the break itself, too: by the time a long outage is over, what left just before it is no longer recent.
        """
        recent = [item for at, item in self._left if at >= now - self._recent_s]
        self._left.clear()
        queue = [*recent, *self._queue]
        queued = {id(item) for item in queue}
        standing = [item for item in self._standing.values() if id(item) not in queued]
        self._queue = deque([*standing, *queue])

    def forget(self, owner: Hashable) -> None:
        """Say nothing of `owner` any more."""
        self._queue = deque(item for item in self._queue if item.owner != owner)
        self._left = deque((at, item) for at, item in self._left if item.owner != owner)
        self._standing = {key: item for key, item in self._standing.items() if item.owner != owner}

    def _drop_one(self) -> None:
        victim = next((i for i, item in enumerate(self._queue) if self._may_drop(item.fact)), None)
        if victim is not None:
            del self._queue[victim]
            self.dropped += 1
