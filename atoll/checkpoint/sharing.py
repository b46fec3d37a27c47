"""Who writes what of one save, and who stands by for whom: what follows from the layouts of all ranks, for one of them.

A rank stages its own part and those boxes of others for which it is the second holder. What it stages for others is
drawn as the very files that it would write in their place. These are its own: a rank that is taken for lost may write its
ranges of the shared file long after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from atoll.checkpoint.assigning import Assignment, assign
from atoll.checkpoint.boxes import Box
from atoll.checkpoint.hf_index import INDEX, index_text
from atoll.checkpoint.image import Image, Piece, Weights, draw, is_run, shared_weights
from atoll.checkpoint.logical import Logical, RankLayout
from atoll.checkpoint.manifest import pack_stem, run_tag, state_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """The names of one save."""

    run: str
    step: int
    epoch: int
    size: int

    def stem(self, rank: int, by: int | None = None) -> str:
        """What the files of a rank's part begin with."""
        return pack_stem(run=self.run, epoch=self.epoch, rank=rank, size=self.size, by=by)

    def weights(self, module: str) -> str:
        """The file of weights that all ranks fill which name this module: others would put other tensors there."""
        return f"model-e{self.epoch}-{run_tag(self.run)}-{run_tag(module)}.safetensors"


class Sharing:
    """One division of a state. Made once for the layouts of an epoch, and used for each of its saves."""

    def __init__(self, layouts: Sequence[RankLayout], *, weights: str = "", redundancy: int = 1) -> None:
        self.layouts = tuple(layouts)
        self._prefix = weights
        self.assignment: Assignment = assign(self.layouts, redundancy=redundancy)
        self._images: dict[tuple[str, int], Image] = {}

    @cached_property
    def logicals(self) -> Mapping[str, Logical]:
        """All tensors of the state."""
        return {one.name: one for layout in self.layouts for one in layout.logicals}

    @cached_property
    def state(self) -> str:
        """As in a word."""
        return state_sum(self.logicals.values())

    @cached_property
    def writers(self) -> tuple[int, ...]:
        """Ranks without which a save is not whole: those that own anything, and rank 0 for the tree."""
        owners = {rank for rank, boxes in enumerate(self.assignment.own) if boxes}
        return tuple(sorted(owners | {0}))

    @cached_property
    def export(self) -> str:
        """Why there can be no shared file of weights; empty where there is one."""
        mine = [one for one in self.logicals.values() if self._prefix and one.name.startswith(f"{self._prefix}.")]
        if not mine:
            return "no module is managed under a name of its own"
        for boxes in self.assignment.own:
            for name, box in boxes:
                if name.startswith(f"{self._prefix}.") and not is_run(self.logicals[name], box):
                    return f"{name}{box} is no range of rows; export makes the file"
        return ""

    def duties(self, rank: int) -> list[tuple[int, list[Piece]]]:
        """What `rank` writes, and after it what it can write for whom."""
        own = [(self.logicals[name], box) for name, box in self.assignment.own[rank]]
        found = [(rank, own)]
        for other, pieces in sorted(self._standby(rank).items()):
            found.append((other, pieces))
        return found

    def _standby(self, rank: int) -> dict[int, list[Piece]]:
        standby: dict[int, list[Piece]] = {}
        for name, box in self.assignment.second[rank]:
            standby.setdefault(self._owner[name, box], []).append((self.logicals[name], box))
        if rank == 1 and not self.assignment.own[0]:
            standby.setdefault(0, [])  # rank 0 owns nothing but the tree, and someone has to have that, too
        return standby

    @cached_property
    def _owner(self) -> dict[tuple[str, Box], int]:
        return {piece: rank for rank, boxes in enumerate(self.assignment.own) for piece in boxes}

    def shared(self, save: Save) -> Weights | None:
        """The shared file of weights of a save, where it has one."""
        if self.export:
            return None
        return shared_weights(save.weights(self._prefix), self.logicals.values(), self._prefix)

    def image(self, save: Save, rank: int) -> Image:
        """What `rank` stages: its own part first. All saves of an epoch have the same names, so they share one."""
        key = save.stem(rank), rank
        if key not in self._images:
            duties = [(r, f"{save.stem(r, rank)}.safetensors", pieces) for r, pieces in self.duties(rank)]
            self._images[key] = draw(duties, self.shared(save))
        return self._images[key]

    def beside(self, save: Save, config: str) -> dict[str, str]:
        """What makes the folder one for Hugging Face's readers: the index, and the model's own configuration."""
        shared = self.shared(save)
        if shared is None:
            return {}
        names = {name.removeprefix(f"{self._prefix}."): shared.file for name in sorted(shared.begins)}
        return {INDEX: index_text(names, shared.total - len(shared.header))} | (
            {"config.json": config} if config else {}
        )
