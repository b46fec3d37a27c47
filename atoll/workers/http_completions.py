"""OpenAI's completions, as bodies and chunks: what is asked, checked, and what is answered.

https://platform.openai.com/docs/api-reference/completions; what would change the answer and is not supported is refused,
not ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.errors import SpecError
from atoll.workers.engine import Finish, Sampling
from atoll.workers.engine_core import check_prompt
from atoll.workers.tokenizer_runtime import Tokenizer

_MOST_STOPS = 4
_MOST_PROMPTS = 128
_SHOWN = 80
# Fields that would change the answer, with the values that leave it as it is.
_UNSUPPORTED: Mapping[str, Sequence[Any]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None,),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
_NUMBERS: Mapping[str, tuple[type | tuple[type, ...], float, float]] = {
    "max_tokens": (int, 1, 1 << 20),
    "temperature": ((int, float), 0.0, 10.0),
    "top_p": ((int, float), 0.0, 1.0),
    "top_k": (int, 0, 1 << 20),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A checked request: the prompts as tokens, how to choose, and the strings that end it.

    `texts` are what `echo` repeats. `usage` asks for a last chunk of a stream with the counts.
    """

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    echo: bool
    usage: bool


def parse(body: Mapping[str, Any], tokenizer: Tokenizer, *, seed: int, context: int, vocab: int) -> Completion:
    """The request in a JSON body. Raises `SpecError` naming the field; `seed` is used where the body has none."""
    for key, neutral in _UNSUPPORTED.items():
        if body.get(key) not in neutral:
            raise SpecError(f"{key}={_shown(body[key])} is not supported; leave it out")
    numbers = {key: _number(body, key) for key in _NUMBERS if body.get(key) is not None}
    stream, echo = _flag(body, "stream"), _flag(body, "echo")
    given = _given(body.get("prompt"))
    prompts = tuple(_prompt(p, tokenizer) for p in given)
    for prompt in prompts:
        check_prompt(prompt, context=context, vocab=vocab)
    if stream and len(prompts) != 1:
        raise SpecError(f"stream with {len(prompts)} prompts: stream one prompt at a time")
    return Completion(
        prompts=prompts,
        texts=tuple(_text(p, tokenizer) for p in given) if echo else (),
        sampling=Sampling(**{"seed": seed, **numbers}),
        stops=_stops(body.get("stop")),
        stream=stream,
        echo=echo,
        usage=_usage(body.get("stream_options")),
    )


def _number(body: Mapping[str, Any], key: str) -> Any:
    kind, least, most = _NUMBERS[key]
    value: Any = body[key]
    fits = isinstance(value, kind) and not isinstance(value, bool)
    # A comparison that NaN fails, too.
    if not (fits and least <= value <= most):
        what = "whole number" if kind is int else "number"
        raise SpecError(f"{key}={_shown(value)}: a {what} from {least:g} to {most:g}")
    return value


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise SpecError(f"{key}={_shown(value)}: true or false")
    return bool(value)


def _usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise SpecError(f"stream_options={_shown(options)}: an object like {{'include_usage': true}}")
    return _flag(options, "include_usage")


def _given(value: Any) -> list[Any]:
    many = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if len(many) > _MOST_PROMPTS:
        raise SpecError(f"prompt: {len(many)} prompts in one request; send {_MOST_PROMPTS} or fewer")
    return many


def _prompt(value: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return tuple(value)
    if not isinstance(value, str):
        raise SpecError(f"prompt={_shown(value)}: text, a list of texts, or a list of token ids")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SpecError(f"prompt: half a surrogate pair at place {error.start}; send whole characters") from None
    return tokenizer.encode(value)


def _text(prompt: str | Sequence[int], tokenizer: Tokenizer) -> str:
    if isinstance(prompt, str):
        return prompt
    decoder = tokenizer.decoder()
    return "".join(decoder.feed(token) for token in prompt) + decoder.flush()


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise SpecError(f"stop={_shown(value)}: a text or up to {_MOST_STOPS} texts, none empty")
    return tuple(stops)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class StopWatch:
    """Passes text on until a stop string appears, holding back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held = stops, ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The part of `text` that may be shown now."""
        self._held += text
        # The one that is complete first, so that the answer does not depend on how the text came in pieces.
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
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


def usage(prompt_tokens: int, made: int) -> dict[str, int]:
    """The counts of a request."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}
