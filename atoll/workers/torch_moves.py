"""Carries out a reshard plan: pieces of tensors from rank to rank, a checksum behind each message (law 7).

All members hold the same plan, so each knows what comes from whom and in which order. Receives are posted before
anything is sent. A large piece leaves from where it lies and comes to where it belongs, without a copy between; small ones
share frames. A message whose bytes changed on the way ends the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import xxhash

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.reshard import Copy, frames, messages
from atoll.errors import InternalError
from atoll.fault.inject import failpoint
from atoll.workers.peers import Comm, Pending, completed

# A copy of this size costs more than a frame of its own.
_LARGE_BYTES = 64 << 10
# Longer ones go in pieces, which ranks of one host pass through memory that they share.
_PIECE_BYTES = 2 << 20
_CHECK_BYTES = 8

# Tensors with the boxes that they hold, by name.
Held = Mapping[str, tuple[torch.Tensor, Box]]


def exchange(comm: Comm, copies: Sequence[Copy], sources: Mapping[str, Held], target: Held) -> bool:
    """Fill `target` on this rank from all ranks' `sources` (by key). False when the epoch ended meanwhile.

    Sources must not change until this returns; targets hold anything where it fails.
    """
    routes = messages(copies)
    arriving = [_expected(comm, source, way, target) for (source, to), way in routes.items() if to == comm.rank]
    sent = [w for (source, to), way in routes.items() if source == comm.rank for w in _sent(comm, to, way, sources)]
    for copy in copies:
        if copy.source == copy.target == comm.rank:
            _part(target, copy).copy_(_part(sources[copy.key], copy))
    return all(message.landed(target) for message in arriving) and all(completed(work) for work in sent)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Copies whose bytes come to `memory`; `placed`: that is where they belong."""

    run: list[Copy]
    memory: torch.Tensor
    placed: bool
    works: list[Pending]


@dataclass(frozen=True, slots=True)
class _Message:
    """What comes from one rank, in order, and the checksum behind it."""

    source: int
    frames: list[_Frame]
    check: torch.Tensor
    checked: Pending

    def landed(self, target: Held) -> bool:
        """Wait until all of it is in place. False when the epoch ended. Raises `InternalError` for other bytes."""
        seen = xxhash.xxh3_64()
        for frame in self.frames:
            if not all(completed(work) for work in frame.works):
                return False
            seen.update(_bytes(frame.memory))
        if not completed(self.checked):
            return False
        if seen.digest() != bytes(self.check.numpy()):
            size = sum(frame.memory.numel() for frame in self.frames)
            raise InternalError(
                f"the state from rank {self.source} changed on the way: {size} bytes do not have the checksum that came "
                "with them"
            )
        for frame in self.frames:
            if not frame.placed:
                _unpack(frame, target)
        return True


def _expected(comm: Comm, source: int, copies: Sequence[Copy], target: Held) -> _Message:
    itemsizes = {c.name: target[c.name][0].element_size() for c in copies}
    found = []
    for run in frames(copies, itemsizes, _LARGE_BYTES):
        place = _in_place(_part(target, run[0])) if len(run) == 1 else None
        size = sum(c.box.count * itemsizes[c.name] for c in run)
        memory = torch.empty(size, dtype=torch.uint8) if place is None else place
        works = [comm.recv(piece, source=source, in_place=True) for piece in torch.split(memory, _PIECE_BYTES)]
        found.append(_Frame(run, memory, place is not None, works))
    check = torch.empty(_CHECK_BYTES, dtype=torch.uint8)
    return _Message(source, found, check, comm.recv(check, source=source))


def _sent(comm: Comm, to: int, copies: Sequence[Copy], sources: Mapping[str, Held]) -> Iterator[Pending]:
    itemsizes = {c.name: sources[c.key][c.name][0].element_size() for c in copies}
    seen = xxhash.xxh3_64()
    for run in frames(copies, itemsizes, _LARGE_BYTES):
        failpoint("in-transfer")
        parts = [_part(sources[c.key], c) for c in run]
        place = _in_place(parts[0]) if len(parts) == 1 else None
        memory = _packed(parts) if place is None else place
        yield from [comm.send(piece, to=to, in_place=True) for piece in torch.split(memory, _PIECE_BYTES)]
        seen.update(_bytes(memory))
    yield comm.send(torch.frombuffer(bytearray(seen.digest()), dtype=torch.uint8), to=to)


def _part(held: Held, copy: Copy) -> torch.Tensor:
    tensor, box = held[copy.name]
    return tensor.detach()[copy.box.within(box)]


def _in_place(part: torch.Tensor) -> torch.Tensor | None:
    """The part's own memory [bytes], where its elements lie one after the other."""
    return part.view(-1).view(torch.uint8) if part.is_contiguous() and part.numel() else None


def _unpack(frame: _Frame, target: Held) -> None:
    offset = 0
    for copy in frame.run:
        part = _part(target, copy)
        end = offset + part.numel() * part.element_size()
        part.copy_(frame.memory[offset:end].clone().view(part.dtype).view(part.shape))
        offset = end


def _packed(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    flats = [_flat(t) for t in tensors if t.numel()]
    return torch.cat(flats) if flats else torch.empty(0, dtype=torch.uint8)


def _bytes(memory: torch.Tensor) -> memoryview:
    return memory.numpy().data if memory.numel() else memoryview(b"")


def checked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The bytes of all tensors with their checksum behind them."""
    body = _packed(tensors)
    return torch.cat([body, checksum(body)])


def verified(buffer: torch.Tensor, what: str) -> torch.Tensor:
    """The bytes of what `checked` packed. Raises `InternalError` where they are not what was sent."""
    body, told = buffer[:-_CHECK_BYTES], buffer[-_CHECK_BYTES:]
    if not torch.equal(checksum(body), told):
        raise InternalError(
            f"{what} changed on the way: {body.numel()} bytes do not have the checksum that came with them"
        )
    return body


def checked_size(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of what `checked` makes of tensors like these."""
    return sum(t.numel() * t.element_size() for t in tensors) + _CHECK_BYTES


def checksum(*bodies: torch.Tensor) -> torch.Tensor:
    """What goes behind these bytes."""
    seen = xxhash.xxh3_64()
    for body in bodies:
        seen.update(_bytes(body))
    return torch.frombuffer(bytearray(seen.digest()), dtype=torch.uint8)


def pieces_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The bytes of all: those of small tensors together first, then large ones, where they lie if they lie together."""
    small, large = _by_size(tensors)
    return [_packed(small), *(_flat(t) for t in large)]


def placed(pieces: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """Put what came into `pieces_of(tensors)` where it belongs."""
    small, large = _by_size(tensors)
    together, *apart = pieces
    ends = itertools.accumulate(t.numel() * t.element_size() for t in small)
    spread = [together[end - t.numel() * t.element_size() : end] for t, end in zip(small, ends, strict=True)]
    for tensor, piece in zip([*small, *large], [*spread, *apart], strict=True):
        if tensor.numel() and piece.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(piece.clone().view(tensor.dtype).view(tensor.shape))


def _by_size(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    small = [t for t in tensors if t.numel() * t.element_size() < _LARGE_BYTES]
    return small, [t for t in tensors if t.numel() * t.element_size() >= _LARGE_BYTES]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
