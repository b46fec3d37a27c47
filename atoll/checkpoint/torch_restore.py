"""The newest state that can be had whole, from the cheapest tier that has it.

Steps are tried from the newest on. Of each, every block comes from the first of memory, the step's own folder and the
remote store where it is what was written: so a flipped bit costs one block from the next tier, and a lost disk all of
them. Each copy that was wrong is told, once, with tensor, rank and file. Only where some block is whole nowhere does an
older step take its place; the newer ones are then set aside, so that the same steps can be saved anew and nobody takes
up what the run has left.

A step in doubt (the run went back behind it, since a member's weights were corrupt) counts only where no other is whole;
else it is set aside, too.

Nothing there at all is an answer; a store that cannot be asked is none, and neither is a run whose steps are all damaged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from atoll.checkpoint import format1
from atoll.checkpoint.arrow_remote import RemoteCopy, RemoteError, RemoteRecord
from atoll.checkpoint.fs_decisions import counting
from atoll.checkpoint.fs_files import reading
from atoll.checkpoint.fs_read import Reading, opened
from atoll.checkpoint.fs_sources import Folder, Source, firsts
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.fs_uploader import Destination, record_name
from atoll.checkpoint.manifest import CommitRecord, run_tag
from atoll.checkpoint.torch_read import Take, read_whole
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError
from atoll.schema.checkpoints import Tier

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
        """The newest state that is whole; None where there is none. Raises `CheckpointError` where all are damaged."""
        there, problem = self._there()
        spoilt: list[int] = []
        steps = sorted({*self._mine(), *there}, reverse=True)
        doubted = [step for step in steps if self._is_doubted(step, there.get(step))]
        for step in [*(s for s in steps if s not in doubted), *doubted]:
            try:
                found = self._step(step, there.get(step))
            except CheckpointError as error:
                problem = problem or str(error)
                spoilt.append(step)
            else:
                self._set_aside(spoilt if step in doubted else [*spoilt, *doubted], there)
                return found
        if problem:
            raise CheckpointError(problem)
        return None

    # -- what is there -------------------------------------------------------------------------------------------------

    def _mine(self) -> list[int]:
        """Steps of this run in its folder, also those whose record cannot be read."""
        steps = []
        for step in self._store.committed_steps():
            try:
                mine = self._store.record(step).run == self._run
            except CheckpointError:
                mine = any(self._store.step_directory(step).glob(f"*-{run_tag(self._run)}*"))
            steps += [step] if mine else []
        return steps

    def _there(self) -> tuple[dict[int, RemoteRecord], str]:
        """The records that count in the remote store, and why it cannot be asked."""
        if self._to is None:
            return {}, ""
        to = self._to
        found: dict[int, RemoteRecord] = {}
        try:
            for step in to.backoff.again(to.remote.steps, RemoteError):
                records = {r.name: r for r in to.backoff.again(lambda s=step: to.remote.records(s), RemoteError)}  # type: ignore[misc]
                name, problem = counting(to.decisions, step, list(records))
                if problem:
                    self._tell(step, Tier.REMOTE, problem)
                found |= {step: records[name]} if name else {}
        except CheckpointError as error:
            return found, str(error)
        return found, ""

    def _is_doubted(self, step: int, remote: RemoteRecord | None) -> bool:
        epochs = [remote.epoch] if remote is not None else []
        with suppress(CheckpointError, OSError):
            epochs.append(self._store.record(step).epoch)
        return any(self._doubted(step, epoch) for epoch in epochs)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step(self, step: int, remote: RemoteRecord | None) -> Flat:
        problem = ""
        for each in self._tries(step, remote):
            try:
                return self._read(step, each)
            except (CheckpointError, OSError) as error:
                problem = f"step {step}: {error}"
        raise CheckpointError(problem or f"step {step}: {self._words.get(step, 'it has no record')}")

    def _tries(self, step: int, remote: RemoteRecord | None) -> Iterator[_Try]:
        """The record here with all copies that are of it; then that of the remote store, where it is another one."""
        same = False
        try:
            record = self._store.record(step)
            sealed = (self._store.step_directory(step) / COMMIT).read_bytes()
        except (CheckpointError, OSError) as error:
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
            try:
                there = self._to.backoff.again(lambda: self._to.remote.record(remote), RemoteError)  # type: ignore[union-attr]
            except CheckpointError as error:
                self._tell(step, Tier.REMOTE, str(error))
            else:
                yield _Try(record=there, sources=self._with_memory(there, self._remote_copy(step)), local=False)

    def _remote_copy(self, step: int) -> list[Source]:
        return [RemoteCopy(self._to.remote, step, self._to.backoff)] if self._to is not None else []

    def _with_memory(self, record: CommitRecord, copies: Sequence[Source]) -> tuple[Source, ...]:
        here = [source for step, epoch, source in self._memory if (step, epoch) == (record.step, record.epoch)]
        return tuple(firsts([*here, *copies]))

    def _read(self, step: int, each: _Try) -> Flat:
        record, self.epoch = each.record, each.record.epoch
        if isinstance(record, format1.CommitRecord):
            return self._store.open(step)
        directory = self._store.step_directory(step)
        if not each.local:
            return self._take(self._opened(record, each.sources))
        with reading(directory / COMMIT):
            return self._take(self._opened(record, each.sources))

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

    def _set_aside(self, spoilt: Sequence[int], there: dict[int, RemoteRecord]) -> None:
        for step in spoilt:
            if self._to is not None and step in there:
                self._to.decisions.withdraw(step, there[step].name)
            self._store.set_aside(step)

    def _tell(self, step: int, tier: Tier, problem: str) -> None:
        with self._lock:
            new = (step, tier) not in self._told
            self._told.add((step, tier))
            self._words[step] = problem
        if new:
            self._damaged(step, tier, problem)
