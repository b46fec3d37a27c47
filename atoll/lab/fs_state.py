"""What is known of each lab that stands, or was being raised: one JSON file a lab, under ATOLL_HOME.

Written by rename, so that it is never half there. Everything a lab makes carries its id, and the id is on disk before
the first of it is made: whatever becomes of the command, `down` finds what is its own. One lock for all labs of a user
orders the commands; it goes with the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atoll.errors import LabError, NotFoundError, SchemaError
from atoll.lab.fs_cgroups import Groups
from atoll.lab.proc_members import Process
from atoll.lab.spec import LabSpec
from atoll.schema.codec import from_plain, to_plain

_FILE = "lab.json"
_POLL_S = 0.02
RAISING, UP = "raising", "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """Traffic between two hosts, both ways, held to `rate` bits a second."""

    first: str
    second: str
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cable that is cut."""

    host: str
    nic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one link carried, in bytes of payload a second, when `lab bench` last looked."""

    source: str
    target: str
    nic: str
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A host that an autoscaler started as a machine, under the name that it gave."""

    instance: str
    kind: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One lab. `switches` and `holders`: the pids that hold its namespaces; `user`: inside a user namespace.

    `keeper`: what makes (and then holds) them, on record before it is told what to make.
    """

    name: str
    id: str
    spec: LabSpec
    phase: str = RAISING
    user: bool = False
    keeper: Process | None = None
    switches: int = 0
    holders: dict[str, int] = field(default_factory=dict)
    groups: dict[str, Groups] = field(default_factory=dict)
    group_bases: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    slows: tuple[Slow, ...] = ()
    frozen: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    ray_address: str = ""
    measured: tuple[Measured, ...] = ()
    machines: tuple[Started, ...] = ()


class Labs:
    """The labs of one ATOLL_HOME."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "labs"

    @contextlib.contextmanager
    def locked(self, deadline_s: float = 60.0) -> Iterator[None]:
        """Only one command at a time changes labs. Raises `LabError` after the deadline."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, until = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC), time.monotonic() + deadline_s
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > until:
                    raise LabError(
                        f"another `atoll lab` command has held {self.folder} for {deadline_s:g} s; wait for it"
                    )
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(handle)

    def names(self) -> list[str]:
        """Every lab on record, by name."""
        return sorted(file.parent.name for file in self.folder.glob(f"*/{_FILE}"))

    def read(self, name: str) -> Record:
        """Raises `NotFoundError`, or `LabError` for a file of another build."""
        file = self.folder / name / _FILE
        try:
            return from_plain(Record, json.loads(file.read_text("utf-8")))
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(
                f"no lab named {name!r} stands; known: {known}; `atoll lab up FILE` raises one"
            ) from None
        except (OSError, ValueError, SchemaError) as error:
            raise LabError(f"cannot read {file}: {error}; it may be of another version of Atoll") from None

    def write(self, record: Record) -> Record:
        """Put `record` on disk in one step, and return it."""
        folder = self.folder / record.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f"{_FILE}.new"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(to_plain(record), file, indent=1)
        draft.replace(folder / _FILE)
        return record

    def forget(self, name: str) -> None:
        """Remove what is on record of a lab."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
