"""A state that no member holds any more comes back from a checkpoint; every member reads what is its own.

Rank 0 chooses the step, for two might find two different ones to be the newest. It tells the others what it opens, and all
fill the tensors of their places at once: each block is read by one of those that want any of it
(`checkpoint.torch_fan_out`). Where a block is whole nowhere that one of them looks, all give the step up, and rank 0 goes on
to the next copy or the next step. A step of format 1 rank 0 reads alone; what it found then goes out as any state does.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from atoll.checkpoint.fs_read import Reading, Wanted
from atoll.checkpoint.fs_sources import from_words
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import CommitRecord, seal, unseal
from atoll.checkpoint.torch_fan_out import restore
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError, InternalError
from atoll.schema.checkpoints import Tier
from atoll.schema.codec import decode_as, encode
from atoll.workers.buddies import Place
from atoll.workers.peers import Comm, Pending, completed
from atoll.workers.torch_shard_access import Access
from atoll.workers.torch_shards import Spec


class EpochOver(Exception):
    """The members changed before all had what they want."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """This rank's tensors of a step that all have read; `specs` says what they are parts of."""

    specs: Mapping[str, Spec]
    flat: Flat


class _Kind(enum.StrEnum):
    READ = "read"  # the step of `record`
    FILLED = "filled"  # what was read last is it
    ALONE = "alone"  # rank 0 has read all of it
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What rank 0 tells: `record` is a sealed one, of a step in `folder`; `tiers` have copies of it."""

    kind: _Kind
    folder: str = ""
    record: str = ""
    tiers: tuple[Tier, ...] = ()


@dataclass(slots=True, kw_only=True)
class Restart:
    """One try, in one epoch. `specs_of` says how saved tensors lie in the model; `memory` gives those of this place."""

    comm: Comm
    access: Access
    places: Sequence[Place]
    specs_of: Callable[[Iterable[Logical]], dict[str, Spec]]
    memory: Callable[[Mapping[str, Spec]], dict[str, torch.Tensor]]
    _filled: Filled | None = None

    def found(self) -> Filled | Flat | bool:
        """What this rank got of the step to begin with.

        Where rank 0 has read alone: all of it there, and True elsewhere. False: there is no such step.

        Raises `EpochOver`, and `CheckpointError` on rank 0 where there are steps and none is whole.
        """
        return self._lead() if self.comm.rank == 0 else self._follow()

    def _lead(self) -> Filled | Flat | bool:
        flat = self.access.found(self.comm.epoch, self._take)
        if flat is None:
            self._say(_Said(kind=_Kind.NOTHING))
            return False
        if self._filled is not None and flat is self._filled.flat:
            self._say(_Said(kind=_Kind.FILLED))
            return self._filled
        self._say(_Said(kind=_Kind.ALONE))
        return flat

    def _follow(self) -> Filled | Flat | bool:
        while True:
            said = decode_as(_Said, self._gathered(b"")[0])
            match said.kind:
                case _Kind.READ:
                    self._filled = self._tried(said)
                case _Kind.FILLED:
                    if self._filled is None:
                        raise InternalError("rank 0 takes up a step that is not whole here")
                    return self._filled
                case _:
                    return said.kind is _Kind.ALONE

    def _take(self, reading: Reading) -> Flat:
        tiers = dict.fromkeys(source.tier for source in reading.sources if source.tier is not Tier.MEMORY)
        record = seal(reading.record).decode()
        self._say(_Said(kind=_Kind.READ, folder=str(reading.directory.parent), record=record, tiers=tuple(tiers)))
        self._filled = self._read(reading, "")
        return self._filled.flat

    def _tried(self, said: _Said) -> Filled | None:
        """None where it is not whole: rank 0 hears that, too, and knows what comes next."""
        reading, problem = None, ""
        try:
            record = unseal(CommitRecord, said.record.encode(), "what rank 0 told")
            reading = self.access.opened(Path(said.folder), record, said.tiers)
        except (CheckpointError, OSError) as error:
            problem = str(error)
        try:
            return self._read(reading, problem)
        except CheckpointError:
            return None

    def _read(self, reading: Reading | None, problem: str) -> Filled:
        """Fill this rank's tensors. A collective. Raises `CheckpointError` on all ranks."""
        told = [one.decode() for one in self._gathered(problem.encode())]
        if reading is None or any(told):
            raise from_words(next(filter(None, told)))
        specs = self.specs_of(tensor.logical for tensor in reading.record.tensors)
        tensors = self.memory(specs)
        wants = [[Wanted(n, s.box(p.size, p.index)) for n, s in specs.items()] for p in self.places]
        targets = {(want.tensor, want.box): tensors[want.tensor] for want in wants[self.comm.rank]}
        restore(reading, self.comm.rank, wants, targets, self._trade)
        return Filled(specs=specs, flat=Flat(tensors=tensors, meta=reading.record.tree))

    # -- words -----------------------------------------------------------------------------------------------------------

    def _say(self, said: _Said) -> None:
        self._gathered(encode(said))

    def _gathered(self, payload: bytes) -> list[bytes]:
        work = self.comm.all_gather(payload)
        if not completed(work):
            raise EpochOver
        found: list[bytes] = work.result
        return found

    def _trade(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """One message to each rank, one from each."""
        me = self.comm.rank
        sizes = [torch.frombuffer(bytearray(told), dtype=torch.int64) for told in self._gathered(_sizes(messages))]
        coming = {r: torch.empty(int(s[me]), dtype=torch.uint8) for r, s in enumerate(sizes) if r != me and s[me]}
        works: list[Pending] = [self.comm.recv(memory, source=r, in_place=True) for r, memory in coming.items()]
        for rank, message in enumerate(messages):
            if rank != me and message:
                works.append(self.comm.send(torch.frombuffer(bytearray(message), dtype=torch.uint8), to=rank))
        if not all(completed(work) for work in works):
            raise EpochOver
        return [
            messages[me] if r == me else bytes(coming[r].numpy()) if r in coming else b"" for r in range(len(messages))
        ]


def _sizes(messages: Sequence[bytes]) -> bytes:
    return torch.tensor([len(message) for message in messages], dtype=torch.int64).numpy().tobytes()
