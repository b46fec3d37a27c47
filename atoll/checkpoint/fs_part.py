"""One rank's part of one save on its way to storage: what was staged of it, and what its I/O process is asked to write.

The part has a duty of the rank's own and one for each rank that it stands by for. A word says of each what was written,
or why nothing was; that of the own duty also says for whom this rank stands by, and the digests of what it holds for them.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.checkpoint.fs_committer import Handle
from atoll.checkpoint.fs_extents import extents_bytes
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.fs_writer_process import Job, Summed
from atoll.checkpoint.image import Duty, Image, Place, extents
from atoll.checkpoint.manifest import Word, unseal
from atoll.checkpoint.sharing import Save, Sharing
from atoll.checkpoint.torch_staging import Staging
from atoll.errors import CheckpointError


@dataclass(slots=True, eq=False)
class Part:
    """A save on its way through the threads of one rank. `problem`: why nothing of it will be written."""

    handle: Handle
    save: Save
    sharing: Sharing | None = None
    staging: Staging | None = None
    slab: Slab | None = None
    image: Image | None = None
    tree: dict[str, Any] | None = None
    config: str = ""
    problem: str = ""

    @property
    def stands_by(self) -> bool:
        """Whether others may need what is staged."""
        return self.image is not None and len(self.image.duties) > 1 and not self.problem

    def word_name(self, rank: int) -> str:
        """The file of the word about what is written for `rank`."""
        return f"{self.save.stem(rank, self.handle.rank)}.json"

    def job(self, directory: Path, duty: Duty | None = None) -> tuple[Job, Slab]:
        """What to write for a duty, its own unless given, and out of which slab. Raises `CheckpointError`."""
        if self.image is None or self.sharing is None or self.slab is None:
            raise CheckpointError("nothing was staged")
        own, *others = self.image.duties
        duty, others = (own, others) if duty is None else (duty, [])
        rank = self.handle.rank
        found = Job(
            directory=str(directory),
            stem=self.save.stem(duty.rank, rank),
            runs=duty.runs,
            wrote=tuple(_summed(p) for p in duty.places),
            held=tuple(_summed(p) for other in others for p in other.places),
            table=base64.b64encode(extents_bytes(extents(duty, rank))).decode(),
            word=self._word(self.sharing, self.image, duty.rank, tuple(d.rank for d in others)),
        )
        return found, self.slab

    def _word(self, sharing: Sharing, image: Image, for_rank: int, standby: tuple[int, ...]) -> Word:
        shared, rank = sharing.shared(self.save), self.handle.rank
        mine = {p.logical.name for p in image.places()}
        mine |= {one.name for one in sharing.layouts[rank].logicals if not one.count}
        gives_tree = 0 in (for_rank, rank) or sharing.layouts[rank].logicals != sharing.layouts[0].logicals
        return Word(
            run=self.save.run,
            step=self.save.step,
            epoch=self.save.epoch,
            rank=for_rank,
            size=self.save.size,
            by=rank,
            logicals=tuple(sharing.logicals[name] for name in sorted(mine)),
            state=sharing.state,
            writers=sharing.writers,
            standby=standby,
            tree=self.tree if gives_tree else None,
            weights=shared.file if shared is not None else "",
            export=sharing.export,
            beside=sharing.beside(self.save, self.config) if 0 in (for_rank, rank) else {},
        )

    def refusal(self, rank: int, problem: str) -> Word:
        """That nothing will be written here for `rank`, and why."""
        return Word(
            run=self.save.run,
            step=self.save.step,
            epoch=self.save.epoch,
            rank=rank,
            size=self.save.size,
            by=self.handle.rank,
            problem=problem,
        )

    def lacking(self, directory: Path) -> str:
        """Why not all of this rank's own duty is with others that said on storage that they can write it, or nothing."""
        if self.sharing is None:
            return "nothing was staged"
        rank, assignment = self.handle.rank, self.sharing.assignment
        left, found = set(assignment.own[rank]), False
        for other, boxes in enumerate(assignment.second):
            if other == rank or (left.isdisjoint(boxes) if left else found):
                continue
            with suppress(OSError, CheckpointError):
                path = directory / f"{self.save.stem(other)}.json"
                if rank in unseal(Word, path.read_bytes(), str(path)).standby:
                    left, found = left.difference(boxes), True
        if not found:
            return "no other rank holds what this one wrote"
        return f"no other rank holds {len(left)} of the boxes that this one wrote" if left else ""


def _summed(place: Place) -> Summed:
    return Summed(logical=place.logical, box=place.box, at=place.at)
