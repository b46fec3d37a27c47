"""How values and errors become HTTP answers.

Bodies are written by the schema's codec, so that REST, journal and channels have one JSON form, NaN included: a loss
that is no number is news and must reach whoever watches. The status follows from the error's place in the tree.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from atoll.errors import (
    AlreadyThere,
    AtollError,
    AuthError,
    CapacityError,
    ClusterError,
    ConnectError,
    ForbiddenError,
    KeyReused,
    NotFoundError,
    PeerError,
    ThrottledError,
    UserError,
)
from atoll.schema.codec import encode
from atoll.schema.views import ProblemView

# The error's code beside its body, for those who see the answer pass by.
PROBLEM_HEADER = "x-atoll-problem"
# A bucket of tries gains one in six seconds.
_RETRY_AFTER_S = "6"

_STATUS: list[tuple[type[AtollError], int]] = [
    (AuthError, 401),
    (ForbiddenError, 403),
    (ThrottledError, 429),
    (KeyReused, 409),
    (AlreadyThere, 409),
    (NotFoundError, 404),
    (UserError, 400),
    (CapacityError, 409),
    (ConnectError, 503),
    (PeerError, 502),
    (ClusterError, 409),
    (AtollError, 500),
]


def status_of(error: AtollError) -> int:
    """The HTTP status of `error`."""
    return next(status for cls, status in _STATUS if isinstance(error, cls))


def json_response(value: Any, status: int = 200) -> Response:
    """`value` (views, lists, scalars) as a JSON answer."""
    return Response(encode(value), status_code=status, media_type="application/json")


def problem_response(error: AtollError, status: int | None = None) -> Response:
    """`error` as a `ProblemView`."""
    answer = json_response(ProblemView(code=error.code, problem=str(error)), status or status_of(error))
    answer.headers[PROBLEM_HEADER] = error.code
    if isinstance(error, ThrottledError):
        answer.headers["Retry-After"] = _RETRY_AFTER_S
    if answer.status_code == _STATUS[0][1]:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
