"""What the sync and the async client share of HTTP: settings, patience and the reading of answers.

A call that may be repeated is sent again while the connection fails, or the web process says that the control plane does
not answer it, with growing pauses, until `patience_s` is over: both are back within seconds of a crash, and nobody should
notice. The environment's proxies are not used:
the server is on this machine or reached by an address that was given.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from atoll import config
from atoll._client_calls import Call, answer, problem
from atoll.errors import ConnectError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

CONNECT_S = 3.0
# The server answers every call within 20 s, `doctor` included, or says that it could not.
ANSWER_S = 30.0
# The server pings a stream every 5 s; three missed pings are a gap.
STREAM_SILENCE_S = 16.0
PATIENCE_S = 10.0
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 2.0


def settings(target: config.Target, answer_s: float) -> dict[str, Any]:
    """Arguments of `httpx.Client` and `httpx.AsyncClient`."""
    import httpx  # noqa: PLC0415 - 150 ms that `import atoll` must not cost

    return {
        "base_url": target.url,
        "headers": {"Authorization": f"Bearer {target.token}"},
        "timeout": httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s)),
        "trust_env": False,
        "verify": config.trusted(target.ca) if target.ca is not None else True,
    }


def stream_timeout() -> httpx.Timeout:
    """Time limits of a stream: it may last, but not be silent."""
    import httpx  # noqa: PLC0415 - as above

    return httpx.Timeout(ANSWER_S, connect=CONNECT_S, read=STREAM_SILENCE_S)


def request_arguments(call: Call[Any]) -> dict[str, Any]:
    """`call` as arguments of httpx's `request` and `stream`."""
    body = {} if call.body is None else {"json": call.body}
    return {"method": call.method, "url": call.path, "params": call.params, "headers": call.headers, **body}


def pauses(patience_s: float) -> Iterator[float]:
    """The pauses between tries, doubling, that together last about `patience_s`."""
    pause, total = _FIRST_PAUSE_S, 0.0
    while total + pause <= patience_s:
        yield pause
        total += pause
        pause = min(pause * 2, _LAST_PAUSE_S)


def read_answer(call: Call[T], response: httpx.Response, url: str) -> T:
    """What `response` says. Raises the error that it names."""
    return answer(call, response.status_code, parse(response.content), url)


def refusal(status: int, content: bytes, url: str) -> Exception:
    """The typed error of a stream that was refused."""
    return problem(status, parse(content), url)


def parse(content: bytes) -> Any:
    """`content` as JSON, or None."""
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None


def may_repeat(call: Call[Any], error: Exception) -> bool:
    """True where sending `call` again after `error` can do no harm."""
    import httpx  # noqa: PLC0415 - as above

    return call.repeatable or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def new_key() -> str:
    """A key for one request that changes something, by which a server knows it when it comes again."""
    return secrets.token_hex(16)


def unreachable(url: str, error: Exception) -> ConnectError:
    """The error of a server that gives no answer."""
    why = str(error) or type(error).__name__
    return ConnectError(f"nothing answers at {url} ({why}); start the cluster with `atoll up`, or correct the address")


def transport_errors() -> tuple[type[Exception], ...]:
    """What httpx raises when a connection does not come about or breaks."""
    import httpx  # noqa: PLC0415 - as above

    return (httpx.TransportError,)


def ended_early() -> Exception:
    """A stream that ended properly although the run has not: the server was stopped."""
    import httpx  # noqa: PLC0415 - as above

    return httpx.RemoteProtocolError("the stream ended before the run did")
