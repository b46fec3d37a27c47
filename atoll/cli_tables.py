"""Views as tables for the terminal. Pure: views in, rich renderables or plain lines out; `now` is an argument."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from atoll.schema.messages import Finding
from atoll.schema.people import CLUSTER_USER
from atoll.schema.views import CheckpointView, DrainView, EventView, NodeView, RunState, RunView

_STYLES = {
    RunState.RUNNING: "green",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "bold red",
    RunState.STOPPING: "yellow",
}
_LARGE_LOSS = 1e6
_UNITS = [("d", 86400), ("h", 3600), ("min", 60)]


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # An id that is broken over two lines cannot be copied.
        table.add_column(column, overflow="fold", no_wrap=column in {"RUN", "PATH"})
    return table


def loss_text(value: float) -> str:
    """A loss in four decimals, of which a very large one has none worth showing."""
    return f"{value:.4f}" if abs(value) < _LARGE_LOSS else f"{value:.4g}"


def ago(at: float, now: float) -> str:
    """How long ago `at` was, in its largest unit."""
    seconds = max(0.0, now - at)
    unit, size = next(((u, s) for u, s in _UNITS if seconds >= s), ("s", 1))
    return f"{seconds / size:.0f} {unit} ago"


def size(count: int) -> str:
    """A number of bytes, readable."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 - what KiB means
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def runs(views: Sequence[RunView], now: float) -> Table:
    """The list of runs. Owners and queues are shown where there is more than one to tell apart."""
    owned = len({view.owner for view in views}) > 1
    queued = len({view.queue for view in views}) > 1
    more = (*(["OWNER"] if owned else []), *(["QUEUE"] if queued else []))
    table = _table("RUN", "KIND", "STATE", "STEP", "LOSS", "MEMBERS", "EPOCH", "SUBMITTED", *more)
    for view in views:
        loss = view.last.metrics.get("loss") if view.last else None
        table.add_row(
            view.run,
            view.kind.value,
            Text(view.state.value, style=_STYLES.get(view.state, "")),
            str(view.step),
            "" if loss is None else loss_text(loss),
            f"{view.members}/{view.workers_wanted}+{view.spares}",
            str(view.epoch),
            ago(view.submitted_at, now),
            *([view.owner or CLUSTER_USER] if owned else []),
            *([view.queue] if queued else []),
        )
    return table


def run(view: RunView, now: float) -> Table:
    """One run in full."""
    table = _table("", "")
    table.show_header = False
    rows = [
        ("run", view.run),
        ("state", f"{view.state}{f': {view.reason}' if view.reason else ''}"),
        ("submitted", ago(view.submitted_at, now)),
        ("step", str(view.step)),
        ("epoch", str(view.epoch)),
        ("members", f"{view.members} of {view.workers_wanted}, {view.spares} spare"),
    ]
    if view.spec is not None:
        team = f", team {view.spec.team}" if view.spec.team else ""
        rows.append(("owner", f"{view.spec.owner or CLUSTER_USER}{team}, queue {view.spec.queue}"))
    if view.last:
        rows += [(name, f"{value:.6g}") for name, value in sorted(view.last.metrics.items())]
    if view.checkpoint:
        rows.append(("checkpoint", f"step {view.checkpoint.step} at {view.checkpoint.path}"))
    if view.endpoint:
        rows.append(("endpoint", view.endpoint))
    for trainer in view.trainers:
        rank = "" if trainer.rank is None else f" rank {trainer.rank}"
        rows.append((trainer.trainer, f"{trainer.role}{rank} on {trainer.node}, pid {trainer.pid}: {trainer.state}"))
    for name, value in rows:
        table.add_row(Text(name, style="cyan"), Text(value))
    return table


def nodes(views: Sequence[NodeView]) -> Table:
    """The hosts."""
    drained = any(view.drain for view in views)
    table = _table("NODE", "ADDRESS", "ALIVE", "AGENT", "CPUS FREE", "GPUS", *(["DRAIN"] if drained else []))
    for view in views:
        cpus = f"{view.cpus_free:g} of {view.cpus:g}"
        last = [_drain_text(view.drain)] if drained else []
        table.add_row(view.node, view.address, _yes(ok=view.alive), _yes(ok=view.agent), cpus, f"{view.gpus:g}", *last)
    return table


def _drain_text(drain: DrainView | None) -> Text:
    if drain is None:
        return Text("")
    if drain.left:
        return Text("drained", style="green")
    until = dt.datetime.fromtimestamp(drain.until, dt.UTC).astimezone().strftime("%H:%M:%S")
    return Text(f"{drain.trainers} to leave by {until}", style="yellow")


def checkpoints(views: Sequence[CheckpointView], now: float) -> Table:
    """Durable checkpoints."""
    copied = any(len(view.tiers) > 1 for view in views)
    table = _table("STEP", "SIZE", "TOOK", "MADE", *(["COPIES"] if copied else []), "PATH")
    for view in views:
        copies = [Text(", ".join(f"{t.tier} {t.state}" for t in view.tiers))] if copied else []
        took = f"{view.seconds:.2f} s"
        table.add_row(str(view.step), size(view.bytes), took, ago(view.at, now), *copies, view.path)
    return table


def findings(found: Sequence[Finding]) -> Table:
    """What `atoll doctor` found."""
    table = _table("NODE", "CHECK", "", "DETAIL")
    for finding in found:
        detail = finding.detail if finding.ok or not finding.remedy else f"{finding.detail}; {finding.remedy}"
        table.add_row(finding.node, finding.check, _yes(ok=finding.ok), Text(detail))
    return table


def _yes(*, ok: bool) -> Text:
    return Text("ok", style="green") if ok else Text("NO", style="bold red")


def story(events: Sequence[EventView]) -> list[str]:
    """Events as lines: number, time, subject, what, and the cause that ties them together."""
    return [_line(event) for event in events]


def _line(event: EventView) -> str:
    at = dt.datetime.fromtimestamp(event.at, dt.UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    cause = f"  [{event.cause}]" if event.cause else ""
    return f"{event.seq:>6}  {at}  {event.subject}  {event.kind}: {event.text}{cause}"
