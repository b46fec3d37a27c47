"""The oracle: any plan on integers, all ranks in one process, in any order that the ranks' instructions allow.

`pick` chooses which of the steps that can be taken is taken next. A plan is right if no choice changes the outcome and
none gets stuck: that is what the property tests try.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from atoll.collectives.plan import Action, Exchange, Give, Part, Plan, Take, part_of
from atoll.errors import InternalError

Values = list[int]
Wires = dict[tuple[int, int, int], Values]  # (source, target, part)


@dataclass(slots=True)
class _Thread:
    """One rank's way through its part of one program."""

    rank: int
    part: Part
    values: Values
    at: int = 0
    given: set[int] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        return self.at == len(self.part.instructions)


def run(
    plan: Plan,
    inputs: Sequence[Sequence[int]],
    add: Callable[[int, int], int],
    *,
    pick: Callable[[int], int] = lambda _: 0,
) -> list[Values]:
    """Every rank's final values. `pick(n)` chooses one of n steps that are possible.

    Raises `InternalError` where ranks wait for each other in a circle, or a message is left over.
    """
    state = [list(values) for values in inputs]
    threads = [
        _Thread(rank, part, state[rank][part.start : part.end])
        for rank in range(plan.size)
        for part in part_of(plan, rank)
    ]
    wires: Wires = {}
    while open_ := [t for t in threads if not t.finished]:
        ready = [t for t in open_ if _can_go(t, wires)]
        if not ready:
            raise InternalError(f"{plan.name} over {plan.size} ranks cannot go on: {[t.part for t in open_]}")
        _go(ready[pick(len(ready))], wires, add)
    if wires:
        raise InternalError(f"{plan.name} over {plan.size} ranks leaves messages that nobody takes: {sorted(wires)}")
    for t in threads:
        state[t.rank][t.part.start : t.part.end] = t.values
    return state


def _can_go(thread: _Thread, wires: Wires) -> bool:
    match thread.part.instructions[thread.at]:
        case Give():
            return True
        case Take(source, _, part):
            return (source, thread.rank, part) in wires
        case Exchange(members, _, part):
            others = [m for m in members if m != thread.rank]
            return part not in thread.given or all((m, thread.rank, part) in wires for m in others)


def _go(thread: _Thread, wires: Wires, add: Callable[[int, int], int]) -> None:
    rank, here = thread.rank, thread.part.instructions[thread.at]
    match here:
        case Give(target, part):
            wires[rank, target, part] = list(thread.values)
        case Take(source, action, part):
            came = wires.pop((source, rank, part))
            thread.values = came if action is Action.COPY else [*map(add, thread.values, came)]
        case Exchange(members, _, part) if part not in thread.given:
            thread.given.add(part)
            wires.update({(rank, m, part): list(thread.values) for m in members if m != rank})
            return
        case Exchange(members, _, part):
            first, *rest = (thread.values if m == rank else wires.pop((m, rank, part)) for m in members)
            for came in rest:
                first = [*map(add, first, came)]
            thread.values = first
    thread.at += 1
