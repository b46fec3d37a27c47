"""View models of the dashboard's queues: what each uses, what is fair, and where its time went. Views in, words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.schema.sharing_views import USES, GoodputView, TopView
from atoll.ui import wording

# Uses below this part of the whole are not worth a word.
_SHOWN = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """One queue: the part of the cluster that it uses, and its words."""

    name: str
    used: float
    share: str
    runs: str
    quotas: str


def queue_rows(top: TopView | None) -> list[QueueRow]:
    """The queues in their order; none while the control plane is away."""
    return [
        QueueRow(
            name=queue.name,
            used=min(max(queue.share, 0.0), 1.0),
            share=f"{queue.share:.0%} now, {queue.lately:.0%} lately, {queue.fair_share:.0%} fair",
            runs=f"{wording.plural(queue.running, 'run')}, {queue.waiting} waiting",
            quotas="; ".join(queue.quotas),
        )
        for queue in (top.queues if top is not None else ())
    ]


def goodput_line(top: TopView | None) -> str:
    """Where the time of all devices went; empty while nothing is known of it."""
    devices = [row for row in (top.goodput if top is not None else ()) if row.by == "device"]
    totals = {use: sum(getattr(row, use) for row in devices) for use in USES}
    whole = sum(totals.values())
    if not whole:
        return ""
    parts = [f"{amount / whole:.0%} {use}" for use, amount in totals.items() if amount / whole >= _SHOWN]
    return f"device time: {', '.join(parts)}; goodput {_goodput(devices):.0%}"


def _goodput(rows: Sequence[GoodputView]) -> float:
    held = sum(row.held for row in rows)
    return sum(row.useful for row in rows) / held if held > 0 else 1.0
