"""The first page: the cluster in four numbers, its runs, its queues and its nodes."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from atoll.ui.nicegui_parts import Empty, Frame, Keyed, PillView, box, card, text, tiles, tone_class
from atoll.ui.queues import QueueRow, goodput_line, queue_rows
from atoll.ui.source import Source
from atoll.ui.views import NodeRow, RunRow, node_rows, overview_tiles, run_rows

_COLUMNS = (
    ("Run", ""),
    ("State", ""),
    ("Step", "right"),
    ("Loss", "right"),
    ("Members", "right"),
    ("Epoch", "right"),
    ("Last checkpoint", "right"),
    ("Submitted", "right"),
)


class RunRowView:
    """One line of the table; the name's link covers the line."""

    def __init__(self) -> None:
        self.root = box(tag="tr")
        with self.root:
            with box(tag="td"):
                self._name = ui.link().classes(replace="name-link")
                self._id = text("", "quiet mono")
            with box(tag="td"):
                self._pill = PillView()
            self._cells = [self._cell() for _ in range(5)]
            with box("right", "td"):
                self._age = text("", "quiet")

    @staticmethod
    def _cell() -> Any:
        with box("right", "td"):
            return text("", "num")

    def show(self, model: RunRow) -> None:
        """Show this run."""
        if self._name.text != model.name:
            self._name.set_text(model.name)
            self._name.props(f'href="/runs/{model.run}"')
        self._id.set_text(model.run if model.run != model.name else "")
        self._pill.show(model.pill)
        values = (model.step, model.loss, model.members, model.epoch, model.checkpoint)
        for cell, value in zip(self._cells, values, strict=True):
            cell.set_text(value)
        tone_class(self._cells[2], "num", "short" if model.short else "")
        self._age.set_text(model.age)


class NodeView:
    """One host with the share of its CPUs that seats hold."""

    def __init__(self) -> None:
        self.root = box("node")
        with self.root:
            with box("line"):
                self._name = text("", "mono")
                box("grow")
                self._pill = PillView()
            with box("meter"):
                self._meter = box()
            with box("line quiet"):
                self._cpus = text()
                box("grow")
                self._gpus = text()
            self._labels = text("", "quiet mono")

    def show(self, model: NodeRow) -> None:
        """Show this host."""
        self._name.set_text(model.node)
        self._pill.show(model.pill)
        self._meter.style(f"width: {model.used:.0%}")
        self._cpus.set_text(model.cpus)
        self._gpus.set_text(model.gpus)
        self._labels.set_text(model.labels)


class QueueView:
    """One queue with the part of the cluster that it uses."""

    def __init__(self) -> None:
        self.root = box("node")
        with self.root:
            with box("line"):
                self._name = text("", "mono")
                box("grow")
                self._runs = text("", "quiet")
            with box("meter"):
                self._meter = box()
            self._share = text("", "quiet")
            self._quotas = text("", "quiet mono")

    def show(self, model: QueueRow) -> None:
        """Show this queue."""
        self._name.set_text(model.name)
        self._runs.set_text(model.runs)
        self._meter.style(f"width: {model.used:.0%}")
        self._share.set_text(model.share)
        self._quotas.set_text(model.quotas)


class Overview:
    """Builds the page, then shows each second what the source says."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.frame = Frame("Overview")
        with self.frame.body:
            self._tiles = tiles()
            self._build_runs()
            self._build_queues()
            self._build_nodes()

    def _build_runs(self) -> None:
        with card("Runs", "live ones first"):
            with box("sideways") as self._table, box("list", "table"):
                with box(tag="thead"), box(tag="tr"):
                    for words, side in _COLUMNS:
                        with box(side, "th"):
                            text(words)
                self._runs: Keyed[RunRow] = Keyed(box(tag="tbody"), RunRowView, lambda row: row.run)
            self._no_runs = Empty(
                "No run yet", "Submit a plain PyTorch training function:", "atoll run examples/train_gpt.py"
            )

    def _build_queues(self) -> None:
        with card("Queues", "parts of the cluster that each uses, and that are fair by its weight"):
            self._queues: Keyed[QueueRow] = Keyed(box("nodes"), QueueView, lambda row: row.name)
            self._goodput = text("", "quiet")
            self._no_queues = Empty(
                "The control plane does not answer", "Runs go on meanwhile; this says why not:", "atoll doctor"
            )

    def _build_nodes(self) -> None:
        with card("Nodes", "hosts that Ray and Atoll's agents hold together"):
            self._nodes: Keyed[NodeRow] = Keyed(box("nodes"), NodeView, lambda row: row.node)
            ui.link("Islands and links between them", "/network").classes(replace="quiet")
            self._no_nodes = Empty(
                "No node has attached", "Agents attach within seconds of the start; this says why not:", "atoll doctor"
            )

    async def refresh(self, *, now: float) -> None:
        """Ask once and show the answers. Raises what the source raises."""
        runs, nodes, top = await self._source.runs(), await self._source.nodes(), await self._source.top()
        self._tiles.show(overview_tiles(runs, nodes))
        self._runs.show(run_rows(runs, now=now))
        self._table.set_visibility(bool(runs))
        self._no_runs.show(empty=not runs)
        self._queues.show(queue_rows(top))
        self._goodput.set_text(goodput_line(top))
        self._no_queues.show(empty=top is None)
        self._nodes.show(node_rows(nodes))
        self._no_nodes.show(empty=not nodes)
