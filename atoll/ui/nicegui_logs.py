"""The log viewer of a run: one tab a trainer, following the end of the file that its agent owns."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from atoll.schema.ids import RunId, TrainerId
from atoll.ui.nicegui_parts import Empty, Keyed, box, button, card, text, tone_class
from atoll.ui.source import Source
from atoll.ui.views import MemberCard
from atoll.ui.wording import plain_log

# What a reader scrolls back through; the whole file is behind `atoll logs`.
_MAX_LINES = 500
_TAIL_BYTES = 32 * 1024
_CHUNK_BYTES = 64 * 1024


class _Tab:
    def __init__(self, panel: LogPanel) -> None:
        self._panel = panel
        self._trainer = ""
        self.root = button("", "tab", lambda: panel.choose(self._trainer))
        self._words = self.root.default_slot.children[0]

    def show(self, model: MemberCard) -> None:
        self._trainer = model.trainer
        self._words.set_text(f"{model.trainer} \u2715" if model.gone else model.trainer)
        chosen = model.trainer == self._panel.chosen
        tone_class(self.root, "tab", "on" if chosen else "")
        self.root.props(f"aria-pressed={str(chosen).lower()}")


class LogPanel:
    """Follows one trainer's log at a time."""

    def __init__(self, source: Source, run: RunId) -> None:
        self._source, self._run = source, run
        self.chosen = ""
        self._offset = -_TAIL_BYTES
        self._rest = ""
        with card("Logs", "the last lines of each trainer, as they are written"):
            self._tabs: Keyed[MemberCard] = Keyed(box("tabs"), lambda: _Tab(self), lambda member: member.trainer)
            self._problem = text("", "quiet")
            self._log = ui.log(max_lines=_MAX_LINES).classes("log").props("role=log tabindex=0")
            self._empty = Empty("No log yet", "Lines appear here as soon as a trainer has started.")

    def choose(self, trainer: str) -> None:
        """Follow this trainer from the tail of its log."""
        self.chosen, self._offset, self._rest = trainer, -_TAIL_BYTES, ""
        self._log.clear()

    async def refresh(self, members: Sequence[MemberCard]) -> None:
        """Show the trainers and what the chosen one wrote since."""
        if members and not self.chosen:
            self.choose(members[0].trainer)
        self._tabs.show(members)
        self._log.set_visibility(bool(members))
        self._empty.show(empty=not members)
        if self.chosen:
            await self._follow(self.chosen)

    async def _follow(self, trainer: str) -> None:
        chunk = await self._source.logs(self._run, TrainerId(trainer), self._offset, _CHUNK_BYTES)
        if trainer != self.chosen:
            return
        self._problem.set_text(chunk.problem)
        self._problem.set_visibility(bool(chunk.problem))
        if chunk.problem:
            return
        self._offset = chunk.next_offset
        *lines, self._rest = plain_log(self._rest + chunk.text)
        for line in lines[-_MAX_LINES:]:
            self._log.push(line or " ")
