"""The log viewer of a run: one tab a trainer, following the end of the file that its agent owns.

Logs come through the control plane and an agent, all else on the page from the history: the viewer asks by a timer of
its own, so that a control plane that is away for a moment costs log lines and never holds up the charts.
"""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from atoll.errors import AtollError
from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import LogChunk
from atoll.ui.nicegui_parts import Empty, Keyed, box, button, card, text, tone_class
from atoll.ui.source import Source
from atoll.ui.views import MemberCard
from atoll.ui.wording import plain_log

# What a reader scrolls back through; the whole file is behind `atoll logs`.
_MAX_LINES = 500
_TAIL_BYTES = 32 * 1024
_CHUNK_BYTES = 64 * 1024
_REFRESH_S = 1.0


class _Tab:
    def __init__(self, panel: LogPanel) -> None:
        self._panel = panel
        self._trainer = ""
        self.root = button("", "tab", lambda: panel.choose(self._trainer))
        self._words = self.root.default_slot.children[0]

    def show(self, model: MemberCard) -> None:
        self._trainer = model.trainer
        self._words.set_text(f"{model.name} \u2715" if model.gone else model.name)
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
        self._written = False
        with card("Logs", "the last lines of each trainer, as they are written"):
            self._tabs: Keyed[MemberCard] = Keyed(box("tabs"), lambda: _Tab(self), lambda member: member.trainer)
            self._problem = text("", "quiet")
            self._log = ui.log(max_lines=_MAX_LINES).classes("log").props("role=log tabindex=0")
            self._empty = Empty("No log yet", "Lines appear here as soon as a trainer has started.")
        self._problem.set_visibility(False)
        ui.timer(_REFRESH_S, self.follow)

    def choose(self, trainer: str) -> None:
        """Follow this trainer from the tail of its log."""
        self.chosen, self._offset, self._rest = trainer, -_TAIL_BYTES, ""
        self._log.clear()
        self._written = False

    def show(self, members: Sequence[MemberCard]) -> None:
        """Show the trainers; the first is followed until another is chosen."""
        if members and not self.chosen:
            self.choose(members[0].trainer)
        self._tabs.show(members)
        self._log.set_visibility(bool(members))
        self._empty.show(empty=not members)

    async def follow(self) -> None:
        """Add what the chosen trainer wrote since, or say why it cannot be read."""
        if not (trainer := self.chosen):
            return
        try:
            chunk = await self._source.logs(self._run, TrainerId(trainer), self._offset, _CHUNK_BYTES)
        except AtollError as error:
            self._tell(str(error))
            return
        if trainer == self.chosen:
            if not chunk.problem:
                self._add(chunk)
            self._tell(chunk.problem or ("" if self._written else "It has written nothing yet."))

    def _tell(self, problem: str) -> None:
        self._problem.set_text(problem)
        self._problem.set_visibility(bool(problem))

    def _add(self, chunk: LogChunk) -> None:
        self._offset = chunk.next_offset
        self._written = self._written or bool(chunk.text)
        *lines, self._rest = plain_log(self._rest + chunk.text)
        for line in lines[-_MAX_LINES:]:
            self._log.push(line or " ")
