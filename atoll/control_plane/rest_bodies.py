"""Bodies of requests and answers: read and written by the schema's codec, and told in the OpenAPI description.

The description is FastAPI's, with what it cannot know: bodies that the codec reads, and what they are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.responses import JSONResponse, Response

from atoll.control_plane.rest_answers import json_response
from atoll.errors import NotFoundError, SchemaError, SpecError
from atoll.schema.codec import decode_as
from atoll.schema.job_keys import NOTES, hints
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunView

T = TypeVar("T")

# A spec is a few KiB; its config is for settings, not for data.
BODY_LIMIT = 1 << 20
_REF = "#/components/schemas/{model}"
_DEFS = "x-atoll-defs"
NAME = {"pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"}
_BARE: dict[str, Any] = {"response_class": Response, "response_model": None}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same job under the same key is one run, for a day.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNamed:
    """Answer of a wish about a run."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHarmed(RunNamed):
    """Answer of a wish to hurt a trainer; `at` is the moment of the order."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNamed:
    """Answer of a wish about a node."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrained(NodeNamed):
    """Answer of a wish to drain one; `until` is the deadline."""

    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinesTaken:
    """Answer of an autoscaler's offer: how many types were taken in."""

    offers: int


def answers(model: Any, status: int = 200) -> dict[str, Any]:
    """Route options: `model` in the OpenAPI description, while the codec writes the body."""
    told = {status: {"model": model, "description": "Success"}}
    return {"responses": told, "status_code": status, "response_class": JSONResponse, "response_model": None}


def events_of(*kinds: str) -> dict[str, Any]:
    """Route options of a stream of server-sent events of these kinds."""
    told = f"Server-sent events: {', '.join(kinds)}"
    message = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"type": "string", "enum": list(kinds)},
            "id": {"type": "string"},
            "data": {"type": "string"},
        },
    }
    content = {"text/event-stream": {"schema": message}}
    return {"responses": {200: {"description": told, "content": content}}} | _BARE


def text_of(what: str) -> dict[str, Any]:
    """Route options of plain text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"responses": {200: {"description": what, "content": content}}} | _BARE


def paged(runs: Sequence[RunView], after: str | None, limit: int) -> Response:
    """The page of `runs` behind the run `after`, with the address of the next in `Link`. Raises `NotFoundError`."""
    first = 0
    if after is not None:
        first = next((i + 1 for i, view in enumerate(runs) if view.run == after), 0)
        if not first:
            raise NotFoundError(f"after={after!r}: no such run; begin again without it")
    page = runs[first : first + limit]
    answer = json_response(page)
    if first + limit < len(runs):
        answer.headers["Link"] = f'</api/runs?after={quote(page[-1].run)}&limit={limit}>; rel="next"'
    return answer


def body(
    model: type, *, required: bool = True, keyed: bool = False, limits: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The OpenAPI description of a body that the codec reads; `keyed`: it may come with an Idempotency-Key.

    `limits`: what is asked of fields beside their type.
    """
    schema = TypeAdapter(model).json_schema(ref_template=_REF)
    for name, more in (limits or (_of_a_job() if model is JobSpec else {})).items():
        schema["properties"][name] |= more
    told = {"required": required, "content": {"application/json": {"schema": schema}}}
    key = {"parameters": [_KEY]} if keyed else {}
    return {"requestBody": told, _DEFS: schema.pop("$defs", {})} | key


def _of_a_job() -> dict[str, dict[str, Any]]:
    """What `check_spec` asks of single fields, in the words of JSON Schema."""
    said = {name: note for name, note in NOTES.items() if note.least is not None or note.among}
    found: dict[str, dict[str, Any]] = {}
    for name, kind in hints().items():
        if name in said and kind in {int, float}:
            note = said[name]
            found[name] = {"minimum": note.least} | ({} if note.most is None else {"maximum": note.most})
        elif name in said and kind is str:
            found[name] = {"enum": list(said[name].among)}
    dotted = {"pattern": r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"}
    named = {"anyOf": [{"type": "string"} | NAME, {"type": "null"}]}
    return found | {"name": NAME, "queue": NAME, "run_id": named, "file": {"pattern": r"\.py$"}, "function": dotted}


def describe(app: FastAPI) -> None:
    """Have `app.openapi` tell also what bodies are made of."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = told.setdefault("components", {}).setdefault("schemas", {})
            for operation in (o for path in told["paths"].values() for o in path.values()):
                schemas |= {name: schema for name, schema in operation.pop(_DEFS, {}).items() if name not in schemas}
                _drop_fastapi_errors(operation)
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            told["components"]["schemas"] = dict(sorted(schemas.items()))
            told["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            told["security"] = [{"token": []}]
            app.openapi_schema = told
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way of extending it


def _drop_fastapi_errors(operation: dict[str, Any]) -> None:
    """Every problem is a `ProblemView`, as the default answer says; FastAPI would tell of another form for 422."""
    content = operation["responses"].get("422", {}).get("content", {})
    if "HTTPValidationError" in str(content):
        del operation["responses"]["422"]


async def read_body(request: Request) -> bytes:
    """The whole body. Raises `SpecError` where it is too large."""
    given = b""
    async for piece in request.stream():
        given += piece
        if len(given) > BODY_LIMIT:
            raise SpecError(f"the body is over {BODY_LIMIT} bytes; hand data over as files, not in `config`")
    return given


def decode(cls: type[T], given: bytes) -> T:
    """The `cls` in a body. Raises `SpecError`."""
    try:
        return decode_as(cls, given)
    except SchemaError as error:  # not a bug of ours but of whoever wrote the body
        raise SpecError(f"the body does not fit: {error}; see /api/openapi.json") from None
