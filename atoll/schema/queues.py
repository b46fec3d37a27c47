"""How the cluster is shared: flavors, queues and the arbiter's settings, as an operator writes them.

    [[flavor]]
    name = "fast"
    selector = { device = ["H200"], zone = ["!b"] }     # labels of nodes; `!` excludes

    [[queue]]
    name = "research"
    weight = 2.0
    cohort = "all"                                       # queues of one cohort lend one another what they do not use
    [[queue.quota]]
    flavor = "fast"
    gpus = 8
    borrow_gpus = 4

    [settings]
    grow_after_s = 30

What is left out is unbounded. Without any of it there is one queue, `default`, that may use everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from atoll.errors import SpecError
from atoll.schema.ids import is_safe_name
from atoll.schema.nearest import nearest
from atoll.schema.sharing import DEFAULT_QUEUE, MOST_DEVICES, MOST_S, PRIORITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class FlavorWish:
    """A named selector over labels of nodes: each key must have one of the values; `!value` excludes one."""

    name: str
    selector: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaWish:
    """What a queue has of a flavor for itself, may borrow beyond it, and lends of it; None: unbounded."""

    flavor: str
    cpus: float = 0.0
    gpus: float = 0.0
    borrow_cpus: float | None = None
    borrow_gpus: float | None = None
    lend_cpus: float | None = None
    lend_gpus: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueWish:
    """A queue; shares are divided by `weight`. Without quotas it may use everything."""

    name: str
    weight: float = 1.0
    cohort: str = ""
    highest_priority: int = PRIORITIES[-1]
    quota: tuple[QuotaWish, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterWish:
    """When the arbiter disturbs runs, in seconds and counts; None: as it is built."""

    half_life_s: float | None = None
    starve_s: float | None = None
    calm_s: float | None = None
    disturbances_per_hour: int | None = None
    grow_after_s: float | None = None
    horizon_s: float | None = None
    move_gain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """All of it. A cluster that nobody told anything has one queue."""

    flavor: tuple[FlavorWish, ...] = ()
    queue: tuple[QueueWish, ...] = (QueueWish(name=DEFAULT_QUEUE),)
    settings: ArbiterWish = field(default_factory=ArbiterWish)


def check_sharing(sharing: Sharing) -> Sharing:
    """`sharing` itself, or a `SpecError` that names what is wrong."""
    for problem in _problems(sharing):
        raise SpecError(problem)
    return sharing


def _problems(sharing: Sharing) -> Iterator[str]:
    for what, names in (
        ("flavor", [f.name for f in sharing.flavor]),
        ("queue", [q.name for q in sharing.queue]),
    ):
        yield from (f"{what} {n!r}: use letters, digits, '_', '.' and '-' only" for n in names if not is_safe_name(n))
        yield from (f"{what} {n!r} is there twice" for n in dict.fromkeys(names) if names.count(n) > 1)
    if not sharing.queue:
        yield "no queue is left: name one, such as [[queue]] name = 'default'"
    flavors = {f.name for f in sharing.flavor}
    for queue in sharing.queue:
        yield from _queue_problems(queue, flavors)
    for name, value in _numbers(sharing.settings):
        if value is not None and not 0 <= value <= MOST_S:
            yield f"settings.{name}={value}: a number, 0 or more, at most {MOST_S:.0e}"


def _queue_problems(queue: QueueWish, flavors: set[str]) -> Iterator[str]:
    where = f"queue {queue.name!r}"
    if not 0 < queue.weight <= MOST_DEVICES:
        yield f"{where}: weight={queue.weight}: a number above 0, at most {MOST_DEVICES:.0f}"
    if queue.highest_priority not in PRIORITIES:
        yield f"{where}: highest_priority={queue.highest_priority}: from {PRIORITIES[0]} to {PRIORITIES[-1]}"
    for quota in queue.quota:
        if quota.flavor not in flavors:
            named = ", ".join(sorted(flavors)) or "none"
            yield f"{where}: quota of flavor {quota.flavor!r}, which is not there; flavors: {named}"
        for name, value in _numbers(quota):
            if value is not None and not 0 <= value <= MOST_DEVICES:
                yield f"{where}: quota {quota.flavor}: {name}={value}: a number, 0 or more, at most {MOST_DEVICES:.0f}"


def _numbers(wish: QuotaWish | ArbiterWish) -> Iterator[tuple[str, float | None]]:
    for name in type(wish).__slots__:
        value = getattr(wish, name)
        if value is None or isinstance(value, int | float):
            yield name, value


def unknown_keys(plain: dict[str, Any]) -> list[str]:
    """Keys of a written file that mean nothing, each with the nearest that does."""
    found = _strangers(plain, Sharing, "")
    for flavor in _tables(plain, "flavor"):
        found += _strangers(flavor, FlavorWish, f"flavor {flavor.get('name', '')!r}: ")
    for queue in _tables(plain, "queue"):
        found += _strangers(queue, QueueWish, f"queue {queue.get('name', '')!r}: ")
        for quota in _tables(queue, "quota"):
            found += _strangers(quota, QuotaWish, f"queue {queue.get('name', '')!r}: quota: ")
    settings = plain.get("settings", {})
    return found + (_strangers(settings, ArbiterWish, "settings: ") if isinstance(settings, dict) else [])


def _tables(plain: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = plain.get(key, [])
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _strangers(plain: dict[str, Any], cls: type, where: str) -> list[str]:
    valid = [field.name for field in fields(cls)]
    return [
        f"{where}there is no key {key!r}; the nearest is {nearest(key, valid)!r}" for key in plain if key not in valid
    ]
