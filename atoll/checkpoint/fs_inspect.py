"""Looking at a folder of checkpoints from outside a run: what is there, and whether it reads as it was written.

For the command line. A path may name the folder or one step in it. Steps whose commit record was edited or cannot be
read are not checkpoints any more, but they are reported: nobody should learn of them by their absence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atoll.checkpoint.fs_store import Report, Store, StoredCheckpoint
from atoll.errors import CheckpointError, NotFoundError

_STEP_PREFIX = "step-"


def list_checkpoints(path: Path) -> Sequence[StoredCheckpoint]:
    """The committed steps at `path`, oldest first. Raises `NotFoundError`."""
    store, only = locate(path)
    return [s for s in store.list() if only is None or s.step == only]


def unreadable(path: Path) -> Sequence[str]:
    """What is wrong with the records at `path` that cannot be read; they are not listed. Raises `NotFoundError`."""
    store, only = locate(path)
    problems = []
    for step in store.committed_steps():
        try:
            if only in {None, step}:
                store.record(step)
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def verify(path: Path, step: int | None = None) -> Sequence[Report]:
    """Every block of `step`, by default of all steps at `path`, compared with its checksum. Raises `NotFoundError`."""
    store, steps = to_verify(path, step)
    return [store.verify(each) for each in steps]


def to_verify(path: Path, step: int | None = None) -> tuple[Store, Sequence[int]]:
    """The steps that `verify` reads. Raises `NotFoundError`."""
    store, only = locate(path)
    wanted = step if step is not None else only
    there = store.committed_steps()
    if wanted is not None and wanted not in there:
        raise NotFoundError(
            f"no committed step {wanted} in {store.directory}; there are {', '.join(map(str, there)) or 'none'}"
        )
    steps = there if wanted is None else [wanted]
    if not steps:
        raise NotFoundError(f"no committed checkpoint in {store.directory}; give a folder that holds one")
    return store, steps


def locate(path: Path) -> tuple[Store, int | None]:
    """The store that `path` means, and the step where it names one, with its zeros or without. Raises `NotFoundError`."""
    whole = path.absolute()
    number = whole.name.removeprefix(_STEP_PREFIX)
    step = int(number) if number != whole.name and number.isascii() and number.isdigit() else None
    store = Store(whole if step is None else whole.parent)
    if not whole.is_dir() and (step is None or not store.step_directory(step).is_dir()):
        raise NotFoundError(f"no directory {whole}; give a folder of checkpoints, or one step in it")
    return store, step
