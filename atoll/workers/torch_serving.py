"""The builtin engine: any module that takes tokens and a cache, batched continuously, on one device.

The module's `forward(tokens [batch, length], cache)` returns logits [batch, length, vocab]; it takes positions and
attention from the cache (`torch_kv`). Decoding requests share one forward; each prompt chunk has its own. A first
forward of one token tells the size of the vocabulary, and whether the module keeps to this at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from atoll.errors import CheckpointError, NonFiniteError, SpecError
from atoll.workers.engine import Finish, Output, Request
from atoll.workers.engine_core import Chunk, Scheduler
from atoll.workers.torch_kv import SlotCache
from atoll.workers.torch_sampling import choose

_SLOTS = 16
# Tokens a step: long enough that a prompt is few steps, short enough that those who stream feel no pause.
_BUDGET = 256
_SHOWN = 3
_LOGITS_DIMENSIONS = 3


class TorchEngine:
    """`Engine` over a torch module."""

    def __init__(self, model: nn.Module, *, slots: int = _SLOTS, budget: int = _BUDGET) -> None:
        context = getattr(model, "context", None)
        if not isinstance(context, int) or context < 2:  # noqa: PLR2004 - a prompt token and one more
            raise SpecError(
                f"{type(model).__name__}.context is {context!r}: set it to the model's longest input in tokens"
            )
        self.context = context
        self._model = model.eval()
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._cache = SlotCache(slots=slots, context=context)
        self.vocab = self._probe()
        self._scheduler = Scheduler(slots=slots, context=context, budget=max(budget, slots), vocab=self.vocab)
        self._paused = False

    @property
    def busy(self) -> bool:
        """True while requests wait or run, and are not held."""
        return self._scheduler.busy and not self._paused

    def add(self, request: Request) -> None:
        """Queue a request. Raises `SpecError`."""
        self._scheduler.add(request)

    def abort(self, request: str) -> list[Output]:
        """End a request now."""
        gone = self._scheduler.abort(request)
        return [Output(request=request, token=None, finish=Finish.ABORT)] if gone else []

    def pause(self, *, paused: bool) -> None:
        """Hold all requests where they are, or go on."""
        self._paused = paused

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights. Raises `CheckpointError` naming what is missing, unknown or of another shape."""
        own = self._model.state_dict()
        missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        wrong = [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape]
        if missing or unknown or wrong:
            raise CheckpointError(
                f"the checkpoint does not fit {type(self._model).__name__}: missing {_some(missing)}, unknown "
                f"{_some(unknown)}, of another shape {_some(wrong)}; serve it with the model that it was trained with"
            )
        self._model.load_state_dict(dict(weights))

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one step."""
        if self._paused:
            return []
        batch = self._scheduler.plan()
        outputs: list[Output] = []
        for group in (batch.decode, *((chunk,) for chunk in batch.prefill)):
            if group:
                outputs += self._compute(group)
        return outputs

    def _compute(self, group: Sequence[Chunk]) -> list[Output]:
        logits = self._forward(group)[:, -1]
        self._scheduler.computed(group)
        return [self._emit(chunk.request, row) for chunk, row in zip(group, logits, strict=True) if chunk.last]

    def _forward(self, group: Sequence[Chunk]) -> torch.Tensor:
        """Logits [batch, length, vocab]; the chunks are of one length."""
        tokens = torch.tensor([c.tokens for c in group], device=self._device)
        starts = torch.tensor([c.start for c in group], device=self._device)
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=self._device)
        self._cache.aim([c.slot for c in group], positions)
        logits: torch.Tensor = self._model(tokens, self._cache)
        return logits

    @torch.inference_mode()
    def _probe(self) -> int:
        """The size of the vocabulary."""
        logits = self._forward([Chunk(request="", slot=0, tokens=(0,), start=0, last=True)])
        if logits.dim() != _LOGITS_DIMENSIONS or logits.shape[:2] != (1, 1):
            raise SpecError(
                f"{type(self._model).__name__} made logits of shape {tuple(logits.shape)} from one token: return "
                "[batch, length, vocab]"
            )
        return int(logits.shape[2])

    def _emit(self, request: str, logits: torch.Tensor) -> Output:
        wanted, place = self._scheduler.sampling_of(request)
        try:
            token = choose(logits, wanted.sampling, place)
        except NonFiniteError as error:
            # This request's alone: its neighbours go on.
            self._scheduler.abort(request)
            return Output(request=request, token=None, finish=Finish.ABORT, error=error)
        return Output(request=request, token=token, finish=self._scheduler.emit(request, token))


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
