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
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from atoll.checkpoint.fs_files import create, make_directory, publish, sync_directory
from atoll.checkpoint.manifest import run_tag
from atoll.fault.inject import failpoint

_CLAIM = re.compile(r"epoch-(\d+)\.claim")


class Overtaken(Exception):
    """A higher epoch has claimed the store: whoever is of a lower one has no say in it any more."""


class Claim:
    """The right of `epoch` of `run` to commit and delete under `directory`."""

    def __init__(self, directory: Path, *, run: str, epoch: int) -> None:
        self.epoch = epoch
        self._all = directory / f"claims-{run_tag(run)}"
        self._mine = self._all / f"epoch-{epoch:06d}.claim"

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
        grave = self._buried(path)
        if grave is None:
            return
        if grave.is_dir():
            shutil.rmtree(grave, ignore_errors=True)
        else:
            grave.unlink(missing_ok=True)

    def move(self, path: Path, to: Path) -> None:
        """Give a file or folder another name, while the claim stands. Raises `Overtaken`."""
        grave = self._buried(path)
        if grave is not None:
            # Where a higher epoch comes between the two, it clears the claim away, with what lies in it.
            with suppress(FileNotFoundError):
                grave.rename(to)
                sync_directory(to.parent)

    def _buried(self, path: Path) -> Path | None:
        """Where in the claim `path` lies now; None: it was not there. Raises `Overtaken`."""
        self.hold()
        grave = self._mine / f"{path.name}.{os.urandom(4).hex()}"
        failpoint("before-removal")
        try:
            path.rename(grave)
        except FileNotFoundError:
            if path.exists():
                raise self._overtaken(path) from None
            return None
        sync_directory(path.parent)
        failpoint("after-removal")
        return grave

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
        shutil.rmtree(over, ignore_errors=True)
