"""The file of a trainer's sample account. One `write` a line: SIGKILL leaves whole lines or none (page cache outlives).

On a full disk lines wait in memory: training goes on, and they are lost only if the trainer ends before there is room.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from atoll.schema.ids import TrainerId
from atoll.workers.account import Account, merge
from atoll.workers.fs_output import PatientLines


class AccountFile:
    """Appends lines to `<run_dir>/account/<trainer>.jsonl`."""

    def __init__(self, run_dir: Path, trainer: TrainerId) -> None:
        folder = run_dir / "account"
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._path = folder / f"{trainer}.jsonl"
        self._file = os.open(self._path, flags, 0o600)
        self._lines = PatientLines(self._file)
        self._told = False

    def write(self, line: str) -> None:
        """Append one line, whole."""
        if self._lines.write(line.encode()):
            self._told = False
        elif not self._told:
            self._told = True
            self._say("the disk is full; its lines wait in memory, free some space before the run ends")

    def close(self) -> None:
        """Write what waits, and close the file."""
        if self._lines.waiting_bytes and not self._lines.write(b""):
            self._say(f"{self._lines.waiting_bytes} bytes never found room on the disk: the account lacks them")
        os.close(self._file)

    def _say(self, what: str) -> None:
        print(f"atoll: account {self._path}: {what}", file=sys.stderr)  # noqa: T201 - the trainer's log


def read_account(run_dir: Path) -> Account:
    """The merged account of the run in `run_dir`."""
    lines: list[str] = []
    for path in sorted((run_dir / "account").glob("*.jsonl")):
        lines += path.read_text().splitlines()
    return merge(lines)
