"""Sends the run's state from a member to a joiner (law 6, small states: stop and copy).

First a line of JSON (names, types, shapes, the JSON part of the state and its digest), with its length before it; then
the tensors as slabs of bytes, small ones packed together. The joiner works out the digest of what came and holds it
against the sender's: a state that differs is never trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from atoll.checkpoint.torch_state import Flat, digest
from atoll.errors import InternalError
from atoll.fault.inject import failpoint
from atoll.workers.peers import Comm, Pending, completed

# Small tensors are packed up to here, so that a state of thousands of scalars takes few messages.
_SLAB_BYTES = 8 << 20

Entry = tuple[str, str, list[int]]


def send_state(comm: Comm, flat: Flat, receivers: Sequence[int]) -> bool:
    """Send `flat` to each of `receivers`. False when the epoch ended meanwhile."""
    entries = entries_of(flat.tensors)
    header = {"meta": flat.meta, "digest": f"{digest(flat):x}", "tensors": entries}
    text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    length = torch.tensor([text.numel()], dtype=torch.int64)
    works = _send_all(comm, length, receivers) + _send_all(comm, text, receivers)
    for slab in _slabs(entries):
        failpoint("in-transfer")
        works += _send_all(comm, pack([flat.tensors[name] for name, _, _ in slab]), receivers)
    return all(completed(work) for work in works)


def receive_state(comm: Comm, source: int) -> Flat | None:
    """The state that `source` sends. None when the epoch ended meanwhile."""
    length = torch.zeros(1, dtype=torch.int64)
    if not completed(comm.recv(length, source=source)):
        return None
    text = torch.empty(int(length), dtype=torch.uint8)
    if not completed(comm.recv(text, source=source)):
        return None
    header = json.loads(bytes(text.numpy()))
    tensors: dict[str, torch.Tensor] = {}
    for slab in _slabs([tuple(e) for e in header["tensors"]]):
        failpoint("in-transfer")
        buffer = torch.empty(sum(_size(e) for e in slab), dtype=torch.uint8)
        if not completed(comm.recv(buffer, source=source)):
            return None
        unpack(buffer, slab, tensors)
    for name, dtype, shape in header["tensors"]:
        if name not in tensors:
            tensors[name] = torch.empty(shape, dtype=_dtype(dtype))
    flat = Flat(tensors=tensors, meta=header["meta"])
    found = f"{digest(flat):x}"
    if found != header["digest"]:
        raise InternalError(
            f"the state from rank {source} has digest {found} here and {header['digest']} there: bytes changed on the way"
        )
    return flat


def _send_all(comm: Comm, buffer: torch.Tensor, receivers: Sequence[int]) -> list[Pending]:
    return [comm.send(buffer, to=rank) for rank in receivers]


def entries_of(tensors: Mapping[str, torch.Tensor]) -> list[Entry]:
    """What the other side has to know of `tensors`."""
    return [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()]


def bytes_of_entries(entries: Sequence[Entry]) -> int:
    """Of all of them together."""
    return sum(_size(e) for e in entries)


def _size(entry: Entry) -> int:
    _, dtype, shape = entry
    count = 1
    for side in shape:
        count *= side
    return count * _dtype(dtype).itemsize


def _dtype(name: str) -> torch.dtype:
    found: Any = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise InternalError(f"a peer sent a tensor of unknown type {name!r}")
    return found


def _slabs(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Both sides cut alike: whole tensors, until a slab is large enough. Empty tensors travel by name alone."""
    slab: list[Entry] = []
    size = 0
    for entry in entries:
        slab.append(entry)
        size += _size(entry)
        if size >= _SLAB_BYTES:
            yield slab
            slab, size = [], 0
    if size:
        yield slab


def pack(tensors: list[torch.Tensor], *, copy: bool = False) -> torch.Tensor:
    """The bytes of all, one after the other; of a single one they may be its own memory, unless `copy`."""
    parts = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in tensors]
    return parts[0] if len(parts) == 1 and not copy else torch.cat(parts)


def unpack(buffer: torch.Tensor, slab: Sequence[Entry], into: dict[str, torch.Tensor]) -> None:
    """Cut what `pack` put together."""
    offset = 0
    for entry in slab:
        name, dtype, shape = entry
        part = buffer[offset : offset + _size(entry)]
        # A copy: a view as another type needs its own alignment, and must not keep the whole slab alive.
        into[name] = part.clone().view(_dtype(dtype)).view(shape)
        offset += _size(entry)
