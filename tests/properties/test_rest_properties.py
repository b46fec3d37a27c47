"""Whatever is sent to whichever endpoint by whomever: never a failure of ours, always an answer as it is described.

Requests are made out of the OpenAPI description: parameters, headers and bodies that fit it, nearly fit it, or do not at
all. No answer is a 5xx but the typed one of a model that nobody serves; every refusal is a problem with a code of
`atoll.errors`; every success fits the schema that the description gives for it.
"""

import asyncio
import dataclasses
import functools
import json
from urllib.parse import quote

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_app import description, whole

from atoll import errors
from atoll.control_plane.rest_auth import Guard
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader, running
from atoll.control_plane.rest_people import People
from atoll.control_plane.rest_source import ClusterSource
from atoll.schema.people import Role, UserWish
from atoll.schema.spec import JobSpec
from atoll.schema.views import CheckpointView, NodeView, RunState

TOLD = description()
OPERATIONS = [(m.upper(), path) for path, operations in TOLD["paths"].items() for m in operations]
URL = "http://127.0.0.1:8440"
# What is there, so that half of the requests find something.
KNOWN = {"run": "tiny-1", "node": "node-1", "user": "victim", "team": "research", "trainer": "tiny-1-t0"}
SERVED_BY_NOBODY = {"no-replica", "replica-unreachable"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NASTY = st.sampled_from(
    [
        b"",
        b"{",
        b"[" * 5000,
        b'{"name": "\\ud800"}',
        b'{"reason": "\\ud800\\u0000"}',
        b'{"days": 1' + b"0" * 400 + b"}",
        b'{"within_s": NaN, "grace_s": Infinity, "days": -Infinity}',
        b"\xff\xfe",
        b"null",
    ]
)


@functools.cache
def codes():
    found, left = set(), [errors.AtollError]
    while left:
        cls = left.pop()
        found.add(cls.code)
        left += cls.__subclasses__()
    return found


def resolved(schema):
    while "$ref" in schema:
        schema = TOLD["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def fitting(schema, depth=0):  # noqa: PLR0911 - one for each word of the vocabulary
    """Values that fit `schema`, as far as the description's own vocabulary goes."""
    schema = resolved(schema)
    if "anyOf" in schema:
        return st.one_of([fitting(option, depth) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "integer":
            return st.integers(schema.get("minimum", -(10**30)), schema.get("maximum", 10**30))
        case "number":
            return st.floats() | st.integers()
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "string":
            return st.text(max_size=12)
        case "array":
            inner = fitting(schema["items"], depth + 1) if "items" in schema else JSON
            return st.lists(inner, max_size=3)
        case "object" if schema.get("properties") and depth < 4:
            needed = {
                n: fitting(s, depth + 1) for n, s in schema["properties"].items() if n in schema.get("required", ())
            }
            others = {n: fitting(s, depth + 1) for n, s in schema["properties"].items() if n not in needed}
            return st.fixed_dictionaries(needed, optional=others)
        case _:
            return JSON


@st.composite
def requests(draw, method, path):
    told = TOLD["paths"][path][method.lower()]
    names = st.sampled_from(sorted(KNOWN.values())) | st.text(min_size=1, max_size=10)
    query, headers, filled = {}, {}, path
    for parameter in told.get("parameters", []):
        name, schema = parameter["name"], parameter["schema"]
        if parameter["in"] == "path":
            value = draw(st.just(KNOWN[name]) | names)
            filled = filled.replace("{" + name + "}", quote(value, safe="", errors="replace"))
        elif parameter["in"] == "query" and (parameter["required"] or draw(st.booleans())):
            value = draw(st.just(KNOWN.get(name, "1")) | fitting(schema) | JSON)
            query[name] = str(value).encode("utf-8", "replace").decode()
        elif parameter["in"] == "header" and draw(st.booleans()):
            # Blanks around a value belong to no header; a client or server takes them away.
            headers[name] = draw(st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True))
    body = b""
    if "requestBody" in told:
        schema = told["requestBody"]["content"]["application/json"]["schema"]
        made = st.builds(lambda value: json.dumps(value).encode(), fitting(schema) | JSON)
        body = draw(made | NASTY | st.binary(max_size=40))
    return filled, query, headers, body


class Site:
    """The application over a cluster with one of everything, and a token of each role."""

    def __init__(self):
        self.runner = asyncio.Runner()
        self.people = People("own")
        self.reader = MemoryReader()
        self.control = MemoryControl(self.reader)
        app = whole(ClusterSource(self.reader, self.control))
        self.app = Guard(app, token="own", hosts=frozenset({"127.0.0.1"}), people=self.people)
        self.runner.run(self.people.set_team("research", ("default",)))
        self.runner.run(self.people.add(UserWish(name="victim")))
        self.tokens = {role: self.runner.run(self._add(role)) for role in Role}

    async def _add(self, role):
        return (await self.people.add(UserWish(name=f"some-{role}", role=role, team="research"))).token

    def anew(self):
        """A cluster with one of everything; people, whom requests may add and remove, stay as they are."""
        self.reader.__init__()
        self.control.__init__(self.reader)
        reader = self.reader
        spec = JobSpec(name="tiny", working_dir="/code", file="train.py", owner="some-user", chaos=True)
        reader.views["tiny-1"] = running("tiny-1", spec)
        reader.tell("tiny-1", "tiny-1", "epoch", "epoch 1")
        reader.commit("tiny-1", 1, loss=1.0)
        # Ended, so that a stream has an end.
        reader.become("tiny-1", state=RunState.SUCCEEDED, exit_code=0)
        reader.saved.append(CheckpointView(run="tiny-1", step=1, path="/c/1", bytes=1, seconds=0.1, at=1.0))
        reader.hosts = [NodeView(node="node-1", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=2.0, agent=True)]
        self.control.logs["tiny-1-t0"] = b"one\ntwo\n"

    def ask(self, method, path, role, query, headers, body):
        self.anew()

        async def once():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            token = "own" if role is Role.ADMIN else self.tokens[role]
            given = {"Authorization": f"Bearer {token}", **headers}
            async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
                return await client.request(method, path, params=query, headers=given, content=body)

        return self.runner.run(once())


@pytest.fixture(scope="module")
def site():
    made = Site()
    yield made
    made.runner.close()


def check(method, path, answer):
    told = TOLD["paths"][path][method.lower()]["responses"]
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if answer.status_code >= 400:
        plain = answer.json()
        code = plain["error"]["code"] if "error" in plain else plain["code"]
        assert answer.status_code < 500 or code in SERVED_BY_NOBODY, answer.text
        assert path.startswith("/v1/") or code in codes(), code
        fit = told["default"]
    else:
        assert str(answer.status_code) in told, f"{answer.status_code} is not described"
        fit = told[str(answer.status_code)]
    assert kind in fit["content"], kind
    if kind == "application/json":
        schema = {**fit["content"][kind]["schema"], "components": TOLD["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{m} {p}" for m, p in OPERATIONS])
def test_any_request_is_answered_as_described(site, method, path):
    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(method, path), st.sampled_from(Role))
    def holds(request, role):
        filled, query, headers, body = request
        answer = site.ask(method, filled, role, query, headers, body)
        # A name such as ".." makes another path of it; that is answered, too, and by its own description.
        if answer.request.url.raw_path.partition(b"?")[0] == filled.encode():
            check(method, path, answer)
        assert answer.status_code < 500 or SERVED_BY_NOBODY & {answer.headers.get("x-atoll-problem"), *_codes(answer)}

    holds()


def _codes(answer):
    try:
        return {str(answer.json()["error"]["code"])}
    except (ValueError, KeyError, TypeError):
        return set()


def test_submission_that_fits_is_accepted_from_users_and_up(site):
    spec = {"name": "tiny", "working_dir": "/code", "file": "train.py"}
    for role in Role:
        answer = site.ask("POST", "/api/runs", role, {}, {}, json.dumps(spec).encode())
        assert answer.status_code == (403 if role is Role.VIEWER else 201)
        check("POST", "/api/runs", answer)
    assert {field.name for field in dataclasses.fields(JobSpec)} >= set(spec)


HEADER = st.binary(max_size=60).filter(lambda raw: not set(raw) & set(b"\r\n\0"))
NAMES = st.sampled_from(
    [b"host", b"origin", b"authorization", b"cookie", b"x-atoll-csrf", b"sec-fetch-site", b"x-forwarded-for", b"accept"]
)
PLAUSIBLE = st.sampled_from(
    [
        b"127.0.0.1:8440",
        b"http://127.0.0.1:8440",
        b"Bearer ",
        b"Bearer atoll_" + b"0" * 12 + b"_" + b"0" * 64,
        b"atoll_session=cluster.99999999999.00." + b"0" * 64,
        b"atoll_session=" + b"." * 9,
        b"text/html",
        b"same-origin",
    ]
)


def raw(site, method, path, headers):
    """What is answered to exactly these bytes."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("10.0.0.9", 1),
        "scheme": "http",
    }
    site.runner.run(site.app(scope, receive, send))
    return sent[0]["status"]


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(OPERATIONS),
    st.lists(st.tuples(NAMES, HEADER | PLAUSIBLE), max_size=6),
    st.booleans(),
)
def test_whoever_shows_no_good_token_gets_nothing_whatever_the_headers_hold(site, where, headers, named):
    method, path = where
    for name, value in KNOWN.items():
        path = path.replace("{" + name + "}", value)
    site.anew()
    host = [(b"host", b"127.0.0.1:8440")] if named else []
    status = raw(site, method, path, [*host, *headers])
    assert status in {401, 403, 421, 429} or path == "/api/health"
    assert site.control.asked == []
