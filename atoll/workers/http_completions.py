"""OpenAI's completions, as bodies and chunks: what is asked, checked, and what is answered.

https://platform.openai.com/docs/api-reference/completions; `n` above 1 and `logprobs` are refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atoll.errors import SpecError
from atoll.workers.engine import Finish, Sampling
from atoll.workers.tokenizer_runtime import Tokenizer

_MOST_STOPS = 4
_NUMBERS: Mapping[str, tuple[type | tuple[type, ...], float, float]] = {
    "max_tokens": (int, 1, 1 << 20),
    "temperature": ((int, float), 0.0, 10.0),
    "top_p": ((int, float), 0.0, 1.0),
    "top_k": (int, 0, 1 << 20),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A checked request: the prompts as tokens, how to choose, and the strings that end it."""

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    echo: bool


def parse(body: Any, tokenizer: Tokenizer, *, seed: int) -> Completion:
    """The request in a JSON body. Raises `SpecError` naming the field; `seed` is used where the body has none."""
    if not isinstance(body, dict):
        raise SpecError("the body is no JSON object; send {'prompt': ...}")
    if body.get("n", 1) not in {1, None} or body.get("logprobs"):
        raise SpecError("n above 1 and logprobs are not supported; leave them out")
    numbers = {key: _number(body, key) for key in _NUMBERS if body.get(key) is not None}
    texts, prompts = _prompts(body.get("prompt"), tokenizer)
    stream = bool(body.get("stream", False))
    if stream and len(prompts) != 1:
        raise SpecError(f"stream with {len(prompts)} prompts: stream one prompt at a time")
    return Completion(
        prompts=prompts,
        texts=texts,
        sampling=Sampling(**{"seed": seed, **numbers}),
        stops=_stops(body.get("stop")),
        stream=stream,
        echo=bool(body.get("echo", False)),
    )


def _number(body: Mapping[str, Any], key: str) -> Any:
    kind, least, most = _NUMBERS[key]
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(value, kind):
        raise SpecError(f"{key}={value!r}: a number from {least:g} to {most:g}")
    if not least <= value <= most:
        raise SpecError(f"{key}={value!r}: a number from {least:g} to {most:g}")
    return value


def _prompts(value: Any, tokenizer: Tokenizer) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    many = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    texts, prompts = [], []
    for prompt in many:
        if isinstance(prompt, str):
            texts.append(prompt)
            prompts.append(tokenizer.encode(prompt))
        elif isinstance(prompt, list) and prompt and all(type(t) is int and t >= 0 for t in prompt):
            decoder = tokenizer.decoder()
            texts.append("".join(decoder.feed(t) for t in prompt) + decoder.flush())
            prompts.append(tuple(prompt))
        else:
            raise SpecError(f"prompt={prompt!r}: text, a list of texts, or a list of token ids")
    return tuple(texts), tuple(prompts)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else (value or [])
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise SpecError(f"stop={value!r}: a text or up to {_MOST_STOPS} texts")
    return tuple(stops)


class StopWatch:
    """Passes text on until a stop string appears, holding back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held = stops, ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The part of `text` that may be shown now."""
        self._held += text
        found = [at for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, at the end."""
        shown, self._held = self._held, ""
        return shown


def chunk(ident: str, created: int, model: str, index: int, text: str, finish: Finish | None) -> dict[str, Any]:
    """One choice as a completion object, whole or streamed."""
    return {
        "id": ident,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": finish and finish.value}],
    }


def problem(message: str, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
