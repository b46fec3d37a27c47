"""What `atoll plan`, `why`, `top` and `queues` print: views as lines and tables, in the arbiter's own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from atoll.schema.ids import NodeId
from atoll.schema.queues import Sharing
from atoll.schema.sharing_views import USES, GoodputView, PlanView, QueueView, TopView, WhyView, YieldView

_PLACES = {"device": 0, "team": 1, "run": 2}


def plan(view: PlanView, now: float) -> Iterator[Any]:
    """A dry run."""
    size = f"{view.workers} of {view.wanted}" if view.workers < view.wanted else f"{view.wanted}"
    heads = {
        "starts": f"it starts now, with {size} worker{'s' * (view.wanted != 1)}",
        "waits": f"it waits{_place(view)}; {_start(view.starts_at, now)}",
        "never": "it can never run here",
    }
    yield Text(heads.get(view.verdict, view.verdict), style="bold")
    if view.nodes:
        yield f"  workers   {_counted(view.nodes)}"
    if view.spares:
        yield f"  spares    {_counted(view.spares)}"
    if view.step_s is not None:
        yield f"  predicted {view.step_s:.3g} s a step"
    if view.price_per_hour:
        yield f"  price     {view.price_per_hour:.2f} an hour"
    yield from _yields(view.yields)
    if view.to_start:
        yield f"  to start  {', '.join(f'{count} {kind}' for kind, count in view.to_start.items())}"
    yield f"  {view.reason}"


def why(view: WhyView, now: float) -> Iterator[Any]:
    """Why a run stands as it does."""
    yield Text(f"{view.run} is {view.state}: queue {view.queue}, priority {view.priority}", style="bold")
    if view.position:
        yield f"  place     {view.position} of {view.waiting} in line; {_start(view.starts_at, now)}"
        yield f"  share     {view.share:.1%} of the cluster lately, {view.fair_share:.1%} are fair"
        for option in view.rejected:
            yield f"  {option.option}: {option.reason}"
        yield from _yields(view.yields)
        return
    yield f"  workers   {view.workers} of {view.wanted}"
    yield f"  {view.reason}"


def top(view: TopView) -> Iterator[Any]:
    """Queues, and where the time went."""
    yield _queues(view.queues)
    if view.goodput:
        yield _goodput(view.goodput, view.at - view.since)


def queues(sharing: Sharing) -> Iterator[Any]:
    """How the cluster is shared."""
    for flavor in sharing.flavor:
        selector = ", ".join(f"{key}={'|'.join(values)}" for key, values in flavor.selector.items())
        yield f"flavor {flavor.name}: {selector or 'all nodes'}"
    table = Table("QUEUE", "WEIGHT", "COHORT", "QUOTAS", box=None, pad_edge=False)
    for queue in sharing.queue:
        quotas = "; ".join(f"{q.flavor}: {q.cpus:g} CPU, {q.gpus:g} GPU" for q in queue.quota) or "everything"
        table.add_row(queue.name, f"{queue.weight:g}", queue.cohort or "-", quotas)
    yield table


def _queues(found: Sequence[QueueView]) -> Table:
    table = Table("QUEUE", "NOW", "LATELY", "FAIR", "RUNS", "WAIT", "QUOTAS", box=None, pad_edge=False)
    for queue in found:
        table.add_row(
            queue.name,
            f"{queue.share:.0%}",
            f"{queue.lately:.0%}",
            f"{queue.fair_share:.0%}",
            str(queue.running),
            str(queue.waiting),
            "; ".join(queue.quotas) or "-",
        )
    return table


def _goodput(found: Sequence[GoodputView], span_s: float) -> Table:
    table = Table(
        "DEVICE-SECONDS",
        "",
        "GOODPUT",
        *(use.upper() for use in USES),
        title=f"in {span_s:.0f} s",
        box=None,
        pad_edge=False,
    )
    for row in sorted(found, key=lambda view: _PLACES.get(view.by, len(_PLACES))):
        shown = [f"{value:.0f}" if (value := getattr(row, use)) else "-" for use in USES]
        table.add_row(row.by, row.name, f"{row.goodput:.0%}" if row.held else "-", *shown)
    return table


def _place(view: PlanView) -> str:
    return f", {view.position} of {view.waiting} in line" if view.position else " for nodes to come"


def _start(at: float | None, now: float) -> str:
    return "nobody can tell when it starts" if at is None else f"it starts in {max(at - now, 0.0):.0f} s at the latest"


def _counted(nodes: Sequence[NodeId]) -> str:
    return ", ".join(f"{count} on {node}" for node, count in Counter(nodes).items())


def _yields(found: Sequence[YieldView]) -> Iterator[str]:
    for one in found:
        to = f"shrinks from {one.before} to {one.after}" if one.after else "is suspended at a checkpoint"
        yield f"  yields    {one.run} {to}: {one.reason}"
