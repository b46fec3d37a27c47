"""What is asked and how it is refused; stop strings across pieces."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.schema.http_requests import TooLargeError, json_object, read_body
from atoll.workers.engine import Finish
from atoll.workers.http_completions import StopWatch, chunk, parse, usage
from atoll.workers.tokenizer_runtime import BytesTokenizer


def parsed(**body):
    return parse({"prompt": "hi", **body}, BytesTokenizer(), seed=7, context=32, vocab=256)


def test_plain_body_has_openais_defaults_and_the_given_seed():
    wanted = parsed()
    assert wanted.prompts == ((104, 105),)
    assert (wanted.sampling.max_tokens, wanted.sampling.temperature, wanted.sampling.top_p) == (16, 1.0, 1.0)
    assert wanted.sampling.seed == 7
    assert (wanted.stops, wanted.stream, wanted.echo, wanted.usage) == ((), False, False, False)


def test_fields_are_taken_over():
    wanted = parsed(max_tokens=3, temperature=0, top_p=0, top_k=2, seed=-1, stop=["a", "bc"], echo=True)
    assert (wanted.sampling.max_tokens, wanted.sampling.temperature, wanted.sampling.seed) == (3, 0, -1)
    assert (wanted.sampling.top_p, wanted.sampling.top_k) == (0, 2)
    assert wanted.stops == ("a", "bc")
    assert wanted.texts == ("hi",)


@pytest.mark.parametrize(
    ("prompt", "prompts", "texts"),
    [
        ("hi", ((104, 105),), ("hi",)),
        (["a", "b"], ((97,), (98,)), ("a", "b")),
        ([104, 105], ((104, 105),), ("hi",)),
        ([[97], [98, 99]], ((97,), (98, 99)), ("a", "bc")),
        (["a", [98]], ((97,), (98,)), ("a", "b")),
    ],
)
def test_prompt_is_text_texts_tokens_or_lists_of_tokens(prompt, prompts, texts):
    wanted = parsed(prompt=prompt, echo=True)
    assert (wanted.prompts, wanted.texts) == (prompts, texts)


def test_fields_that_change_nothing_are_allowed():
    neutral = {"n": 1, "best_of": 1, "logprobs": None, "suffix": None, "logit_bias": {}, "presence_penalty": 0.0}
    assert parsed(**neutral, max_tokens=None, stop=None, user="me").stops == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("prompt", v) for v in (None, 5, "", [], [[]], {}, [None], ["a", 5], [1, "a"], [True], [1.5], [[1], None])),
        *(("prompt", v) for v in ("x" * 32, [256], [-1], [10**400], [[1], [1 << 70]], "\ud800", ["a"] * 129)),
        *(("max_tokens", v) for v in (0, -1, 1.5, "5", True, [], 1 << 30)),
        *(("temperature", v) for v in (-0.1, 11, "hot", True, float("nan"), float("inf"), 10**400)),
        *(("top_p", v) for v in (-0.1, 1.1, float("nan"), {})),
        *(("top_k", v) for v in (-1, 0.5, "1")),
        *(("seed", v) for v in (1 << 63, -(1 << 63) - 1, 0.5, "x")),
        *(("stop", v) for v in ("", [""], ["a"] * 5, 5, 0, False, {"a": 1}, [1])),
        *(("n", v) for v in (2, 0, [], {}, "1")),
        *(("best_of", v) for v in (2,)),
        *(("logprobs", v) for v in (1, 0, True)),
        *(("suffix", v) for v in ("end",)),
        *(("logit_bias", v) for v in ({"1": 5}, [1])),
        *(("presence_penalty", v) for v in (0.5,)),
        *(("frequency_penalty", v) for v in (1,)),
        *(("stream", v) for v in ("true", 1, [])),
        *(("echo", v) for v in ("false", 0)),
        *(("stream_options", v) for v in (True, [], "x")),
    ],
)
def test_bad_field_is_refused_by_its_name(field, value):
    with pytest.raises(SpecError, match=rf"^{field}\b") as caught:
        parsed(**{field: value})
    assert len(str(caught.value)) < 250


def test_bad_flag_of_the_stream_options_is_named():
    with pytest.raises(SpecError, match="include_usage=5"):
        parsed(stream_options={"include_usage": 5})


def test_stream_of_two_prompts_is_refused():
    with pytest.raises(SpecError, match="stream with 2 prompts"):
        parsed(prompt=["a", "b"], stream=True)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"5", b"null", b'"x"', b"[" * 200_000, b"9" * 5000])
def test_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(SpecError, match="the body is"):
        json_object(body)


async def endless():
    while True:
        yield b"x" * (1 << 20)


def test_body_without_an_end_is_refused_at_the_limit():
    import asyncio

    with pytest.raises(TooLargeError, match="over 8388608 bytes"):
        asyncio.run(read_body(endless()))


def shown(stops, pieces):
    watch, out = StopWatch(tuple(stops)), []
    for piece in pieces:
        out.append(watch.feed(piece))
        if watch.stopped:
            return out, True
    return [*out, watch.flush()], False


def test_stop_across_pieces_is_found_and_never_shown():
    assert shown(["END"], ["ab", "cE", "N", "Dxy"]) == (["ab", "c", "", ""], True)


def test_beginning_of_a_stop_that_does_not_go_on_is_shown_as_soon_as_that_is_known():
    assert shown(["END"], ["aE", "N", "x"]) == (["a", "", "ENx", ""], False)


def test_text_held_at_the_end_is_flushed_once():
    watch = StopWatch(("END",))
    assert [watch.feed("xEN"), watch.flush(), watch.flush()] == ["x", "EN", ""]


def test_stop_that_begins_anew_within_itself_is_found():
    assert shown(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], True)


def test_stop_at_the_very_beginning_leaves_nothing():
    assert shown(["x"], ["xyz"]) == ([""], True)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=14),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 14)),
)
def test_answer_does_not_depend_on_how_the_text_came_in_pieces(text, stops, cuts):
    places = [0, *sorted(c for c in cuts if 0 < c < len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    out, stopped = shown(stops, pieces)
    whole, found = shown(stops, [text])
    assert ("".join(out), stopped) == ("".join(whole), found)
    assert stopped == any(s in text for s in stops)
    assert not any(s in "".join(out) for s in stops)


def test_chunk_and_usage_are_openais():
    made = chunk("id", 5, "tiny", 1, "text", Finish.LENGTH)
    assert made["object"] == "text_completion"
    assert made["choices"] == [{"index": 1, "text": "text", "logprobs": None, "finish_reason": "length"}]
    assert usage(2, 3) == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
