"""The records of format 1, which is only read: one pack for each rank, whole tensors, checksums in the records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """One pack: `blocks[i]` is the xxh3_64 (hex) of bytes [i, i+1) * `block_bytes` of the file."""

    file: str
    run: str
    step: int
    epoch: int
    rank: int
    size: int
    bytes: int
    block_bytes: int
    blocks: tuple[str, ...]
    tensors: tuple[str, ...]
    tree: dict[str, Any] | None = None
    state: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A checkpoint that counts."""

    format: int
    run: str
    step: int
    epoch: int
    at: float
    packs: tuple[PackRecord, ...]
    tree: dict[str, Any]

    @property
    def files(self) -> tuple[str, ...]:
        """All that it names, words included."""
        return tuple(f for p in self.packs for f in (p.file, p.file.removesuffix(".safetensors") + ".json"))

    def size_bytes(self) -> int:
        """Bytes of all packs."""
        return sum(p.bytes for p in self.packs)
