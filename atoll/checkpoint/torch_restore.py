"""The newest state that can be had whole, from the cheapest tier that has it.

Steps are tried from the newest on. Of each, every block comes from the first of memory, the step's own folder and the
remote store where it is what was written: so a flipped bit costs one block from the next tier, and a lost disk all of
them. Each copy that was wrong is told, once, with tensor, rank and file. Only where some block is whole nowhere does an
older step take its place; the newer ones are then set aside, so that the same steps can be saved anew and nobody takes
up what the run has left.

Damage is what cannot pass: a wrong checksum, a short or missing file. A copy that could not be asked (the store sheds
load, a disk gives an error, a folder is not mounted) may be whole; then the same step is looked for elsewhere, and where
it is nowhere else, that is raised and nothing is set aside. Likewise a record of a format that only a newer build knows is
whole: that is raised at once, for whoever goes back behind it loses what that build trained.

A record in doubt (the run went back behind it, since a member's weights were corrupt) counts only where no other is whole;
else it is set aside, too. Its epoch decides, so the same step saved anew is not in doubt.

Nothing there at all is an answer; a store that cannot be asked is none, and neither is a run whose steps are all damaged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from atoll.checkpoint import format1
from atoll.checkpoint.arrow_remote import RemoteCopy, RemoteError, RemoteRecord, epoch_of
from atoll.checkpoint.fs_decisions import counting
from atoll.checkpoint.fs_files import reading
from atoll.checkpoint.fs_read import Reading, opened
from atoll.checkpoint.fs_sources import Folder, Source, Unasked, failed, firsts
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.fs_uploader import Destination, record_name
from atoll.checkpoint.manifest import CommitRecord, NewerFormat, run_tag
from atoll.checkpoint.torch_read import Take, read_whole
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError
from atoll.schema.checkpoints import Tier

T = TypeVar("T")

# So long a remote store may keep those waiting who have steps at hand: a listing takes a second.
_BESIDE_S = 5.0
# So long where nothing here is whole: a store that sheds load recovers within a minute.
_ALONE_S = 90.0

# (step, epoch) of a save, and what is left of it in memory.
InMemory = tuple[int, int, Source]
# Gets step, tier and words for each copy that was not what was written.
Damaged = Callable[[int, Tier, str], None]
# Whether a save, by step and epoch, is one that the run has gone back behind.
Doubted = Callable[[int, int], bool]


def none_doubted(_step: int, _epoch: int) -> bool:
    """The run never went back."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """One record of a step, and where its blocks may come from. `local`: the record lies in the step's own folder."""

    record: CommitRecord | format1.CommitRecord
    sources: tuple[Source, ...]
    local: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """Which records of a step are left behind: the one here, and the one of that name in the remote store."""

    step: int
    local: bool
    remote: str = ""


