"""The lease of an epoch on a store: who may commit and delete there (law 1), checked by the file system itself.

    claims-1f0c2a9b/epoch-000013.claim/      one run's claims; the highest counts, there is rarely another

The writer that leads an epoch makes the epoch's claim, a directory, before it commits or deletes anything. A claim is
only ever raised: whoever finds a higher one gives up. Two that come at once each make their own first and look after,
so at least the lower one sees the higher.

Looking before acting is not enough: a process may be frozen between the two, and be woken after another epoch saved. So
each effect is one system call that names a path inside the claim: a commit links a file that lies in it, a deletion
moves its victim into it. The first writer of a higher epoch moves all lower claims away, and from then on such a call
of theirs fails in the kernel, whenever it comes. That is exact where names are looked up on one host's file system; a
network file system may go on using a name that it looked up seconds ago.

What a claim may hold when its process is killed: files on their way in, which nothing names; `gone-*`, which is deleted
but for its bytes; and `damaged-*`, on its way to that name in the store. Whoever ends the claim puts the last where they
belong and removes the rest, and so does whoever collects garbage there (`debris`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from atoll.checkpoint.fs_files import create, make_directory, publish, sync_directory
from atoll.checkpoint.manifest import run_tag
from atoll.fault.inject import failpoint

_CLAIM = re.compile(r"epoch-(\d+)\.claim")
_GONE = "gone-"
# What a step is called that was set aside.
DAMAGED = "damaged-"


class Overtaken(Exception):
    """A higher epoch has claimed the store: whoever is of a lower one has no say in it any more."""


class Claim:
    """The right of `epoch` of `run` to commit and delete under `directory`."""

    def __init__(self, directory: Path, *, run: str, epoch: int) -> None:
        self.epoch = epoch
        self._all = directory / f"claims-{run_tag(run)}"
        self._mine = self._all / f"epoch-{epoch:06d}.claim"
        self._cleared = False

    def hold(self) -> None:
        """Make the claim, or see that it still stands, and end all lower ones. Raises `Overtaken`."""
        self._refuse_if_overtaken()
        if not self._mine.exists():
            failpoint("before-claim")
            make_directory(self._mine)
            failpoint("after-claim")
            # Mine was made first and the others are read after it: of two that race, the lower sees the higher.
            self._refuse_if_overtaken()
        for lower in [e for e in self._epochs() if e < self.epoch]:
            self._end(lower)
        if not self._cleared:
            self._cleared = True
            for each in _left_in(self._all):
                clear_debris(self._all.parent, each)

    def publish(self, path: Path, data: bytes) -> bool:
        """As `fs_files.publish`, while the claim stands. Raises `Overtaken`."""
        self.hold()
        try:
            return publish(path, data, by_way_of=self._mine)
        except FileNotFoundError:
            raise self._overtaken(path) from None

    def replace(self, path: Path, data: bytes) -> None:
        """Have `path` hold `data` and nothing else, while the claim stands. Raises `Overtaken`."""
        self.hold()
        temporary = self._mine / f"{path.name}.{os.urandom(4).hex()}"
        try:
            create(temporary, data)
            temporary.replace(path)
        except FileNotFoundError:
            raise self._overtaken(path) from None
        sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Have a file or folder gone, at once and durably, while the claim stands. Raises `Overtaken`."""
        grave = self._mine / f"{_GONE}{path.name}.{os.urandom(4).hex()}"
        if self._taken_in(path, grave):
            discard(grave)

    def set_aside(self, path: Path) -> None:
        """Give a step another name in the same folder, under which it counts no more. Raises `Overtaken`."""
        aside = self._mine / aside_for(path).name
        # By its name in the claim whoever ends that knows where it belongs, if nobody comes to the second half of this.
        if self._taken_in(path, aside):
            _put_back(aside, path.parent)

    def _taken_in(self, path: Path, inside: Path) -> bool:
        """Have `path` lie in the claim, under the name `inside`. False: it was not there. Raises `Overtaken`."""
        self.hold()
        failpoint("before-removal")
        try:
            path.rename(inside)
        except FileNotFoundError:
            if path.exists():
                raise self._overtaken(path) from None
            return False
        # Durable where it went before it is so that it left: in between it has two names, not none.
        with suppress(FileNotFoundError):  # who ended the claim meanwhile has it in hand
            sync_directory(inside.parent)
        sync_directory(path.parent)
        failpoint("after-removal")
        return True

    def _epochs(self) -> list[int]:
        names = (_CLAIM.fullmatch(p.name) for p in self._all.glob("epoch-*.claim"))
        return [int(found[1]) for found in names if found]

    def _refuse_if_overtaken(self) -> None:
        highest = max(self._epochs(), default=self.epoch)
        if highest > self.epoch:
            with suppress(OSError):
                self._mine.rmdir()
            raise Overtaken(self._words(f"epoch {highest} has claimed {self._all.parent}"))

    def _overtaken(self, path: Path) -> Exception:
        if self._mine.exists():
            return FileNotFoundError(f"{path.parent} is gone: something else removes files under {self._all.parent}")
        return Overtaken(self._words(f"a higher epoch claimed {self._all.parent} meanwhile"))

    def _words(self, what: str) -> str:
        return (
            f"{what}, this worker is of epoch {self.epoch}: it neither commits nor deletes. If no such epoch of this run "
            f"exists any more, remove {self._all}"
        )

    def _end(self, epoch: int) -> None:
        over = self._all / f"over-{epoch:06d}.{os.urandom(4).hex()}"
        with suppress(FileNotFoundError):  # another did
            (self._all / f"epoch-{epoch:06d}.claim").rename(over)
            sync_directory(self._all)
        _clear(over, self._all.parent)


def aside_for(path: Path) -> Path:
    """A name for a step that is set aside."""
    return path.with_name(f"{DAMAGED}{path.name}-{os.urandom(4).hex()}")


def debris(directory: Path, run: str | None = None) -> Sequence[Path]:
    """What processes that were killed left in the claims under `directory`, of `run` or of all.

    Under a claim that stands it may also be what a process is deleting just now: to help with that does no harm.
    """
    claims = directory.glob("claims-*" if run is None else f"claims-{run_tag(run)}")
    return [path for each in sorted(claims) for path in _left_in(each)]


def clear_debris(directory: Path, found: Path) -> None:
    """Remove one of `debris`; what was on its way to be set aside gets there."""
    if found.name.startswith(DAMAGED):
        _put_back(found, directory)
    elif found.name.startswith(_GONE):
        discard(found)
    else:
        _clear(found, directory)


def _left_in(claims: Path) -> Sequence[Path]:
    patterns = ("over-*", f"epoch-*.claim/{_GONE}*", f"epoch-*.claim/{DAMAGED}*")
    return sorted(path for pattern in patterns for path in claims.glob(pattern))


def discard(path: Path) -> None:
    """Remove a file or a folder. What cannot be removed stays, for whoever collects garbage."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _clear(over: Path, directory: Path) -> None:
    """Remove a claim that was ended; steps that were to be set aside are."""
    for aside in over.glob(f"{DAMAGED}*"):
        _put_back(aside, directory)
    discard(over)


def _put_back(aside: Path, directory: Path) -> None:
    # Two may do this at once: the one whose claim it was, and who ended that.
    with suppress(FileNotFoundError):
        aside.rename(directory / aside.name)
        sync_directory(directory)
