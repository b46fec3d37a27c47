"""Which old checkpoints go, and when it is safe.

Only behind a newer step that is committed and was just read back whole; only those of the same run, since a shared
folder may hold what another run resumes from; never one that someone is reading. Leftovers of saves that never were
committed go with them.

A lower step is no older save: one that waits for a slow part may be decided after the next, and a run that went back to
copies in memory saves steps anew that lie below what it committed before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.retention import Retention


def retain(
    store: Store,
    *,
    run: str,
    keep: Retention,
    newest: int,
    now: float,
    verify: Callable[[int], str] | None = None,
    pending: Collection[int] = (),
) -> str:
    """Delete what `keep` does not keep of `run` up to `newest`. Returns what is wrong with `newest`; then nothing went.

    `verify` reads a step back and says what is wrong with it; by default it is done here. At `pending` steps saves are
    under way: nothing goes there, nor anything of a later epoch than `newest` is of.
    """
    mine = [s for s in store.list() if s.run == run and s.step <= newest]
    epoch = max((s.epoch for s in mine if s.step == newest), default=-1)
    steps = [(s.step, s.at) for s in mine]
    surplus = [step for step in keep.surplus(steps, now) if step not in pending]
    others = [*store.uncommitted_steps(), *(step for step, _ in steps if step not in surplus)]
    littered = [s for s in others if s < newest and s not in pending and store.strays(s, run, until=epoch)]
    if not surplus and not littered:
        return ""
    damage = verify(newest) if verify is not None else next(iter(store.verify(newest).problems), "")
    if damage:
        return damage
    for step in surplus:
        if not store.is_saved_anew(step, run, after=epoch):  # a run that went back: the next commit sees to it
            store.delete(step)
    for step in littered:
        store.sweep(step, run, until=epoch)
    return ""
