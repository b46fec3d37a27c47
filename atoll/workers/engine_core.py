"""Continuous batching: which requests compute which of their tokens in the next step. Pure.

Each step has a budget of tokens. Running requests come first, with one token each: a request that streams is never held
up by one that arrives. What is left of the budget goes to prompts, in chunks, first come first served (chunked prefill,
Sarathi-Serve, OSDI 2024). A request holds a slot of the key/value cache from its first chunk to its end.

| state    | event              | next     |
|----------|--------------------|----------|
| waiting  | a slot and budget  | prefill  |
| prefill  | prompt computed    | decode   |
| decode   | last token, length | gone     |
| any      | abort              | gone     |

The budget is at least the number of slots, so that each running request gets its token in every step. A request takes the
lowest slot that is free and a batch is in the order of slots: slots in a row are read where they lie, others are copied.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from atoll.errors import SpecError
from atoll.workers.engine import Finish, Request


def check_prompt(prompt: Sequence[int], *, context: int, vocab: int) -> None:
    """Raises `SpecError` for a prompt that is empty, leaves no room for a token, or has ids that the model lacks."""
    if not prompt:
        raise SpecError("prompt is empty: give at least one token")
    if len(prompt) >= context:
        raise SpecError(
            f"prompt has {len(prompt)} tokens, the model's context is {context}: shorten the prompt to "
            f"{context - 1} tokens or fewer"
        )
    at = next((i for i, token in enumerate(prompt) if not 0 <= token < vocab), None)
    if at is not None:
        # By its place: the id itself may be a number of thousands of digits.
        raise SpecError(f"prompt: the token at place {at} is not in the vocabulary, give ids from 0 to {vocab - 1}")


@dataclass(slots=True)
class Entry:
    """One request in the engine: its tokens so far and how many of them are in the cache."""

    request: Request
    slot: int = -1
    computed: int = 0
    emitted: list[int] = field(default_factory=list)

    def tokens(self, start: int, count: int) -> tuple[int, ...]:
        """`count` tokens from place `start` on, of the prompt or of what was emitted, never of both."""
        at = start - len(self.request.prompt)
        return self.request.prompt[start : start + count] if at < 0 else tuple(self.emitted[at : at + count])

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return len(self.request.prompt) + len(self.emitted)

    @property
    def decoding(self) -> bool:
        """True once only the newest token is not in the cache."""
        return self.computed >= len(self.request.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Compute tokens [start, end) of a request in `slot`; `last` when the next token follows from its end."""

    request: str
    slot: int
    tokens: tuple[int, ...]
    start: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step: all of `decode` together (one token each), then each of `prefill`."""

    decode: tuple[Chunk, ...]
    prefill: tuple[Chunk, ...]


class Scheduler:
    """Slots, queue and budget of one engine."""

    def __init__(self, *, slots: int, context: int, budget: int, vocab: int) -> None:
        if not 1 <= slots <= budget:
            raise SpecError(
                f"slots={slots}, budget={budget}: at least one slot, and a budget of as many tokens as slots"
            )
        self._context, self._vocab = context, vocab
        self._budget = budget
        self._free = list(range(slots))  # a heap
        self._waiting: deque[Entry] = deque()
        self._running: dict[str, Entry] = {}

    @property
    def busy(self) -> bool:
        """True while anything waits or runs."""
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Queue a request. Raises `SpecError` where it can never run, or where its id is in use."""
        check_prompt(request.prompt, context=self._context, vocab=self._vocab)
        if request.sampling.max_tokens < 1:
            raise SpecError(f"max_tokens={request.sampling.max_tokens}: at least 1")
        if request.id in self._running or any(e.request.id == request.id for e in self._waiting):
            raise SpecError(f"request {request.id!r} is here already: give each request an id of its own")
        self._waiting.append(Entry(request))

    def abort(self, request: str) -> bool:
        """Forget a request. False where it is not there (any more)."""
        for sequence in self._waiting:
            if sequence.request.id == request:
                self._waiting.remove(sequence)
                return True
        return self._release(request)

    def plan(self) -> Batch:
        """What the next step computes."""
        budget = self._budget
        decoding = sorted((s for s in self._running.values() if s.decoding), key=lambda s: s.slot)
        decode = tuple(self._chunk(s, 1) for s in decoding)
        budget -= len(decode)
        prefill: list[Chunk] = []
        for sequence in [s for s in self._running.values() if not s.decoding]:
            budget = self._prefill(sequence, budget, prefill)
        while self._waiting and self._free and budget > 0:
            sequence = self._waiting.popleft()
            sequence.slot = heapq.heappop(self._free)
            self._running[sequence.request.id] = sequence
            budget = self._prefill(sequence, budget, prefill)
        return Batch(decode=decode, prefill=tuple(prefill))

    def computed(self, chunks: Sequence[Chunk]) -> None:
        """The tokens of `chunks` are in the cache."""
        for chunk in chunks:
            sequence = self._running.get(chunk.request)
            if sequence is not None:
                sequence.computed = chunk.start + len(chunk.tokens)

    def emit(self, request: str, token: int) -> Finish | None:
        """A request's next token; the reason if that was its last, and then its slot is free."""
        sequence = self._running[request]
        sequence.emitted.append(token)
        finish = self._finish(sequence, token)
        if finish is not None:
            self._release(request)
        return finish

    def sampling_of(self, request: str) -> tuple[Request, int]:
        """The request and the place of the token to choose next, counted from the first of the prompt."""
        sequence = self._running[request]
        return sequence.request, sequence.length

    def _finish(self, sequence: Entry, token: int) -> Finish | None:
        sampling = sequence.request.sampling
        if token in sampling.stop_tokens:
            return Finish.STOP
        full = sequence.length >= self._context
        return Finish.LENGTH if full or len(sequence.emitted) >= sampling.max_tokens else None

    def _prefill(self, sequence: Entry, budget: int, into: list[Chunk]) -> int:
        count = min(budget, len(sequence.request.prompt) - sequence.computed)
        if count <= 0:
            return budget
        into.append(self._chunk(sequence, count))
        return budget - count

    @staticmethod
    def _chunk(sequence: Entry, count: int) -> Chunk:
        start = sequence.computed
        return Chunk(
            request=sequence.request.id,
            slot=sequence.slot,
            tokens=sequence.tokens(start, count),
            start=start,
            last=start + count == sequence.length,
        )

    def _release(self, request: str) -> bool:
        sequence = self._running.pop(request, None)
        if sequence is None:
            return False
        heapq.heappush(self._free, sequence.slot)
        return True
