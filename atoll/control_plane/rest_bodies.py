"""Bodies of requests and answers: read and written by the schema's codec, and told in the OpenAPI description.

The description is FastAPI's, with what it cannot know: bodies that the codec reads, and what they are made of.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.responses import Response

from atoll.errors import SchemaError, SpecError
from atoll.schema.codec import decode_as

T = TypeVar("T")

# A spec is a few KiB; its config is for settings, not for data.
BODY_LIMIT = 1 << 20
_REF = "#/components/schemas/{model}"
_DEFS = "x-atoll-defs"


def answers(model: Any, status: int = 200) -> dict[str, Any]:
    """Route options: `model` in the OpenAPI description, while the codec writes the body."""
    told = {status: {"model": model, "description": "Success"}}
    return {"responses": told, "status_code": status, "response_class": Response, "response_model": None}


def body(model: type, *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI description of a body that the codec reads."""
    schema = TypeAdapter(model).json_schema(ref_template=_REF)
    told = {"required": required, "content": {"application/json": {"schema": schema}}}
    return {"requestBody": told, _DEFS: schema.pop("$defs", {})}


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
