"""The page of the network: a picture of islands and links, the tree of islands with its reasons, and a table of links."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from atoll.ui import network
from atoll.ui.nicegui_parts import Empty, Frame, Keyed, box, card, text, tiles
from atoll.ui.source import Source

_COLUMNS = (
    ("From", ""),
    ("To", ""),
    ("There", "right"),
    ("Back", "right"),
    ("Latency", "right"),
    ("Measured", "right"),
)


class IslandRowView:
    """An island or host with what makes it one."""

    def __init__(self) -> None:
        self.root = box("line")
        with self.root:
            self._title = text("", "mono")
            self._note = text("", "quiet")

    def show(self, model: network.IslandRow) -> None:
        """Show this island."""
        self._title.set_text(model.title)
        self._note.set_text(model.note)
        self.root.style(f"padding-left: {1.5 * model.depth:.1f}rem")


class LinkRowView:
    """One pair of NICs."""

    def __init__(self) -> None:
        self.root = box(tag="tr")
        with self.root:
            self._cells = [self._cell(side) for _, side in _COLUMNS]

    @staticmethod
    def _cell(side: str) -> Any:
        with box(side, "td"):
            return text("", "num" if side else "mono")

    def show(self, model: network.LinkRow) -> None:
        """Show this pair."""
        values = (model.source, model.target, model.there, model.back, model.latency, model.age)
        for cell, value in zip(self._cells, values, strict=True):
            cell.set_text(value)


class NetworkPage:
    """Builds the page, then shows each second what the source says."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._drawn: object = None
        self.frame = Frame("Network", "network")
        with self.frame.body:
            self._tiles = tiles()
            with card("Islands", "hosts near one another, by measured bandwidth"):
                label = 'role=img aria-label="Hosts and the links between them; the table below has the figures"'
                self._chart = ui.echart({"series": []}, renderer="svg").classes("chart tall").props(label)
                self._islands: Keyed[network.IslandRow] = Keyed(box(), IslandRowView, lambda row: row.name)
            with card("Links", "the slowest first"):
                self._build_links()
                self._nothing = Empty(
                    "No link was measured",
                    "Agents measure links when a second host attaches; this says why not:",
                    "atoll topology",
                )

    def _build_links(self) -> None:
        with box("sideways") as self._table, box("list", "table"):
            with box(tag="thead"), box(tag="tr"):
                for words, side in _COLUMNS:
                    with box(side, "th"):
                        text(words)
            self._links: Keyed[network.LinkRow] = Keyed(box(tag="tbody"), LinkRowView, lambda row: row.name)

    async def refresh(self, *, now: float) -> None:
        """Ask once and show the answers. Raises what the source raises."""
        view = await self._source.topology()
        self._tiles.show(network.tiles(view))
        self._islands.show(network.island_rows(view))
        self._links.show(network.link_rows(view, now=now))
        self._table.set_visibility(bool(view.links))
        self._nothing.show(empty=not view.links)
        self._chart.set_visibility(len(view.hosts) > 1)
        self._draw(network.picture(view))

    def _draw(self, options: dict[str, Any]) -> None:
        """Only what changed is sent: an unchanged picture is left alone."""
        if options != self._drawn:
            self._drawn = options
            self._chart.options.clear()
            self._chart.options.update(options)
            self._chart.update()
