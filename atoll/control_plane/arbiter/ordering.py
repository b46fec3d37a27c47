"""In which order those who wait are served.

1. Who has waited longer than `starve_s` in its present wait: the oldest first, whatever else holds.
2. Then by priority (the queue's highest at most), the highest first;
3. of one priority by queue, the one with the lowest score (`accounts.py`) first, so that shares even out by weight;
4. within the queue by user, likewise; 5. and then by time of submission.

A start raises the score of its queue and user at once, so the next is chosen with it. Only the queue that was just
served changes, so a heap of queues, each with a heap of users, gives the next in logarithmic time.

**The bound.** A starving run is behind nobody but older starving ones. Its places are kept (`keeping.py`): from then on
no run begins on them that could be there when it starts, and those that are there now end after D seconds at most,
where D is the longest time that a run may last. So a run that fits an empty cluster, and its queue's own quota, waits at
most starve_s + (k + 1) D, with k the starving runs that are older; more if nodes go meanwhile.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from atoll.control_plane.arbiter.accounts import Accounts
from atoll.control_plane.arbiter.model import Ask
from atoll.control_plane.arbiter.state import State, Wish

# A user's runs, the next one last: (-priority, submitted, run), so that `pop` takes it.
_Key = tuple[int, float, str]


class _User:
    __slots__ = ("line", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.line: list[tuple[_Key, Wish]] = []


class _Queue:
    """One queue's users, the next one on top."""

    def __init__(self, name: str, users: list[_User], accounts: Accounts, now: float) -> None:
        self.name = name
        self.accounts = accounts
        self.now = now
        self.heap: list[tuple[int, float, float, str, _User]] = []
        for user in users:
            self.push(user)

    def push(self, user: _User) -> None:
        if user.line:
            priority, submitted, _run = user.line[-1][0]
            score = self.accounts.score(self.name, user.name, self.now)
            heapq.heappush(self.heap, (priority, score, submitted, user.name, user))

    def key(self) -> tuple[int, float, float, str]:
        priority, _score, submitted, *_ = self.heap[0]
        return priority, self.accounts.score(self.name, None, self.now), submitted, self.name


def starving(state: State, ask: Ask, now: float) -> bool:
    """Whether it has waited so long that it goes first."""
    return now - ask.waits_since() >= state.settings.starve_s


def priority(state: State, ask: Ask) -> int:
    """The ask's priority, as far as its queue lets it count."""
    spec = state.accounts.queues.get(ask.queue)
    return ask.priority if spec is None else min(ask.priority, spec.highest_priority)


def in_order(state: State, now: float) -> Iterator[Wish]:
    """All who wait, the next first. What is started between two of them counts for the rest."""
    late = [wish for wish in state.wishes.values() if starving(state, wish.ask, now)]
    yield from sorted(late, key=lambda wish: (wish.ask.waits_since(), wish.ask.submitted_at, wish.ask.run))
    passed = {wish.ask.run for wish in late}
    rest = [wish for wish in state.wishes.values() if wish.ask.run not in passed]
    heap = [(queue.key(), queue) for queue in _queues(state, rest, now)]
    heapq.heapify(heap)
    while heap:
        _, queue = heapq.heappop(heap)
        *_, user = heapq.heappop(queue.heap)
        yield user.line.pop()[1]
        queue.push(user)
        if queue.heap:
            heapq.heappush(heap, (queue.key(), queue))


def _queues(state: State, wishes: list[Wish], now: float) -> list[_Queue]:
    queues: dict[str, dict[str, _User]] = {}
    for wish in wishes:
        ask = wish.ask
        users = queues.setdefault(ask.queue, {})
        user = users.setdefault(ask.user, _User(ask.user))
        user.line.append(((-priority(state, ask), ask.submitted_at, ask.run), wish))
    for users in queues.values():
        for user in users.values():
            user.line.sort(key=lambda entry: entry[0], reverse=True)
    return [_Queue(name, list(users.values()), state.accounts, now) for name, users in queues.items()]
