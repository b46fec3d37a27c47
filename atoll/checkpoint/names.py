"""What the names of files in a directory of checkpoints say (`fs_store` has the list of them)."""

from __future__ import annotations

import re

_STEP = re.compile(r"step-([0-9]{8,})", re.ASCII)
_EPOCH = re.compile(r"(?:^|[.-])e(\d+)-")
# A rank's word: epoch, number of ranks, tag of the run.
WORD = re.compile(r"e(\d+)-r\d+of(\d+)-([0-9a-f]{8})(?:-by\d+)?\.json")


def step_of(name: str) -> int:
    """The step whose folder has this name; -1: none has."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found is not None and f"{int(found[1]):08d}" == found[1] else -1


def epoch_of(name: str) -> int:
    """The epoch of the save that wrote a file of this name; -1: it does not say."""
    found = _EPOCH.search(name)
    return int(found[1]) if found is not None else -1


def is_passing(name: str, until: int | None) -> bool:
    """Whether a file of this name is one on its way in, of an epoch up to `until` (None: of any)."""
    return name.startswith(".") and (until is None or epoch_of(name) <= until)
