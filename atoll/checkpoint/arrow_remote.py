"""Copies of a run's checkpoints on whatever `pyarrow.fs` reaches: S3, GCS, Azure, HDFS, a mounted folder.

    <uri>/<run>/step-00000100/          the files of the step under their own names, immutable
                              commit-e3-1763737000-9c56cc51b374c3ba.json    the record, last

The name of a record has the epoch of its save, the second in which it was made, and the checksum of the record as it lies
on the local disk: equal records have equal names, so whoever finishes another's upload writes the same file. Object
stores show a file whole or not at all, others do not: nothing counts but by its checksums, and a step only by its record.
A record counts only if it was decided on (`fs_decisions`).

One upload holds a block of 4 MiB at a time and what the store's client keeps of a part. Every method may raise
`RemoteError`, and may take as long as the store does: none is called from a thread that training waits for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from atoll.checkpoint.fs_files import make_directory, sync_file
from atoll.checkpoint.fs_retrying import Backoff
from atoll.checkpoint.fs_sources import Unasked
from atoll.checkpoint.manifest import CommitRecord, Segment, unseal
from atoll.errors import CheckpointError
from atoll.schema.checkpoints import Tier

_RECORD = re.compile(r"commit-e(\d+)-(\d+)-([0-9a-f]{16})\.json")
_STEP = re.compile(r"step-(\d+)")


class RemoteError(Unasked):
    """The remote store failed or refused: trying again may help."""


class RemoteGone(CheckpointError):
    """The remote store has not all of a file that it should have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRecord:
    """A commit record by its name. `at`: Unix seconds of its making."""

    step: int
    epoch: int
    at: int
    digest: str

    @property
    def name(self) -> str:
        """Its file."""
        return f"commit-e{self.epoch}-{self.at}-{self.digest}.json"


def epoch_of(name: str) -> int | None:
    """The epoch of the save that a record of this name is of."""
    found = _RECORD.fullmatch(name)
    return int(found[1]) if found is not None else None


