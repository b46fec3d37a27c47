"""Panels of the run page: a member, an epoch, an event, a checkpoint, the charts, and how to ask a served model."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from atoll.schema.views import MetricPoint
from atoll.ui import charts
from atoll.ui.nicegui_parts import Empty, Keyed, PillView, box, card, text, tone_class
from atoll.ui.steps import EpochSpan, span_words
from atoll.ui.views import CheckpointLine, EventLine, MemberCard, Pill


class MemberView:
    """One process."""

    def __init__(self) -> None:
        self.root = box("member")
        with self.root:
            self._title = text("", "member-title")
            with box("member-text"):
                self._trainer, self._where = text("", "mono"), text("", "quiet")
            self._pill = PillView()

    def show(self, model: MemberCard) -> None:
        """Show this process."""
        self._title.set_text(model.title)
        self._trainer.set_text(model.name)
        self._where.set_text(model.where)
        self._pill.show(model.pill)
        tone_class(self.root, "member", "gone" if model.gone else "")


class EpochView:
    """One epoch as a bar on the axis of steps."""

    def __init__(self) -> None:
        self.root = box("epoch")
        with self.root:
            self._name = text("", "mono")
            with box("epoch-track"):
                self._bar = box("epoch-bar")
            self._words = text("", "quiet")

    def show(self, model: tuple[EpochSpan, int, int]) -> None:
        """Show this epoch between the first and last step of the run."""
        span, first, last = model
        whole = max(1, last - first + 1)
        self._name.set_text(f"epoch {span.epoch}")
        self._bar.style(f"left: {(span.first - first) / whole:.2%}; width: {span.steps / whole:.2%}")
        self._words.set_text(span_words(span))


class EventRow:
    """One line of the story."""

    def __init__(self) -> None:
        self.root = box("event")
        with self.root:
            self._time = text("", "event-time mono")
            self._glyph = text("", "event-glyph").props("aria-hidden=true")
            with box():
                self._title, self._text = text("", "event-title"), text("", "event-text")

    def show(self, model: EventLine) -> None:
        """Show this event."""
        self._time.set_text(model.time)
        self._glyph.set_text(model.glyph)
        self._title.set_text(model.title)
        self._text.set_text(model.text)
        tone_class(self.root, "event", model.tone.value)


class CheckpointRow:
    """One durable checkpoint."""

    def __init__(self) -> None:
        self.root = box("member")
        with self.root:
            self._title = text("", "member-title")
            with box("member-text"):
                self._note, self._path = text("", "quiet"), text("", "mono")
                self._copies: Keyed[Pill] = Keyed(box(), PillView, lambda pill: pill.text)

    def show(self, model: CheckpointLine) -> None:
        """Show this checkpoint."""
        self._title.set_text(model.title)
        self._note.set_text(model.note)
        self._path.set_text(model.path.rstrip("/").rpartition("/")[2])
        self._copies.show(model.copies)


class ChartPanel:
    """The three charts of a training run."""

    def __init__(self) -> None:
        with box("stack") as self._root:
            with card("Loss", "a dashed mark stands where the members, and so the epoch, changed"):
                self._loss = _chart("tall")
                self._empty = Empty(
                    "No step committed yet",
                    "The first point appears when all members have joined and agreed on a step.",
                )
            with box("pair") as self._pair:
                with card("Step time", "milliseconds, by commit"):
                    self._time = _chart("low")
                with card("Throughput") as self._unit:
                    self._pace = _chart("low")

    def show(self, points: list[MetricPoint], spans: list[EpochSpan], *, visible: bool) -> None:
        """Draw these steps."""
        self._root.set_visibility(visible)
        for element in (self._loss, self._pair):
            element.set_visibility(bool(points))
        self._empty.show(empty=not points)
        if points:
            self._unit.set_text(charts.throughput_words(points))
            _draw(self._loss, charts.loss(points, spans))
            _draw(self._time, charts.step_time(points, spans))
            _draw(self._pace, charts.throughput(points, spans))


class AskPanel:
    """How to talk to a served model, as a command to copy: through this server, with the token of this cluster."""

    def __init__(self) -> None:
        request = ui.context.client.request
        origin = str(request.base_url).rstrip("/") if request else ""
        with box() as self._root, card("Ask this model", "OpenAI-compatible, with the same token as this page"):
            text(f'curl -H "Authorization: Bearer $(cat ~/.atoll/token)" {origin}/v1/models', "command wide")

    def show(self, *, visible: bool) -> None:
        """Show it for a run that serves."""
        self._root.set_visibility(visible)


def _chart(height: str) -> Any:
    return ui.echart({"series": []}, renderer="svg").classes(f"chart {height}")


def _draw(chart: Any, options: charts.Options) -> None:
    chart.options.clear()
    chart.options.update(options)
    chart.update()
