"""The REST calls as values: what to send and how to read the answer. Pure, shared by both clients.

A `Call` says whether it may be sent again after a broken connection: reads may, and so may `stop` and `beat`, whose
second arrival changes nothing. `submit` carries a key by which the server knows it again. Answers are the
views of `atoll.schema.views`; an answer that is no success carries a `ProblemView`, whose code picks the error class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from atoll.errors import AtollError, ConnectError, NotFoundError, SchemaError, by_code
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.harm import HarmWish
from atoll.schema.ids import RunId, is_safe_name
from atoll.schema.messages import Finding, LogChunk
from atoll.schema.offers import Offers
from atoll.schema.spec import JobSpec
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, ProblemView, RunView, TopologyView

T = TypeVar("T")
V = TypeVar("V")

HTTP_ERROR = 400
# Rows that are asked for at a time: as many as the server gives. A shorter page is the last.
PAGE = 5000
RUNS_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request and the reader of its answer."""

    method: str
    path: str
    read: Callable[[Any], T]
    params: dict[str, str | int] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    repeatable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """What answers at the address."""

    atoll: str
    protocol: int
    python: str


def run_path(run: str, rest: str = "") -> str:
    """The path of a run. Raises `NotFoundError` for what cannot be a run id, before it becomes part of a URL."""
    if not is_safe_name(run):
        raise NotFoundError(f"no run {run!r}: an id has letters, digits, '_', '.' and '-' only; `atoll ls` lists them")
    return f"/api/runs/{run}{rest}"


def node_path(node: str, rest: str) -> str:
    """The path of a node. Raises `NotFoundError` for what cannot be a node's name."""
    if not is_safe_name(node):
        raise NotFoundError(f"no node {node!r}; `atoll status` lists the nodes of the cluster")
    return f"/api/nodes/{node}{rest}"


def submit(spec: JobSpec, key: str) -> Call[RunId]:
    """Hand over a job. Sent twice with the same `key` it is one job."""
    headers = {"Idempotency-Key": key}
    return Call(method="POST", path="/api/runs", body=to_plain(spec), headers=headers, read=lambda a: RunId(a["run"]))


def runs(after: str | None) -> Call[list[RunView]]:
    """A page of runs, the newest first; behind the run `after`."""
    params: dict[str, str | int] = {"limit": RUNS_PAGE} | ({} if after is None else {"after": after})
    return Call(method="GET", path="/api/runs", params=params, read=_many(RunView))


def run(run_id: str) -> Call[RunView]:
    """One run with its spec."""
    return Call(method="GET", path=run_path(run_id), read=_one(RunView))


def stop(run_id: str, reason: str) -> Call[None]:
    """Ask a run to stop at its next step boundary."""
    return Call(method="POST", path=run_path(run_id, "/stop"), body={"reason": reason}, read=_nothing)


def harm(run_id: str, wish: HarmWish) -> Call[float]:
    """Hurt a trainer on purpose. Twice is not as once."""
    path = run_path(run_id, "/harm")
    return Call(method="POST", path=path, body=to_plain(wish), read=lambda a: float(a["at"]), repeatable=False)


def beat(run_id: str) -> Call[None]:
    """Say that the run's driver lives."""
    return Call(method="POST", path=run_path(run_id, "/beat"), body={}, read=_nothing)


def events(run_id: str, after: int) -> Call[list[EventView]]:
    """A page of the events of a run with a number above `after`."""
    params: dict[str, str | int] = {"after": after, "limit": PAGE}
    return Call(method="GET", path=run_path(run_id, "/events"), params=params, read=_many(EventView))


def metrics(run_id: str, after_step: int) -> Call[list[MetricPoint]]:
    """A page of the measurements of committed steps above `after_step`."""
    params: dict[str, str | int] = {"after_step": after_step, "limit": PAGE}
    return Call(method="GET", path=run_path(run_id, "/metrics"), params=params, read=_many(MetricPoint))


def log(run_id: str, trainer: str, offset: int, limit: int) -> Call[LogChunk]:
    """A piece of a trainer's log."""
    params: dict[str, str | int] = {"trainer": trainer, "offset": offset, "limit": limit}
    return Call(method="GET", path=run_path(run_id, "/logs"), params=params, read=_one(LogChunk))


