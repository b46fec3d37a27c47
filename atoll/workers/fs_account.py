"""The file of a trainer's sample account. One `write` a line: SIGKILL leaves whole lines or none (page cache outlives)."""

from __future__ import annotations

import os
from pathlib import Path

from atoll.schema.ids import TrainerId
from atoll.workers.account import Account, merge


class AccountFile:
    """Appends lines to `<run_dir>/account/<trainer>.jsonl`."""

    def __init__(self, run_dir: Path, trainer: TrainerId) -> None:
        folder = run_dir / "account"
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(folder / f"{trainer}.jsonl", flags, 0o600)

    def write(self, line: str) -> None:
        """Append one line, whole."""
        os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_account(run_dir: Path) -> Account:
    """The merged account of the run in `run_dir`."""
    lines: list[str] = []
    for path in sorted((run_dir / "account").glob("*.jsonl")):
        lines += path.read_text().splitlines()
    return merge(lines)
