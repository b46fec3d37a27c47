"""The replica's HTTP interface, without a socket."""

import asyncio
import json
import time

import httpx
import pytest

from atoll.errors import NonFiniteError

HEADERS = {"authorization": "Bearer s3cret"}


def client(app, headers=HEADERS):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica", headers=headers)


def post(app, body, headers=HEADERS):
    async def run():
        async with client(app, headers) as c:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await c.post("/v1/completions", content=content)

    return asyncio.run(run())


def get(app, path, headers=HEADERS):
    async def run():
        async with client(app, headers) as c:
            return await c.get(path)

    return asyncio.run(run())


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(b.startswith("data: ") for b in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(b.removeprefix("data: ")) for b in blocks]


def text_of(answer):
    return answer.json()["choices"][0]["text"]


def test_whole_answer_has_text_reason_and_usage(replica):
    _, _, app = replica()
    answer = post(app, {"prompt": "hi", "max_tokens": 4}).json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["choices"] == [{"index": 0, "text": "abcd", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


def test_stream_has_the_pieces_then_done(replica):
    _, _, app = replica()
    made = events(post(app, {"prompt": "hi", "max_tokens": 3, "stream": True}))
    assert [e["choices"][0]["text"] for e in made] == ["a", "b", "c"]
    assert [e["choices"][0]["finish_reason"] for e in made] == [None, None, "length"]
    assert len({e["id"] for e in made}) == 1


def test_stream_ends_with_usage_where_asked(replica):
    _, _, app = replica()
    body = {"prompt": "hi", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    last = events(post(app, body))[-1]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_stop_text_ends_the_answer_and_frees_the_engine(replica):
    engine, _, app = replica()
    answer = post(app, {"prompt": "hi", "max_tokens": 50, "stop": ["de"]})
    assert text_of(answer) == "abc"
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    made = events(post(app, {"prompt": "hi", "max_tokens": 50, "stop": "de", "stream": True}))
    assert "".join(e["choices"][0]["text"] for e in made) == "abc"
    settle(engine)


def settle(engine):
    end = time.monotonic() + 5
    while engine.busy:
        assert time.monotonic() < end, "a request that nobody reads goes on"
        time.sleep(0.002)


def test_characters_of_several_tokens_come_whole(replica):
    _, _, app = replica("é世".encode())
    made = events(post(app, {"prompt": "hi", "max_tokens": 6, "stream": True}))
    assert [e["choices"][0]["text"] for e in made] == ["é", "世", "\N{REPLACEMENT CHARACTER}"]


def test_echo_repeats_the_prompt_first(replica):
    _, _, app = replica()
    assert text_of(post(app, {"prompt": "hi ", "max_tokens": 2, "echo": True})) == "hi ab"
    made = events(post(app, {"prompt": [104, 105], "max_tokens": 1, "echo": True, "stream": True}))
    assert [e["choices"][0]["text"] for e in made] == ["hi", "a"]


def test_list_of_prompts_is_answered_in_its_order(replica):
    _, _, app = replica()
    answer = post(app, {"prompt": ["x", "yy", [122]], "max_tokens": 2, "echo": True}).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "xab"), (1, "yyab"), (2, "zab")]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid-spec"),
        (b"[]", 400, "invalid-spec"),
        (b"[" * 100_000, 400, "invalid-spec"),
        ({}, 400, "invalid-spec"),
        ({"prompt": ""}, 400, "invalid-spec"),
        ({"prompt": "x" * 64}, 400, "invalid-spec"),
        ({"prompt": [256], "stream": True}, 400, "invalid-spec"),
        ({"prompt": [10**400]}, 400, "invalid-spec"),
        ({"prompt": "\ud800"}, 400, "invalid-spec"),
        ({"prompt": "x", "stop": ["\ud800"] * 5}, 400, "invalid-spec"),
        (b" " * ((8 << 20) + 1), 413, "too-large"),
    ],
)
def test_bad_request_is_refused_in_openais_form(replica, body, status, code):
    _, _, app = replica()
    answer = post(app, body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Bearer s3cret2", "Bearer é"])
def test_without_the_secret_nothing_is_answered(replica, given):
    _, _, app = replica()
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    assert post(app, {"prompt": "hi"}, headers).status_code == 401
    assert get(app, "/v1/models", {}).status_code == 401


def test_models_and_health(replica):
    _, _, app = replica()
    assert get(app, "/v1/models").json()["data"] == [{"id": "tiny", "object": "model", "owned_by": "atoll"}]
    assert get(app, "/health", {}).json() == {"status": "ok"}


def test_step_that_fails_is_an_error_for_whole_and_streamed_answers(replica, capsys):
    engine, _, app = replica()
    engine.fail = [ZeroDivisionError("bug")]
    answer = post(app, {"prompt": ["a", "b"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "program-failed")
    # Answered after the probe that follows a failed step: the next fault meets a request, not the probe.
    assert text_of(post(app, {"prompt": "hi", "max_tokens": 1})) == "a"
    engine.fail = [ZeroDivisionError("bug")]
    # Nothing was streamed yet, so the answer has a status and the gateway can ask another replica.
    streamed = post(app, {"prompt": "hi", "stream": True})
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (500, "program-failed")
    assert text_of(post(app, {"prompt": "hi", "max_tokens": 1})) == "a"
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_fault_of_one_prompt_of_a_list_fails_the_request_and_frees_the_others(replica):
    engine, _, app = replica(context=1 << 20)

    class EndsIn1(dict):
        def __contains__(self, name):
            return name.endswith("-1")

        def __getitem__(self, name):
            return NonFiniteError("the logits reach nan")

    engine.bad = EndsIn1()
    answer = post(app, {"prompt": ["a", "b", "c"], "max_tokens": 1 << 19})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "non-finite")
    settle(engine)


def test_broken_engine_is_said_by_health_and_refused_before_a_stream_begins(replica, capsys):
    engine, made, app = replica()
    engine.broken = OSError("device lost")
    assert post(app, {"prompt": "hi"}).status_code in {500, 503}
    end = time.monotonic() + 5
    while made.engine.failure is None:
        assert time.monotonic() < end
        time.sleep(0.002)
    for answer in (post(app, {"prompt": "hi", "stream": True}), post(app, {"prompt": "hi"}), get(app, "/health")):
        assert answer.status_code == 503
        assert "device lost" in answer.json()["error"]["message"]


def asgi_scope(body):
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("replica", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"authorization", b"Bearer s3cret"), (b"content-length", str(len(body)).encode())],
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_asker_that_goes_away_frees_the_engine(replica, stream, held):
    """Also while no token comes: `held` keeps the first step from ending until the asker is gone."""
    engine, _, app = replica(context=1 << 20)
    body = json.dumps({"prompt": "hi", "max_tokens": 1 << 19, "stream": stream}).encode()

    async def run():
        messages, gone = [{"type": "http.request", "body": body, "more_body": False}], asyncio.Event()

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            await asyncio.sleep(0)

        if held:
            engine.go_on.clear()
        task = asyncio.create_task(app(asgi_scope(body), receive, send))
        await asyncio.to_thread(engine.stepping.wait, 5)
        gone.set()
        await asyncio.wait_for(task, 5)
        engine.go_on.set()

    asyncio.run(run())
    settle(engine)
