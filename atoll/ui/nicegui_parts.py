"""The dashboard's building blocks: frame, theme, and widgets that change only what differs.

A widget is built once and then shown one value a second. Labels, classes and children are compared before anything is
sent, so an idle page sends nothing, text stays selected, focus stays where it is, and nothing flickers. The theme follows
the system until a person chooses; the choice lives in the browser, and switching it needs no word from the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from nicegui import ui

from atoll.ui.views import Pill, Tile

M = TypeVar("M")
Shown_contra = TypeVar("Shown_contra", contravariant=True)

_CSS = Path(__file__).with_name("dashboard.css").read_text(encoding="utf-8")
# Runs in the head, before anything is painted, so that a dark page never flashes white.
_THEME = """
(() => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("atoll-theme"); } catch { return null; } };
  const paint = () => { root.dataset.theme = chosen() || (system.matches ? "dark" : "light"); };
  window.atollTheme = () => {
    try { localStorage.setItem("atoll-theme", root.dataset.theme === "dark" ? "light" : "dark"); } catch {}
    paint();
  };
  system.addEventListener("change", paint);
  paint();
})();
"""
LOGO = (
    '<svg width="28" height="28" viewBox="0 0 28 28" aria-hidden="true">'
    '<circle cx="14" cy="14" r="10" fill="none" stroke="#5fd3c4" stroke-width="3.4" stroke-linecap="round" '
    'stroke-dasharray="13 5 8 5.4 16 5 6 4.4"/><circle cx="14" cy="14" r="3" fill="#ffb59c"/></svg>'
)


class Widget(Protocol[Shown_contra]):
    """Something on the page that shows one value at a time."""

    root: Any

    def show(self, model: Shown_contra) -> None:
        """Make the page agree with `model`."""
        ...


class Keyed(Generic[M]):
    """Widgets for a changing list of values, one for each key, in the order of the list."""

    def __init__(self, box: Any, make: Callable[[], Widget[M]], key: Callable[[M], object]) -> None:
        self._box, self._make, self._key = box, make, key
        self._widgets: dict[object, Widget[M]] = {}
        self._order: list[object] = []

    def show(self, models: Sequence[M]) -> None:
        """Add, drop, move and update widgets until they are those of `models`."""
        wanted = [self._key(model) for model in models]
        for key in [k for k in self._order if k not in set(wanted)]:
            self._order.remove(key)
            self._widgets.pop(key).root.delete()
        for place, (key, model) in enumerate(zip(wanted, models, strict=True)):
            self._place(key, place)
            self._widgets[key].show(model)

    def _place(self, key: object, place: int) -> None:
        if key not in self._widgets:
            with self._box:
                self._widgets[key] = self._make()
            self._order.append(key)
        if self._order[place] != key:
            self._order.remove(key)
            self._order.insert(place, key)
            self._widgets[key].root.move(target_index=place)


def box(classes: str = "", tag: str = "div") -> Any:
    """An empty element to put others into."""
    return ui.element(tag).classes(classes)


def text(words: str = "", classes: str = "") -> Any:
    """A label. Escaped by the framework; `set_text` sends only a change."""
    return ui.label(words).classes(classes)


def heading(words: str, tag: str = "h2") -> Any:
    """A heading that assistive technology finds; returns its label."""
    with box(tag=tag):
        return text(words)


def button(words: str, classes: str, act: Callable[[], Any] | None = None) -> Any:
    """A plain button."""
    made = box(classes, "button").props("type=button")
    with made:
        text(words)
    if act is not None:
        made.on("click", act)
    return made


def tone_class(element: Any, base: str, *extra: str) -> None:
    """Replace the classes of `element` if they differ."""
    wanted = " ".join((base, *(e for e in extra if e)))
    if " ".join(element.classes) != wanted:
        element.classes(replace=wanted)


class PillView:
    """A state: glyph, word, colour."""

    def __init__(self) -> None:
        self.root = box("pill", "span")
        with self.root:
            self._glyph = text("", "pill-glyph").props("aria-hidden=true")
            self._text = text()

    def show(self, model: Pill) -> None:
        """Show this state."""
        self._glyph.set_text(model.glyph)
        self._text.set_text(model.text)
        tone_class(self.root, "pill", model.tone.value)


class TileView:
    """One number."""

    def __init__(self) -> None:
        self.root = box("tile")
        with self.root:
            self._label, self._value, self._note = text("", "tile-label"), text("", "tile-value"), text("", "tile-note")

    def show(self, model: Tile) -> None:
        """Show this number."""
        self._label.set_text(model.label)
        self._value.set_text(model.value)
        self._note.set_text(model.note)
        tone_class(self.root, "tile", model.tone.value)


def tiles() -> Keyed[Tile]:
    """A row of numbers."""
    return Keyed(box("tiles"), TileView, lambda tile: tile.label)


@contextmanager
def card(title: str, note: str = "", classes: str = "") -> Iterator[Any]:
    """A titled panel; yields the quiet label beside the title."""
    with box(f"card {classes}".strip(), "section"):
        with box("card-head"):
            heading(title)
            quiet = text(note, "quiet")
        yield quiet


class Empty:
    """What stands in a panel that has nothing to show: why, and what to do next."""

    def __init__(self, title: str, hint: str, command: str = "") -> None:
        self._root = box("empty")
        with self._root:
            text(title, "empty-title")
            text(hint)
            if command:
                text(command, "command")

    def show(self, *, empty: bool) -> None:
        """Show or hide it."""
        self._root.set_visibility(empty)


class Frame:
    """Header and column of every page, the freshness mark, and the notice of a source that fails."""

    def __init__(self, title: str, crumb: str = "") -> None:
        ui.add_head_html(f"<style>{_CSS}</style><script>{_THEME}</script>")
        ui.page_title(f"{title} \u2013 Atoll")
        with box("top", "header"), box("top-in"):
            with ui.link(target="/").classes(replace="brand"):
                ui.html(LOGO, sanitize=False)
                text("Atoll")
            if crumb:
                text(crumb, "crumb mono")
            box("grow")
            self._fresh = text("", "fresh")
            button("Light / dark", "ghost").on("click", js_handler="() => window.atollTheme()")
        self.body = box("page", "main")
        with self.body:
            self._notice = text("", "notice").props("role=alert")
        self._notice.set_visibility(False)

    def fresh(self, clock: str) -> None:
        """The page shows the state of this time."""
        self._fresh.set_text(f"{clock} UTC")
        tone_class(self._fresh, "fresh")
        self._notice.set_visibility(False)

    def trouble(self, words: str) -> None:
        """The source failed; the page keeps what it had."""
        tone_class(self._fresh, "fresh", "stale")
        self._notice.set_text(words)
        self._notice.set_visibility(True)
