"""The sample account: proof, from what was really fed, that no sample was lost or repeated.

Every trainer appends lines to a file of its own: the plan once, `Fed` before each vote with the row ids that its loader
handed out, and `Committed` once the step is known to be decided on all members. Lines are written by one `write` each, so
SIGKILL leaves whole lines or none. `merge` reads all files of a run: a step's rows are those fed in the epoch in which it
committed, by whoever fed them, living or dead; they are held against the rows that the plan wants. An epoch tries a step
at most once, so (step, epoch) names a try.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from atoll.workers.samples import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """`lost` and `repeated` count samples, `gaps` are steps below the last that nobody committed.

    `left_out` are samples that count in no step on purpose: their members were told not to be waited for.

    `again` are the steps that were committed, undone by a return to an earlier one, and done again; their samples count
    once, as those of the try that stands.
    """

    steps: int = 0
    samples: int = 0
    lost: int = 0
    left_out: int = 0
    repeated: int = 0
    gaps: tuple[int, ...] = ()
    again: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


def plan_line(plan: Plan, *, begin: int, epoch: int, line: int | None = None) -> str:
    """What is to be fed, from the step after `begin`, as `epoch` received or restored it.

    After a loss of all members the run goes on from its last checkpoint, after that of a shard from its last copies: what
    earlier epochs committed after that is undone, and does not count. `line` is the epoch that wrote the checkpoint: where
    copies led back behind it, what was done again since is undone in its turn, and what it holds counts after all.
    """
    numbers = [plan.seed, plan.size, plan.global_batch, plan.micro_batch, plan.steps]
    return _line({"plan": numbers, "begin": begin, "epoch": epoch} | ({"line": line} if line is not None else {}))


def fed_line(step: int, epoch: int, attempt: int, ids: Iterable[int], left_out: Iterable[int] = ()) -> str:
    """These rows went into this try. `left_out` were this trainer's, too, and do not count: others were faster."""
    left = list(left_out)
    return _line({"fed": step, "epoch": epoch, "attempt": attempt, "ids": list(ids)} | ({"left": left} if left else {}))


def committed_line(step: int, epoch: int, attempt: int) -> str:
    """The step is decided on all members; it was computed in `epoch`."""
    return _line({"committed": step, "epoch": epoch, "attempt": attempt})


def _line(plain: dict[str, Any]) -> str:
    return json.dumps(plain, separators=(",", ":")) + "\n"


@dataclass(frozen=True, slots=True)
class _Start:
    """Where `epoch` began, for somebody: after step `begin`, as the checkpoint of epoch `line` holds it, if one does."""

    epoch: int
    begin: int
    line: int | None

    def undoes(self, step: int, epoch: int) -> bool:
        """Whether what `epoch` committed as `step` is no part of the state from there on."""
        return epoch < self.epoch and (step > self.begin or (self.line is not None and epoch > self.line))

    def passes_over(self, other: _Start) -> bool:
        """Whether the state is from before the other start, so that what that undid is part of it."""
        return self.line is not None and self.line < other.epoch < self.epoch


@dataclass(slots=True)
class _Books:
    plan: Plan | None = None
    begin: int = 0
    fed: dict[tuple[int, int], Counter[int]] = field(default_factory=dict)
    left: dict[tuple[int, int], Counter[int]] = field(default_factory=dict)
    committed: dict[int, set[int]] = field(default_factory=dict)
    restored: set[_Start] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def enter(self, line: str) -> None:
        try:
            plain = json.loads(line)
        except ValueError:
            self.problems.append(f"not a line of an account: {line[:60]!r}")
            return
        if "plan" in plain:
            self._enter_plan(plain)
        elif "fed" in plain:
            self.fed.setdefault((plain["fed"], plain["epoch"]), Counter()).update(plain["ids"])
            self.left.setdefault((plain["fed"], plain["epoch"]), Counter()).update(plain.get("left", ()))
        elif "committed" in plain:
            self.committed.setdefault(plain["committed"], set()).add(plain["epoch"])

    def _enter_plan(self, plain: dict[str, Any]) -> None:
        seed, size, global_batch, micro_batch, steps = plain["plan"]
        plan = Plan(seed=seed, size=size, global_batch=global_batch, micro_batch=micro_batch, steps=steps)
        if self.plan not in {None, plan}:
            self.problems.append(f"two plans in one account: {self.plan} and {plan}")
        begin = plain.get("begin", 0)
        # A trainer that joins later begins later; the run begins with the first.
        self.begin = begin if self.plan is None else min(self.begin, begin)
        self.plan = plan
        self.restored.add(_Start(plain.get("epoch", 0), begin, plain.get("line")))

    def valid(self) -> dict[int, set[int]]:
        """The epochs in which each step was committed, without those undone by a later return to a checkpoint."""
        starts = [s for s in self.restored if not any(other.passes_over(s) for other in self.restored)]
        kept = {
            step: {e for e in epochs if not any(start.undoes(step, e) for start in starts)}
            for step, epochs in self.committed.items()
        }
        return {step: epochs for step, epochs in kept.items() if epochs}


def merge(lines: Iterable[str]) -> Account:
    """The account of a run from the lines of all its trainers, in any order."""
    books = _Books()
    for line in lines:
        if line.strip():
            books.enter(line)
    if books.plan is None or not books.valid():
        return Account(problems=tuple(books.problems))
    return _settle(books, books.plan)


def _settle(books: _Books, plan: Plan) -> Account:
    lost = repeated = samples = left_out = 0
    committed = books.valid()
    for step, epochs in sorted(committed.items()):
        if len(epochs) > 1:
            books.problems.append(f"step {step} was committed in {len(epochs)} epochs: {sorted(epochs)}")
        wanted = Counter(plan.samples(step))
        fed: Counter[int] = sum((books.fed.get((step, e), Counter()) for e in epochs), Counter())
        left: Counter[int] = sum((books.left.get((step, e), Counter()) for e in epochs), Counter())
        samples += fed.total()
        left_out += left.total()
        lost += (wanted - fed - left).total()
        repeated += (fed + left - wanted).total()
    gaps = tuple(s for s in range(books.begin + 1, max(committed) + 1) if s not in committed)
    return Account(
        steps=len(committed),
        samples=samples,
        lost=lost + len(gaps) * plan.global_batch,
        left_out=left_out,
        repeated=repeated,
        gaps=gaps,
        again=tuple(sorted(s for s, epochs in committed.items() if books.committed[s] - epochs)),
        problems=tuple(books.problems),
    )
