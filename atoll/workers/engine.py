"""What a serving engine is: requests in, tokens out, one decode step at a time.

The gateway and the replica's HTTP server know only this. The builtin engine is `torch_serving.TorchEngine`; adapters to
others implement the same Protocol and pass the same contract tests.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from atoll.errors import AtollError

if TYPE_CHECKING:
    import torch


class Finish(enum.StrEnum):
    """Why a request ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 takes the likeliest; otherwise a token follows from (seed, place, logits)."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_tokens: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt of token ids, at least one."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one step gave one request: a token (None at an abort), and the reason if it was the last.

    `error` says what ended this request alone, and then `finish` is ABORT.
    """

    request: str
    token: int | None
    finish: Finish | None = None
    error: AtollError | None = None


class Engine(Protocol):
    """One model, many requests. Not thread-safe: one thread calls it.

    `context` is the most tokens of a request, prompt and answer together; token ids are below `vocab`.
    """

    context: int
    vocab: int

    def add(self, request: Request) -> None:
        """Queue a request. Raises `SpecError` for one that can never run, or whose id is in use."""
        ...

    def abort(self, request: str) -> list[Output]:
        """End a request now; its memory is free for others at once."""
        ...

    def step(self) -> list[Output]:
        """Compute one step for as many requests as fit; empty when there is nothing to do."""
        ...

    def pause(self, *, paused: bool) -> None:
        """Hold all requests where they are, or go on."""
        ...

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights between two steps. Raises `CheckpointError` naming what does not fit."""
        ...

    @property
    def busy(self) -> bool:
        """True while a step would go on with a request: some wait or run, and the engine is not paused."""
        ...
