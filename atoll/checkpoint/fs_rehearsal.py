"""A save of a single byte that never leaves this process: it has all libraries loaded before the first real save needs them.

Loading them takes some fifteen MiB and a good part of a second with the interpreter's lock, which is better spent while a
trainer starts than beside its first save.
"""

from __future__ import annotations

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.commit import Judgement, Told, judge
from atoll.checkpoint.fs_extents import ExtentFile, extents_bytes
from atoll.checkpoint.image import extents
from atoll.checkpoint.logical import Held, Logical, RankLayout
from atoll.checkpoint.manifest import BLOCK_BYTES, Segment, Table, Word, packed_sums, seal, unseal
from atoll.checkpoint.sharing import Save, Sharing


def rehearse() -> Judgement:
    """From a layout to a commit record, without storage."""
    one = Logical("byte", "uint8", (1,))
    layout = RankLayout(rank=0, node="", logicals=(one,), held=(Held(one.name, whole(one.shape), (0,)),))
    save, sharing = Save(run="rehearsal", step=0, epoch=0, size=1), Sharing([layout])
    duty = sharing.image(save, 0).duties[0]
    table = extents_bytes(extents(duty, 0))
    segments = tuple(
        Segment(rank=0, file=run.file, begin=0, bytes=run.bytes, block_bytes=BLOCK_BYTES, sums=packed_sums([0]))
        for run in duty.runs
    )
    word = Word(
        run=save.run,
        step=save.step,
        epoch=save.epoch,
        rank=0,
        size=save.size,
        by=0,
        segments=segments,
        table=Table(file=f"{save.stem(0)}.arrow", bytes=len(table), xxh3=""),
        logicals=(one,),
        state=sharing.state,
        writers=sharing.writers,
        wrote={f"{p.logical.name}{p.box}": f"{0:016x}" for p in duty.places},
        tree={"byte": {"$tensor": "byte"}},
    )
    told = Told(unseal(Word, seal(word), "the rehearsal"), ExtentFile(table).all())
    return judge([told], size=1, held={run.file: run.bytes for run in duty.runs}, now=0.0, gone=frozenset())
