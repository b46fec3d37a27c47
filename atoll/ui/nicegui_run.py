"""The page of one run: charts, members, epochs, story, checkpoints, logs, and the button that stops it.

Steps and events are asked for from the last one held, so a page that stays open for days costs a few points a second.
"""

from __future__ import annotations

from nicegui import ui

from atoll.errors import AtollError
from atoll.schema.ids import RunId
from atoll.schema.spec import JobKind
from atoll.schema.views import EventView, MetricPoint, RunState, RunView
from atoll.ui import wording
from atoll.ui.nicegui_logs import LogPanel
from atoll.ui.nicegui_panels import AskPanel, ChartPanel, CheckpointRow, EpochView, EventRow, MemberView
from atoll.ui.nicegui_parts import Empty, Frame, Keyed, PillView, box, button, card, heading, text, tiles, tone_class
from atoll.ui.source import Source
from atoll.ui.steps import EpochSpan, compact, epoch_spans
from atoll.ui.views import (
    CheckpointLine,
    EventLine,
    MemberCard,
    checkpoint_lines,
    event_line,
    is_news,
    member_cards,
    run_pill,
    run_tiles,
)

_MAX_EVENTS = 100
_MAX_EPOCHS = 8
_MAX_CHECKPOINTS = 6
# Answers taken in one refresh: a long history arrives within the first seconds and never holds up the page.
_MAX_ASKS = 4


class RunPage:
    """Builds the page, then shows each second what the source says."""

    def __init__(self, source: Source, run: RunId) -> None:
        self._source, self._run = source, run
        self._points: list[MetricPoint] = []
        self._events: list[EventView] = []
        self._drawn = -1
        self.frame = Frame(run, run)
        with self.frame.body:
            self._build_hero()
            self._tiles = tiles()
            with box("split"):
                with box("stack"):
                    self._charts = ChartPanel()
                    self._ask = AskPanel()
                    with box() as self._epochs_box:
                        self._build_epochs()
                    self._logs = LogPanel(source, run)
                with box("stack"):
                    self._build_side()

    def _build_hero(self) -> None:
        with box("hero"):
            with box():
                with box("hero-line"):
                    self._name = heading(self._run, "h1")
                    self._pill = PillView()
                with box("hero-sub"):
                    self._about = text()
                    self._reason = text()
            box("grow")
            self._stop = button("Stop this run", "button danger", self._ask_stop)
        with ui.dialog() as self._dialog, box("sheet"):
            self._question = heading("Stop?")
            text(
                "The step in hand is finished first, on all members. Checkpoints stay, and another run can resume "
                "from the last of them."
            )
            with box("line"):
                button("Keep it running", "button", self._dialog.close)
                button("Stop at the next step", "button solid", self._do_stop)

    def _build_epochs(self) -> None:
        with card("Epochs", "each set of members, by the steps that it committed"):
            self._epochs: Keyed[tuple[EpochSpan, int, int]] = Keyed(box(), EpochView, lambda m: m[0].first)
            self._no_epochs = Empty("No epoch has committed a step", "Members join first, then the first step runs.")

    def _build_side(self) -> None:
        with card("Members") as self._members_note:
            self._members: Keyed[MemberCard] = Keyed(box("members"), MemberView, lambda card: card.trainer)
            self._no_members = Empty(
                "No process yet", "Seats are being reserved. If this stays, the cluster is full:", "atoll status"
            )
        with card("What happened", "newest first, UTC"):
            self._story: Keyed[EventLine] = Keyed(box("story").props("tabindex=0"), EventRow, lambda line: line.seq)
            self._no_story = Empty("Nothing yet", "Decisions about this run appear here with their reasons.")
        with box() as self._saved_box, card("Checkpoints", "durable ones"):
            self._saved: Keyed[CheckpointLine] = Keyed(box("members"), CheckpointRow, lambda line: line.step)
            self._no_saved = Empty("None yet", "Set checkpoint_every in the job to save each so many steps.")

    def _ask_stop(self) -> None:
        self._question.set_text(f"Stop {self._name.text}?")
        self._dialog.open()

    async def _do_stop(self) -> None:
        self._dialog.close()
        try:
            await self._source.stop(self._run)
        except AtollError as error:
            self.frame.trouble(f"The run was not stopped: {error}")

    async def refresh(self, *, now: float) -> None:
        """Ask once and show the answers. Raises what the source raises."""
        run = await self._source.run(self._run)
        await self._take_metrics()
        await self._take_events()
        self._show_head(run, now=now)
        self._show_steps(run)
        self._show_story()
        members = member_cards(run.trainers, run.run)
        self._members.show(members)
        present = f"{run.members} of {run.workers_wanted} in epoch {run.epoch}"
        self._members_note.set_text("the run has ended" if run.state.ended else present)
        self._no_members.show(empty=not members and not run.state.ended)
        saved = checkpoint_lines(await self._source.checkpoints(self._run))[:_MAX_CHECKPOINTS]
        self._saved.show(saved)
        self._no_saved.show(empty=not saved)
        self._logs.show(members)

    async def _take_metrics(self) -> None:
        for _ in range(_MAX_ASKS):
            after = self._points[-1].step if self._points else -1
            new = await self._source.metrics(self._run, after)
            self._points.extend(new)
            if not new:
                break
        self._points = compact(self._points)

    async def _take_events(self) -> None:
        for _ in range(_MAX_ASKS):
            new = await self._source.events(self._run, self._events[-1].seq if self._events else 0)
            self._events = [*self._events, *new][-_MAX_EVENTS:]
            if not new:
                break

    def _show_head(self, run: RunView, *, now: float) -> None:
        self._name.set_text(run.name)
        self._pill.show(run_pill(run.state))
        length = wording.elapsed((run.ended_at or now) - run.submitted_at)
        self._about.set_text(f"submitted {wording.clock_time(run.submitted_at)} UTC, {length}")
        self._reason.set_text(run.reason)
        tone_class(self._reason, "reason", "bad" if run.state is RunState.FAILED else "")
        self._stop.set_visibility(not run.state.ended and run.state is not RunState.STOPPING)
        training = run.kind is JobKind.TRAIN
        self._epochs_box.set_visibility(training)
        self._saved_box.set_visibility(training)
        self._ask.show(visible=not training)
        self._tiles.show(run_tiles(run, self._points, now=now))

    def _show_steps(self, run: RunView) -> None:
        newest = self._points[-1].step if self._points else -1
        if newest == self._drawn and newest >= 0:
            return
        self._drawn = newest
        spans = epoch_spans(self._points)
        self._charts.show(self._points, spans, visible=run.kind is JobKind.TRAIN)
        ends = (spans[0].first, spans[-1].last) if spans else (0, 0)
        self._epochs.show([(span, *ends) for span in spans[-_MAX_EPOCHS:]])
        self._no_epochs.show(empty=not spans)

    def _show_story(self) -> None:
        self._story.show([event_line(event) for event in reversed(self._events) if is_news(event)])
        self._no_story.show(empty=not self._events)