class Remote:
    """The copies of one run under `base` of `files`; `uri` is what people call it."""

    def __init__(self, open_: Callable[[], tuple[fs.FileSystem, str]], *, run: str, uri: str) -> None:
        self._open, self._run, self.uri = open_, run, uri
        self._opened: tuple[fs.FileSystem, str] | None = None

    @classmethod
    def at(cls, uri: str, *, run: str) -> Remote:
        """The store at `uri`, which is opened when it is first used: that may ask the network."""
        return cls(lambda: _open(uri), run=run, uri=uri)

    def where(self, step: int, file: str = "") -> str:
        """For a person."""
        return f"{self.uri.rstrip('/')}/{self._run}/{_folder(step)}{'/' if file else ''}{file}"

    # -- what is there -------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of which anything is there, oldest first."""
        found = (_STEP.fullmatch(info.base_name) for info in self._list())
        return sorted(int(match[1]) for match in found if match)

    def records(self, step: int) -> list[RemoteRecord]:
        """The records of a step; one counts at most."""
        found = (_RECORD.fullmatch(info.base_name) for info in self._list(step))
        return [RemoteRecord(step=step, epoch=int(m[1]), at=int(m[2]), digest=m[3]) for m in found if m]

    def files(self, step: int) -> list[str]:
        """All that lies there of a step."""
        return [info.base_name for info in self._list(step) if info.type == fs.FileType.File]

    def record(self, record: RemoteRecord) -> CommitRecord:
        """What it says. Raises `CheckpointError` for a damaged one."""
        where = self.where(record.step, record.name)
        found = unseal(CommitRecord, self.read(record.step, record.name), where)
        if found.step != record.step:
            raise CheckpointError(f"{where} is the record of step {found.step}")
        return found

    def size(self, step: int, file: str) -> int | None:
        """Bytes of a file; None where there is none."""
        with _failing(self.where(step, file)):
            info = self._files().get_file_info(self._path(step, file))
            return int(info.size or 0) if info.type == fs.FileType.File else None

    def read(self, step: int, file: str) -> bytes:
        """All of a small file."""
        size = self.size(step, file)
        if size is None:
            raise RemoteGone(f"{self.where(step, file)} is not there")
        return bytes(self.read_at(step, file, 0, size))

    def read_at(self, step: int, file: str, begin: int, length: int) -> memoryview:
        """`length` bytes from `begin`, however little the store gives at once."""
        found = memoryview(bytearray(length))
        done = 0
        with _failing(self.where(step, file)), self._files().open_input_file(self._path(step, file)) as source:
            while done < length:
                piece = source.read_at(length - done, begin + done)
                if not piece:
                    raise RemoteGone(f"{self.where(step, file)} ended {length - done} bytes early")
                found[done : done + len(piece)] = piece
                done += len(piece)
        return found

    # -- changing it ---------------------------------------------------------------------------------------------------

    def write(self, step: int, file: str, pieces: Iterable[memoryview | bytes], done: Callable[[int], None]) -> None:
        """Make a file of `pieces`; `done` is told the length of each. What raised leaves nothing that counts.

        Durable in a folder of this machine or a mounted one, as stores make it by themselves.
        """
        total = 0
        with _failing(self.where(step, file)):
            local = self._files().type_name == "local"
            if local:
                make_directory(Path(self._path(step)))
            else:
                self._files().create_dir(self._path(step), recursive=True)
            with self._files().open_output_stream(self._path(step, file)) as sink:
                for piece in pieces:
                    sink.write(piece)
                    total += len(piece)
                    done(len(piece))
            if local:
                sync_file(Path(self._path(step, file)))
        held = self.size(step, file)
        if held != total:
            raise RemoteError(f"{self.where(step, file)} has {held} bytes after {total} were written")

    def delete(self, step: int, files: Iterable[str]) -> None:
        """Remove `files` of a step: its records first, so that half a deletion is a leftover and no checkpoint.

        What came there meanwhile stays; the folder goes where nothing did.
        """
        with _failing(self.where(step)):
            for file in sorted(files, key=lambda name: _RECORD.fullmatch(name) is None):
                with suppress(FileNotFoundError):
                    self._files().delete_file(self._path(step, file))
            if not self.files(step):
                with suppress(FileNotFoundError):
                    self._files().delete_dir(self._path(step))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _list(self, step: int | None = None) -> Sequence[fs.FileInfo]:
        with _failing(self.uri):
            path = self._base() if step is None else self._path(step)
            found: Sequence[fs.FileInfo] = self._files().get_file_info(fs.FileSelector(path, allow_not_found=True))
            return found

    def _files(self) -> fs.FileSystem:
        if self._opened is None:
            self._opened = self._open()
        return self._opened[0]

    def _base(self) -> str:
        self._files()
        return f"{self._opened[1].rstrip('/')}/{self._run}" if self._opened is not None else ""

    def _path(self, step: int, file: str = "") -> str:
        return f"{self._base()}/{_folder(step)}{'/' if file else ''}{file}"


class RemoteCopy:
    """One step there, as a source of blocks."""

    tier = Tier.REMOTE

    def __init__(self, remote: Remote, step: int, backoff: Backoff | None = None) -> None:
        self._remote, self._step, self._backoff = remote, step, backoff or Backoff()

    def where(self, file: str) -> str:
        """As `Source`."""
        return self._remote.where(self._step, file)

    def bytes_of(self, segment: Segment, begin: int, length: int) -> memoryview | None:
        """As `Source`."""
        return self._backoff.again(lambda: self._remote.read_at(self._step, segment.file, begin, length), RemoteError)

    def small(self, file: str) -> bytes | None:
        """As `Source`."""
        return self._backoff.again(lambda: self._remote.read(self._step, file), RemoteError)


@contextmanager
def _failing(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RemoteGone(f"{where}: {error}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise RemoteError(f"{where}: {text}") from None


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    files, base = fs.FileSystem.from_uri(uri)
    if files.type_name == "s3":
        # In the background Arrow queues as many parts as it is given, which is all of a file.
        make, (options,) = files.__reduce__()
        files = make({**options, "background_writes": False})
    return files, base


def _folder(step: int) -> str:
    return f"step-{step:08d}"