def checkpoints(run_id: str) -> Call[list[CheckpointView]]:
    """The durable checkpoints of a run."""
    return Call(method="GET", path=run_path(run_id, "/checkpoints"), read=_many(CheckpointView))


def nodes() -> Call[list[NodeView]]:
    """The hosts of the cluster."""
    return Call(method="GET", path="/api/nodes", read=_many(NodeView))


def drain(node: str, within_s: float, reason: str) -> Call[float]:
    """Have a node emptied. Asked twice it is as asked once: a deadline is never postponed."""
    body = {"within_s": within_s, "reason": reason}
    return Call(method="POST", path=node_path(node, "/drain"), body=body, read=lambda a: float(a["until"]))


def undrain(node: str) -> Call[None]:
    """Let trainers be placed on a drained node again."""
    return Call(method="POST", path=node_path(node, "/undrain"), body={}, read=_nothing, repeatable=False)


def offer(offers: Offers) -> Call[None]:
    """What an autoscaler would start."""
    return Call(method="POST", path="/api/machines", body=to_plain(offers), read=_nothing)


def topology() -> Call[TopologyView]:
    """The network: NICs, measured links, trunks and islands."""
    return Call(method="GET", path="/api/topology", read=_one(TopologyView))


def story(subject: str, limit: int) -> Call[list[EventView]]:
    """What happened to a run, trainer or node, or everything that one cause brought about."""
    return Call(method="GET", path="/api/story", params={"subject": subject, "limit": limit}, read=_many(EventView))


def doctor() -> Call[list[Finding]]:
    """Check every node."""
    return Call(method="GET", path="/api/doctor", read=_many(Finding))


def version() -> Call[VersionView]:
    """What answers at the address."""
    return Call(method="GET", path="/api/version", read=_one(VersionView))


def models() -> Call[list[str]]:
    """The names of the models that are served."""
    return Call(method="GET", path="/v1/models", read=lambda a: [m["id"] for m in a["data"]])


def only_model(names: list[str]) -> str:
    """The one model that is served. Raises `NotFoundError` where there is none, or a choice."""
    if not names:
        raise NotFoundError("no model is served; start one with `atoll serve RUN`")
    if len(names) > 1:
        raise NotFoundError(f"several models are served ({', '.join(names)}); name one with model=")
    return names[0]


def completion(prompt: str, model: str, *, stream: bool, options: Mapping[str, Any]) -> Call[str]:
    """An OpenAI-compatible completion. Not sent twice: generating costs the cluster work."""
    body = {**options, "model": model, "prompt": prompt, "stream": stream}
    return Call(
        method="POST",
        path="/v1/completions",
        body=body,
        read=lambda a: str(a["choices"][0]["text"]),
        repeatable=False,
    )


def answer(call: Call[T], status: int, plain: Any, url: str) -> T:
    """What `call` was answered with. Raises the error that a `ProblemView` names."""
    if status >= HTTP_ERROR:
        raise problem(status, plain, url)
    try:
        return call.read(plain)
    except (KeyError, IndexError, TypeError) as error:
        raise SchemaError(f"{call.method} {url}{call.path} answered in an unknown form: {error!r}") from None


def problem(status: int, plain: Any, url: str) -> AtollError:
    """The typed error of an answer that is no success. OpenAI's error form, as /v1 answers, is read too."""
    if isinstance(plain, dict) and isinstance(plain.get("error"), dict):
        inner = plain["error"]
        plain = {"code": str(inner.get("code", "")), "problem": str(inner.get("message", ""))}
    try:
        view = from_plain(ProblemView, plain)
    except SchemaError:
        return ConnectError(f"{url} answered HTTP {status} and not as Atoll does; check the address")
    text = f"{view.problem}; {view.remedy}" if view.remedy else view.problem
    return by_code(view.code)(text)


def _one(cls: type[V]) -> Callable[[Any], V]:
    return lambda plain: from_plain(cls, plain)


def _many(cls: type[V]) -> Callable[[Any], list[V]]:
    return lambda plain: [from_plain(cls, item) for item in plain]


def _nothing(plain: Any) -> None:
    del plain
