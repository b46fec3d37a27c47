"""What a rank holds of a sharded state: its live shard, shards of shapes that are no more, copies of others' shards.

A regroup asks for a list of it (`listed`), decides what is needed of whom by key, and takes the tensors (`sources`).
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll.workers.buddies import Holding, Place
from atoll.workers.torch_copies import IN_HAND, Copies, Shadow
from atoll.workers.torch_moves import Held
from atoll.workers.torch_shard_plans import boxed, header
from atoll.workers.torch_shards import Shards, Spec
from atoll.workers.torch_snapshots import Own, Snapshots

LIVE = "live"


class Holdings:
    """Of one rank. Copies follow each step (`copies`), or all are taken each `every` steps (`snapshots`)."""

    def __init__(self, every: int) -> None:
        self.copies = Copies()
        self.snapshots = Snapshots(every) if every > 1 else None
        self._older: dict[str, Own] = {}
        self._was_live = ""

    def retire(self, own: Own) -> None:
        """The model is built anew; what it held is kept until a step is committed without it."""
        self._was_live = f"older-{len(self._older)}"
        self._older[self._was_live] = own

    def listed(self, step: int, live: Holding | None) -> tuple[Holding, ...]:
        """All that may be needed where the newest state is that after `step`."""
        kept = self.snapshots.own() if self.snapshots is not None else {}
        owned = [(key, own) for key, own in self._older.items() if own.step == step] + list(kept.items())
        held = [
            Holding(
                key=key, size=o.place.size, index=o.place.index, step=o.step, tag=o.shards.tag, line=o.line
            )
            for key, o in owned
        ]  # fmt: skip
        held += [
            Holding(key=key, size=s.size, index=s.index, step=s.step, copy=True, tag=s.tag, line=s.line)
            for key, s in self._shadows().items()
            if s.step == step or self.snapshots is not None
        ]
        return tuple([live, *held] if live is not None else held)

    def told(self, key: str, live: Shards | None) -> bytes:
        """What a joiner has to know of holding `key` besides the values of its tensors."""
        shards = live if key == LIVE and live is not None else self._owned()[self._retired(key)].shards
        return header(shards.specs, shards.flat.meta)

    def sources(self, specs: Mapping[str, Spec], live: Shards | None, place: Place | None) -> dict[str, Held]:
        """All that this rank holds, by key, with the boxes of what it is."""
        found: dict[str, Held] = {}
        if live is not None and place is not None:
            found[LIVE] = boxed(live.flat.tensors, specs, place.size, place.index)
        for key, own in self._owned().items():
            found[key] = boxed(own.shards.flat.tensors, specs, own.place.size, own.place.index)
            if key == self._was_live and live is None:
                found[LIVE] = found[key]
        for key, shadow in self._shadows().items():
            found[key] = boxed(shadow.tensors(), specs, shadow.size, shadow.index)
        return found

    def follows(self, held: Holding) -> bool:
        """Whether a copy that a member told of can go on as its owner does from here on."""
        return held.key == IN_HAND or self.snapshots is not None

    def collect(self) -> None:
        """The epoch has ended."""
        if self.snapshots is not None:
            self.snapshots.collect()

    def settle(self, step: int) -> None:
        """`step` is the last that was committed."""
        if self.copies.settle(step) if self.snapshots is None else self.snapshots.settle(step):
            self._older.clear()

    def _shadows(self) -> dict[str, Shadow]:
        return self.copies.shadows() if self.snapshots is None else self.snapshots.shadows()

    def _owned(self) -> dict[str, Own]:
        return self._older | (self.snapshots.own() if self.snapshots is not None else {})

    def _retired(self, key: str) -> str:
        """The key of an older holding; what was told as live may have become one since."""
        return self._was_live if key == LIVE else key
