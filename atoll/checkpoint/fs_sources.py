"""Where the bytes of a committed step may come from: memory, a folder, or whatever else keeps the same files.

A source gives bytes and vouches for nothing: whoever asks compares them with the checksum of their block, and takes the
next source where they are wrong. The slab of a save is an image of its files, so it is a source like any other.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from atoll.checkpoint.fs_files import read_at
from atoll.checkpoint.image import Image
from atoll.checkpoint.manifest import Segment
from atoll.errors import CheckpointError
from atoll.schema.checkpoints import Tier

# What says so of a file that is not there. Anything else that a disk says may pass: too many open files, a stale handle.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
_MARK = "cannot be asked: "


class Unasked(CheckpointError):
    """Whether a copy is whole is unknown, for it could not be asked: no reason to go without it for good.

    Its words begin with a mark, by which `from_words` tells it from damage where another rank said it.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(_MARK + problem.removeprefix(_MARK))


def from_words(problem: str) -> CheckpointError:
    """The error that has these words."""
    return Unasked(problem) if problem.startswith(_MARK) else CheckpointError(problem)


def failed(path: Path, error: OSError) -> CheckpointError:
    """What an error of the disk at `path` means: a file that is missing from its folder is damage, all else passes."""
    words = f"{path}: {error.strerror or error}"
    return CheckpointError(words) if error.errno in _GONE and path.parent.is_dir() else Unasked(words)


class Source(Protocol):
    """Copies of a step's files."""

    @property
    def tier(self) -> Tier:
        """Which tier it is."""

    def where(self, file: str) -> str:
        """For a person: the place of `file` in it."""

    def bytes_of(self, segment: Segment, begin: int, length: int) -> memoryview | None:
        """`length` bytes of the segment's file from `begin`, unverified; None: it does not have them.

        Raises `CheckpointError` where it should have them, `Unasked` where that may pass.
        """

    def small(self, file: str) -> bytes | None:
        """All of a small file, unverified; None: it does not have it. Raises `CheckpointError`."""


class Folder:
    """The step's own folder."""

    tier = Tier.LOCAL

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def where(self, file: str) -> str:
        """As `Source`."""
        return str(self._directory / file)

    def bytes_of(self, segment: Segment, begin: int, length: int) -> memoryview | None:
        """As `Source`."""
        path = self._directory / segment.file
        try:
            view = memoryview(bytearray(length))
            missing = length - read_at(path, view, begin)
        except OSError as error:
            raise failed(path, error) from None
        if missing:
            raise CheckpointError(
                f"{path} ended {missing} bytes early; rank {segment.rank} wrote {segment.begin + segment.bytes} bytes"
            )
        return view

    def small(self, file: str) -> bytes | None:
        """As `Source`."""
        path = self._directory / file
        try:
            return path.read_bytes()
        except OSError as error:
            raise failed(path, error) from None


class SlabCopy:
    """What one rank staged of a step that was committed, while its slab is not used for another save."""

    tier = Tier.MEMORY

    def __init__(self, image: Image, memory: memoryview) -> None:
        self._memory = memory
        self._runs = sorted(
            ((run.file, run.begin, run.bytes, run.at) for duty in image.duties for run in duty.runs),
            key=lambda r: r[:2],
        )

    def where(self, file: str) -> str:
        """As `Source`."""
        return f"{file} in memory"

    def bytes_of(self, segment: Segment, begin: int, length: int) -> memoryview | None:
        """As `Source`."""
        for file, low, size, at in self._runs:
            if file == segment.file and low <= begin and begin + length <= low + size:
                return self._memory[at + begin - low : at + begin - low + length]
        return None

    def small(self, file: str) -> bytes | None:  # noqa: ARG002 - a slab has none
        """As `Source`."""
        return None


def firsts(sources: Sequence[Source]) -> list[Source]:
    """The cheapest first."""
    return sorted(sources, key=lambda source: list(Tier).index(source.tier))
