"""Carries out a reshard plan: pieces of tensors from rank to rank, a checksum behind each message (law 7).

All members hold the same plan, so each knows what comes from whom and in which order. Receives are posted before
anything is sent; several copies travel in one message. A message whose bytes changed on the way ends the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import xxhash

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.reshard import Copy, messages, slabs
from atoll.errors import InternalError
from atoll.fault.inject import failpoint
from atoll.workers.peers import Comm, Pending, completed

_SLAB_BYTES = 8 << 20
_CHECK_BYTES = 8

# Tensors with the boxes that they hold, by name.
Held = Mapping[str, tuple[torch.Tensor, Box]]


def exchange(comm: Comm, copies: Sequence[Copy], sources: Mapping[str, Held], target: Held) -> bool:
    """Fill `target` on this rank from all ranks' `sources` (by key). False when the epoch ended meanwhile."""
    for copy in copies:
        if copy.source == copy.target == comm.rank:
            _part(target, copy).copy_(_part(sources[copy.key], copy))
    arriving = _received(comm, copies, target)
    sent = [work for message in _outgoing(comm, copies, sources) for work in [message]]
    for run, buffer, source, work in arriving:
        if not completed(work):
            return False
        _unpack(run, buffer, source, target)
    return all(completed(work) for work in sent)


_Arriving = list[tuple[list[Copy], torch.Tensor, int, Pending]]


def _received(comm: Comm, copies: Sequence[Copy], target: Held) -> _Arriving:
    itemsizes = {c.name: target[c.name][0].element_size() for c in copies if c.target == comm.rank}
    found = []
    for (source, to), message in messages(copies).items():
        if to == comm.rank:
            for run in slabs(message, itemsizes, _SLAB_BYTES):
                size = sum(c.box.count * itemsizes[c.name] for c in run)
                buffer = torch.empty(size + _CHECK_BYTES, dtype=torch.uint8)
                found.append((run, buffer, source, comm.recv(buffer, source=source)))
    return found


def _outgoing(comm: Comm, copies: Sequence[Copy], sources: Mapping[str, Held]) -> Iterator[Pending]:
    for (source, to), message in messages(copies).items():
        if source == comm.rank:
            itemsizes = {c.name: sources[c.key][c.name][0].element_size() for c in message}
            for run in slabs(message, itemsizes, _SLAB_BYTES):
                failpoint("in-transfer")
                yield comm.send(checked([_part(sources[c.key], c) for c in run]), to=to)


def _part(held: Held, copy: Copy) -> torch.Tensor:
    tensor, box = held[copy.name]
    return tensor.detach()[copy.box.within(box)]


def _unpack(run: Sequence[Copy], buffer: torch.Tensor, source: int, target: Held) -> None:
    payload, offset = verified(buffer, f"the state from rank {source}"), 0
    for copy in run:
        part = _part(target, copy)
        end = offset + part.numel() * part.element_size()
        part.copy_(payload[offset:end].clone().view(part.dtype).view(part.shape))
        offset = end


def checked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The bytes of all tensors with their checksum behind them."""
    flats = [t.detach().contiguous().view(-1).view(torch.uint8) for t in tensors if t.numel()]
    body = torch.cat(flats) if flats else torch.empty(0, dtype=torch.uint8)
    return torch.cat([body, _checksum(body)])


def verified(buffer: torch.Tensor, what: str) -> torch.Tensor:
    """The bytes of what `checked` packed. Raises `InternalError` where they are not what was sent."""
    body, told = buffer[:-_CHECK_BYTES], buffer[-_CHECK_BYTES:]
    if not torch.equal(_checksum(body), told):
        raise InternalError(
            f"{what} changed on the way: {body.numel()} bytes do not have the checksum that came with them"
        )
    return body


def checked_size(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of what `checked` makes of tensors like these."""
    return sum(t.numel() * t.element_size() for t in tensors) + _CHECK_BYTES


def _checksum(body: torch.Tensor) -> torch.Tensor:
    value = xxhash.xxh3_64_digest(body.numpy().data if body.numel() else b"")
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