class Restore:
    """The steps of one run, wherever copies of them lie."""

    def __init__(
        self,
        store: Store,
        *,
        run: str,
        damaged: Damaged,
        to: Destination | None = None,
        memory: Sequence[InMemory] = (),
        doubted: Doubted = none_doubted,
        take: Take = read_whole,
    ) -> None:
        self._take = take
        self._store, self._run, self._to, self._memory = store, run, to, memory
        self._damaged, self._doubted = damaged, doubted
        # Which epoch wrote what was read.
        self.epoch = 0
        self._told: set[tuple[int, Tier]] = set()
        self._words: dict[int, str] = {}
        self._lock = threading.Lock()

    def newest(self) -> Flat | None:
        """The newest state that is whole; None where there is none. Raises `CheckpointError` where all are damaged.

        Raises `Unasked` where a newer copy than all that are whole could not be asked: going back waits for an answer.
        Raises `NewerFormat` where a newer step than all that are whole is of a format that this build does not know.
        """
        asked = _Asked(self._there)
        try:
            mine = self._mine()
            # Where all is here a store that hangs holds nobody up; where it is not, all depends on the store.
            try:
                return self._newest(mine, *asked.within(_BESIDE_S if mine else _ALONE_S))
            except Unasked:
                if asked.done:
                    raise
                return self._newest(mine, *asked.within(_ALONE_S))
        finally:
            asked.stop.set()

    def _newest(self, mine: Sequence[int], there: dict[int, RemoteRecord], unasked: str) -> Flat | None:
        spoilt: list[_Left] = []
        doubted: list[_Left] = []
        first: CheckpointError | None = None
        for in_doubt in (False, True):
            for step in sorted({*mine, *there}, reverse=True):
                parts = self._parts(step, there.get(step), in_doubt=in_doubt)
                if parts is None:
                    continue
                doubted += [parts] if in_doubt else []
                try:
                    found = self._step(step, there.get(step), in_doubt=in_doubt)
                except (Unasked, NewerFormat):
                    raise
                except CheckpointError as error:
                    if unasked:
                        raise Unasked(f"{unasked}; and {error}") from None
                    first = first or error
                    spoilt.append(parts)
                else:
                    self._set_aside(spoilt if in_doubt else [*spoilt, *self._all_doubted(mine, there)])
                    return found
        if unasked:
            raise Unasked(unasked)
        if first is not None:
            raise first
        return None

    # -- what is there -------------------------------------------------------------------------------------------------

    def _mine(self) -> list[int]:
        """Steps of this run in its folder, also those whose record cannot be read."""
        steps = []
        for step in self._store.committed_steps():
            try:
                mine = self._store.record(step).run == self._run
            except NewerFormat as error:
                mine = error.run == self._run
            except CheckpointError:
                mine = any(self._store.step_directory(step).glob(f"*-{run_tag(self._run)}*"))
            steps += [step] if mine else []
        return steps

    def _there(self, stop: threading.Event) -> tuple[dict[int, RemoteRecord], str]:
        """The records that count in the remote store, and why it cannot be asked."""
        if self._to is None:
            return {}, ""
        to = self._to
        found: dict[int, RemoteRecord] = {}
        try:
            for step in to.backoff.again(to.remote.steps, RemoteError, stop):
                records = {r.name: r for r in to.backoff.again(lambda s=step: to.remote.records(s), RemoteError, stop)}  # type: ignore[misc]
                name, problem = counting(to.decisions, step, list(records))
                if problem:
                    self._tell(step, Tier.REMOTE, problem)
                found |= {step: records[name]} if name else {}
        except (CheckpointError, OSError) as error:
            return found, str(error)
        return found, ""

    def _parts(self, step: int, remote: RemoteRecord | None, *, in_doubt: bool) -> _Left | None:
        """Which records of a step are in doubt, or are not. One that cannot be read is of no epoch: it is not."""
        local = False
        if self._store.is_committed(step):
            try:
                local = self._doubted(step, self._store.record(step).epoch) is in_doubt
            except CheckpointError:
                local = not in_doubt
        far = remote if remote is not None and self._doubted(step, remote.epoch) is in_doubt else None
        return _Left(step=step, local=local, remote=far.name if far is not None else "") if local or far else None

    def _all_doubted(self, mine: Sequence[int], there: dict[int, RemoteRecord]) -> list[_Left]:
        parts = (self._parts(step, there.get(step), in_doubt=True) for step in {*mine, *there})
        found = {one.step: one for one in parts if one is not None}
        # The store need not have answered: what was decided on is known without it.
        for step in self._to.decisions.steps() if self._to is not None else ():
            name = self._to.decisions.decided(step) if self._to is not None else ""
            epoch = epoch_of(name)
            if epoch is not None and self._doubted(step, epoch):
                found[step] = replace(found.get(step, _Left(step=step, local=False)), remote=name)
        return list(found.values())

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step(self, step: int, remote: RemoteRecord | None, *, in_doubt: bool) -> Flat:
        problem, unasked = "", ""
        for each in self._tries(step, remote):
            if isinstance(each, Unasked):
                unasked = unasked or str(each)
            elif self._doubted(step, each.record.epoch) is in_doubt:
                try:
                    return self._read(step, each)
                except Unasked as error:
                    unasked = unasked or str(error)
                except CheckpointError as error:
                    problem = f"step {step}: {error}"
        if unasked:
            raise Unasked(unasked)
        raise CheckpointError(problem or f"step {step}: {self._words.get(step, 'it has no record')}")

    def _tries(self, step: int, remote: RemoteRecord | None) -> Iterator[_Try | Unasked]:
        """The record here with all copies that are of it; then that of the remote store, where it is another one."""
        same = False
        path = self._store.step_directory(step) / COMMIT
        try:
            record = self._store.record(step)
            sealed = _asking(path, path.read_bytes)
        except NewerFormat:
            raise
        except Unasked as error:
            yield error
        except CheckpointError as error:
            if self._store.is_committed(step):
                self._tell(step, Tier.LOCAL, str(error))
        else:
            if isinstance(record, format1.CommitRecord):
                yield _Try(record=record, sources=(), local=True)
                return
            same = remote is not None and record_name(record, sealed) == remote
            copies = [Folder(self._store.step_directory(step)), *(self._remote_copy(step) if same else [])]
            yield _Try(record=record, sources=self._with_memory(record, copies), local=True)
        if remote is not None and not same and self._to is not None:
            yield from self._far(self._to, remote)

    def _far(self, to: Destination, remote: RemoteRecord) -> Iterator[_Try | Unasked]:
        try:
            there = to.backoff.again(lambda: to.remote.record(remote), RemoteError)
        except NewerFormat:
            raise
        except Unasked as error:
            yield error
        except CheckpointError as error:
            self._tell(remote.step, Tier.REMOTE, str(error))
        else:
            yield _Try(record=there, sources=self._with_memory(there, self._remote_copy(remote.step)), local=False)

    def _remote_copy(self, step: int) -> list[Source]:
        return [RemoteCopy(self._to.remote, step, self._to.backoff)] if self._to is not None else []

    def _with_memory(self, record: CommitRecord, copies: Sequence[Source]) -> tuple[Source, ...]:
        here = [source for step, epoch, source in self._memory if (step, epoch) == (record.step, record.epoch)]
        return tuple(firsts([*here, *copies]))

    def _read(self, step: int, each: _Try) -> Flat:
        record, self.epoch = each.record, each.record.epoch
        if isinstance(record, format1.CommitRecord):
            return self._store.open(step)
        path = self._store.step_directory(step) / COMMIT

        def read() -> Flat:
            with reading(path) if each.local else nullcontext():
                return self._take(self._opened(record, each.sources))

        return _asking(path, read)

    def opened(self, record: CommitRecord, tiers: Collection[Tier]) -> Reading:
        """The step that another rank has chosen: from these tiers, and from memory here. Raises `CheckpointError`."""
        copies: list[Source] = [Folder(self._store.step_directory(record.step))] if Tier.LOCAL in tiers else []
        copies += self._remote_copy(record.step) if Tier.REMOTE in tiers else []
        return self._opened(record, self._with_memory(record, copies))

    def _opened(self, record: CommitRecord, sources: Sequence[Source]) -> Reading:
        def damaged(source: Source, problem: str) -> None:
            self._tell(record.step, source.tier, problem)

        return opened(self._store.step_directory(record.step), record, sources, damaged)

    # -- what is left behind -------------------------------------------------------------------------------------------

    def _set_aside(self, spoilt: Sequence[_Left]) -> None:
        for one in spoilt:
            if self._to is not None and one.remote:
                self._to.decisions.withdraw(one.step, one.remote)
            if one.local:
                self._store.set_aside(one.step)

    def _tell(self, step: int, tier: Tier, problem: str) -> None:
        with self._lock:
            new = (step, tier) not in self._told
            self._told.add((step, tier))
            self._words[step] = problem
        if new:
            self._damaged(step, tier, problem)


class _Asked:
    """What a remote store has, asked beside everything else: it may take for ever."""

    def __init__(self, ask: Callable[[threading.Event], tuple[dict[int, RemoteRecord], str]]) -> None:
        self.stop = threading.Event()
        self._answer: tuple[dict[int, RemoteRecord], str] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,), name="atoll-checkpoint-ask", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has answered."""
        return not self._thread.is_alive()

    def within(self, timeout_s: float) -> tuple[dict[int, RemoteRecord], str]:
        """The answer; that there is none, after so long."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return self._answer or ({}, f"the remote store gave no answer within {timeout_s:.0f} s")

    def _run(self, ask: Callable[[threading.Event], tuple[dict[int, RemoteRecord], str]]) -> None:
        try:
            self._answer = ask(self.stop)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error


def _asking(path: Path, act: Callable[[], T]) -> T:
    """What `act` returns; an error of the disk says whether something is gone, or could not be asked."""
    try:
        return act()
    except OSError as error:
        raise failed(path, error) from None
