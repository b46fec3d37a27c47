"""What an attached terminal shows of a run.

`Progress` is a fold over the followed items: it keeps the newest of everything and says which lines are worth keeping on
the screen. `Display` prints them: on a terminal above a live panel, elsewhere as plain lines with a status line every few
seconds, so that a log of it reads as well.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from atoll._client_sse import FollowItem
from atoll.schema.views import EventView, MetricPoint, RunState, RunView

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# What a watcher wants to see; the bookkeeping around it is in `atoll story`, the end is told when the view closes.
_SHOWN = frozenset(
    {"ready", "epoch", "joined", "lost", "finished", "checkpoint", "checkpoint-failed", "stopping"}
    | {
        "serving",
        "seat-failed",
        "node-lost",
        "slow-worker",
        "keeps-up",
        "slow-link",
        "link-restored",
        "evicted",
        "left",
    }
    | {"step-skipped", "gradient-jump"}
)
_LOUD = frozenset({"lost", "evicted", "slow-worker", "slow-link", "step-skipped", "epoch"})
# Rates are taken over this many steps: one step's time jumps about.
_RATE_STEPS = 20
# Beyond it four decimals are noise.
_LARGE_LOSS = 1e6
# A status line this often where there is no terminal.
_PLAIN_EVERY_S = 5.0


class Progress:
    """The newest of everything that was heard of one run."""

    def __init__(self) -> None:
        self.view: RunView | None = None
        self.point: MetricPoint | None = None
        self.newest: dict[str, float] = {}
        self.after = 0
        self.after_step = -1
        self._regrouped = self._unsaved = ""
        self._recent: deque[MetricPoint] = deque(maxlen=_RATE_STEPS)

    def take(self, item: FollowItem) -> str | None:
        """Take an item; the line that it deserves, or None."""
        match item:
            case EventView():
                self.after = max(self.after, item.seq)
                return self._event_line(item)
            case MetricPoint():
                self.after_step = max(self.after_step, item.step)
                self.point = item
                self.newest.update(item.metrics)
                self._recent.append(item)
                return None
            case RunView():
                self.view = item
                return None

    def _event_line(self, event: EventView) -> str | None:
        if event.kind not in _SHOWN:
            return None
        if event.kind == "joined":  # each member says so; one line tells it
            before, self._regrouped = self._regrouped, event.text
            return f"training goes on: {event.text}" if event.text != before else None
        if event.kind == "checkpoint-failed":  # each rank says so for its own part
            before, self._unsaved = self._unsaved, event.text
            return f"{event.kind}: {event.text}" if event.text != before else None
        if event.kind == "checkpoint":
            return f"checkpoint: {event.text.partition(' at /')[0]}"
        whom = "" if event.subject == event.run else event.subject.removeprefix(f"{event.run}-") + " "
        return f"{whom}ready" if event.kind == "ready" else f"{whom}{event.kind}: {event.text}"

    def rate(self) -> tuple[float, str]:
        """Units a second over the last steps: tokens where steps report `tokens`, else samples."""
        seconds = sum(p.step_s for p in self._recent)
        if seconds <= 0:
            return 0.0, "samples/s"
        if all("tokens" in p.metrics for p in self._recent):
            return sum(p.metrics["tokens"] for p in self._recent) / seconds, "tokens/s"
        return sum(p.samples for p in self._recent) / seconds, "samples/s"

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) of what the status shows, in reading order."""
        view = self.view
        rows = [("state", _state(view, begun=self.point is not None))]
        if self.point is not None:
            rate, unit = self.rate()
            rows += [
                ("step", str(self.point.step)),
                *(
                    (name.replace("heldout", "held-out").replace("_", " "), _loss(self.newest[name]))
                    for name in self._losses()
                ),
                (unit, f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"),  # noqa: PLR2004 - two digits are enough
            ]
        if view is not None:
            # A committed step may be told before the view of the epoch that committed it.
            newer = self.point is not None and self.point.epoch > view.epoch
            members, epoch = (
                (self.point.members, self.point.epoch) if self.point and newer else (view.members, view.epoch)
            )
            rows += [
                ("members", f"{members} of {view.workers_wanted}, {view.spares} spare{'s' * (view.spares != 1)}"),
                ("epoch", str(epoch)),
                ("checkpoint", f"step {view.checkpoint.step}" if view.checkpoint else "none yet"),
            ]
        return rows

    def _losses(self) -> list[str]:
        return [name for name in ("loss", "heldout_loss") if name in self.newest]


def _state(view: RunView | None, *, begun: bool) -> str:
    if view is None:
        return "connecting"
    if view.state is RunState.QUEUED and view.reason:
        return f"queued, {view.reason}"
    return RunState.RUNNING.value if begun and view.state is RunState.PLACED else view.state.value


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < _LARGE_LOSS else f"{value:.4g}"


class Display:
    """Prints a run's progress. A context manager: the live panel is gone at its end, the lines stay."""

    def __init__(self, console: Console, title: str, dashboard: str) -> None:
        self.progress = Progress()
        self._console = console
        self._title = title
        self._dashboard = dashboard
        self._live: Any = None
        self._said_at = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live  # noqa: PLC0415 - not needed for plain lines

            self._live = Live(console=self._console, get_renderable=self._panel, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self.note(f"{self._title}  dashboard: {self._dashboard}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self.progress.point is not None:
            self.note(self._status())

    def show(self, item: FollowItem) -> None:
        """Take one followed item."""
        line = self.progress.take(item)
        if line is not None:
            loud = isinstance(item, EventView) and item.kind in _LOUD
            self.note(line, style="bold yellow" if loud else "dim")
        if isinstance(item, MetricPoint) and self._live is None and item.at - self._said_at >= _PLAIN_EVERY_S:
            self._said_at = item.at
            self.note(self._status())

    def note(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _status(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.progress.facts())

    def _panel(self) -> RenderableType:
        from rich.panel import Panel  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above

        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", justify="right")
        table.add_column()
        for name, value in [*self.progress.facts(), ("dashboard", self._dashboard)]:
            table.add_row(name, value)
        return Panel(table, title=self._title, title_align="left", border_style="cyan", expand=False)
