"""Plans of faults: what is to be done to whom, and when. Pure; whoever has a plan asks it what is due.

    seed = 7                      # chooses where a fault says "any"

    [[faults]]
    at_s = 10                     # seconds after all members train; or at_step = 50, a committed step
    what = "kill"                 # kill, stop, gil, slow, flip, die (at = "before-vote"), agent
    whom = "rank 0"               # rank N, any, others (any but rank 0), spare, all, or a trainer's id

    [[faults]]
    at_step = 80
    what = "stop"
    whom = "any"
    for_s = 20                    # then it goes on; for ever unless given

    [random]                      # besides: one of these, on average so often, until so long after the begin
    every_s = 20
    until_s = 300
    what = ["kill", "stop", "gil"]

Times between faults of `[random]` are drawn from an exponential distribution, so that faults also meet one another.
"""

from __future__ import annotations

import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import SpecError
from atoll.fault.places import CHECKPOINT_FAILPOINTS, FAILPOINTS, LEARNING_FAILPOINTS, UPLOAD_FAILPOINTS
from atoll.schema.harm import PASSING, Harm
from atoll.schema.ids import TrainerId
from atoll.schema.views import TrainerView

# A stopped or slowed trainer of a random plan: longer than any detector takes, shorter than a lifeline.
RANDOM_FOR_S = 30.0
_RANK = re.compile(r"rank (\d+)")
_WORDS = ("any", "others", "spare", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One entry of a plan. Either `at_s` or `at_step`; `for_s` 0: for good; `at`: the failpoint of `die`."""

    what: Harm
    whom: str
    at_s: float | None = None
    at_step: int | None = None
    for_s: float = 0.0
    at: str = ""

    def due(self, *, since_s: float, step: int) -> bool:
        """Whether its moment has come."""
        return since_s >= self.at_s if self.at_s is not None else self.at_step is not None and step >= self.at_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Faults in the order of the file; those drawn at random follow."""

    faults: tuple[Fault, ...]
    seed: int = 0


@dataclass(slots=True)
class Course:
    """A plan on its way: what was struck already, and who is chosen where a fault leaves it open."""

    plan: Plan
    struck: set[int] = field(default_factory=set)

    def due(self, *, since_s: float, step: int) -> list[Fault]:
        """What is to be done now; it is not said again."""
        now = [i for i, f in enumerate(self.plan.faults) if i not in self.struck and f.due(since_s=since_s, step=step)]
        self.struck.update(now)
        return [self.plan.faults[i] for i in now]

    @property
    def over(self) -> bool:
        """Nothing is left to be done."""
        return len(self.struck) == len(self.plan.faults)


def victims(fault: Fault, trainers: Sequence[TrainerView], chance: random.Random) -> list[TrainerId]:
    """Whom a fault means among those that are there now; nobody where none fits."""
    workers = sorted((t for t in trainers if t.role == "worker" and t.rank is not None), key=lambda t: t.rank or 0)
    spares = [t for t in trainers if t.role == "spare"]
    rank = _RANK.fullmatch(fault.whom)
    if rank is not None:
        found = [t for t in workers if t.rank == int(rank[1])]
    elif fault.whom == "spare":
        found = spares[:1]
    elif fault.whom == "all":
        found = workers
    elif fault.whom in {"any", "others"}:
        from_whom = workers[1:] if fault.whom == "others" else workers
        found = [chance.choice(from_whom)] if from_whom else []
    else:
        found = [t for t in (*workers, *spares) if t.trainer == fault.whom]
    return [t.trainer for t in found]


# -- the file --------------------------------------------------------------------------------------------------------


def parse(text: str, where: str) -> Plan:
    """The plan in a TOML text. Raises `SpecError` naming `where`, the entry and what would be right."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where} is no TOML: {error}") from None
    _known(plain, {"seed", "faults", "random"}, where)
    seed = _number(plain, "seed", where, default=0)
    entries = plain.get("faults", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise SpecError(f"{where}: faults are written as [[faults]] tables")
    faults = [fault(entry, f"{where}: fault {n}") for n, entry in enumerate(entries, 1)]
    if "random" in plain:
        faults += drawn(plain["random"], random.Random(int(seed)), f"{where}: [random]")  # noqa: S311 - a plan, no secret
    if not faults:
        raise SpecError(f"{where} names no fault; add a [[faults]] table or [random]")
    return Plan(faults=tuple(faults), seed=int(seed))


def fault(plain: Mapping[str, Any], where: str) -> Fault:
    """One `[[faults]]` table. Raises `SpecError`."""
    _known(plain, {"what", "whom", "at_s", "at_step", "for_s", "at"}, where)
    if ("at_s" in plain) == ("at_step" in plain):
        raise SpecError(f"{where}: say either at_s (seconds after all members train) or at_step")
    made = Fault(
        what=_harm(plain.get("what"), where),
        whom=_whom(plain.get("whom", "any"), where),
        at_s=_number(plain, "at_s", where) if "at_s" in plain else None,
        at_step=int(_number(plain, "at_step", where)) if "at_step" in plain else None,
        for_s=_number(plain, "for_s", where, default=0.0),
        at=str(plain.get("at", "")),
    )
    if made.for_s and made.what not in PASSING:
        raise SpecError(f"{where}: {made.what} is for good; for_s is for {', '.join(sorted(PASSING))}")
    places = (*FAILPOINTS, *LEARNING_FAILPOINTS, *CHECKPOINT_FAILPOINTS, *UPLOAD_FAILPOINTS)
    if (made.what is Harm.DIE) != (made.at in places):
        raise SpecError(f"{where}: what={made.what} at={made.at!r}: die needs, and only die has, at = one of {places}")
    return made


def drawn(plain: Any, chance: random.Random, where: str) -> list[Fault]:
    """The faults of a `[random]` table, fixed by `chance`. Raises `SpecError`."""
    if not isinstance(plain, dict):
        raise SpecError(f"{where} is a table")
    _known(plain, {"every_s", "until_s", "what", "whom"}, where)
    every, until = _number(plain, "every_s", where), _number(plain, "until_s", where)
    if every <= 0:
        raise SpecError(f"{where}: every_s={every:g}: more than 0 seconds between faults")
    whats = [_harm(w, where) for w in plain.get("what", ["kill"])]
    if not whats or Harm.DIE in whats:
        raise SpecError(f"{where}: what={plain.get('what')}: at least one, and not die, which needs a place")
    whom = _whom(plain.get("whom", "any"), where)
    faults, at = [], chance.expovariate(1 / every)
    while at < until:
        what = chance.choice(whats)
        for_s = RANDOM_FOR_S if what in PASSING else 0.0
        faults.append(Fault(what=what, whom=whom, at_s=at, for_s=for_s))
        at += chance.expovariate(1 / every)
    return faults


def _harm(value: Any, where: str) -> Harm:
    try:
        return Harm(value)
    except ValueError:
        raise SpecError(f"{where}: what={value!r}; there are {', '.join(Harm)}") from None


def _whom(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{where}: whom={value!r}: rank N, {', '.join(_WORDS)}, or a trainer's id")
    return value.strip()


def _number(plain: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = plain.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SpecError(f"{where}: {key}={value!r}: a number of 0 or more")
    return value


def _known(plain: Mapping[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(plain.keys() - names)
    if unknown:
        raise SpecError(f"{where}: {', '.join(unknown)} means nothing here; there are {', '.join(sorted(names))}")
