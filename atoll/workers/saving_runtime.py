"""When a session saves and from where it resumes; how is the checkpoint package's.

The state is handed over at the end of a committed step's body, as references to live tensors but for what the next
forward may change (buffers, schedulers), which is copied. The writer stages the rest while the next step computes;
`before_update` is the moment from which it must no longer be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.checkpoint.arrow_remote import Remote
from atoll.checkpoint.fs_claims import Claim, Overtaken
from atoll.checkpoint.fs_decisions import LinkDecisions
from atoll.checkpoint.fs_read import Reading
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Destination
from atoll.checkpoint.logical import RankLayout
from atoll.checkpoint.manifest import CommitRecord
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_flat import FlatState, replicated
from atoll.checkpoint.torch_read import Take, read_whole
from atoll.checkpoint.torch_restore import Restore, none_doubted
from atoll.checkpoint.torch_state import Flat, flatten, unflatten
from atoll.checkpoint.writer import Handle, Writer
from atoll.clock import SystemClock
from atoll.errors import BatchError, CheckpointError
from atoll.schema.checkpoints import Tier, TierState
from atoll.schema.ids import Step, TrainerId
from atoll.schema.messages import CheckpointCopied, CheckpointIntervalChosen
from atoll.workers.decisions_runtime import JournalDecisions
from atoll.workers.host import Host
from atoll.workers.pacing import Pacing
from atoll.workers.peers import Comm
from atoll.workers.samples import Plan
from atoll.workers.torch_managed import RESERVED, Managed

# A slow disk may take this long to make the last checkpoint durable; the run's result does not wait longer.
_FINISH_S = 120.0
_STEP_PREFIX = "step-"
# The rank of a member that takes no part in the saves of its epoch.
_NO_WRITER = -1


# What this member holds of a state that is spread over all, and the layouts of all members.
Portion = tuple[FlatState, tuple[RankLayout, ...]]
# None where their epoch has ended.
PortionOf = Callable[[Comm], Portion | None]


class Saving:
    """The checkpoints of one trainer."""

    def __init__(self, host: Host) -> None:
        spec = host.identity.spec
        self._pacing = Pacing(spec.checkpoint_every)
        self._clock = SystemClock()
        self._last: Handle | None = None
        self._resume = spec.resume
        self._requested = False
        self._rank = self._epoch = 0
        self._host = host
        self._directory = Path(spec.checkpoint_dir) if spec.checkpoint_dir else host.identity.run_dir / "checkpoints"
        self._writer: Writer | None = None
        self._members: dict[int, tuple[TrainerId, ...]] = {}
        self._writers: dict[int, tuple[int, ...]] = {}
        self._here: frozenset[TrainerId] = frozenset()
        self._read: tuple[int, int] | None = None
        self._decisions = JournalDecisions(host, LinkDecisions(self._directory, run=host.identity.run))

    def request(self) -> None:
        """Save at the end of the step in hand, whatever its number."""
        self._requested = True

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether a checkpoint of `step`, which was tried in `epoch`, is wanted. Asked once for each step."""
        self._measure()
        return self._requested or self._pacing.is_due(step, epoch)

    def proposal(self, comm: Comm, step: int) -> int | None:
        """What goes with this member's vote for `step`: rank 0 says how often to save, where that is for it to choose."""
        if not self._pacing.chooses or comm.rank != 0:
            return None
        chosen = self._pacing.propose()
        if chosen is not None:
            identity = self._host.identity
            self._host.tell(
                CheckpointIntervalChosen(
                    trainer=identity.trainer, step=Step(step), every=chosen.every, reason=chosen.text()
                )
            )
        return self._pacing.current

    def heard(self, epoch: int, step: int, ballots: Sequence[Mapping[str, Any]]) -> None:
        """The votes of `step` in `epoch`, in rank order."""
        if self._pacing.chooses:
            self._pacing.heard(epoch, step, int(ballots[0].get("every", 0)))

    def _measure(self) -> None:
        last = self._last
        self._pacing.passed(self._clock.monotonic(), saving=last is not None)
        if last is not None and last.ended.is_set():
            self._pacing.saved(last.took)
            self._last = None

    def save(self, managed: Managed, plan: Plan, comm: Comm, *, step: int, holding: PortionOf | None = None) -> None:
        """Begin a checkpoint of what `managed` holds after `step`, which the members of `comm` computed.

        Where each member holds a part only, `holding` says which.
        """
        self._requested = False
        writers = self._writers[comm.epoch]
        if comm.rank not in writers:
            return
        if self._writer is None:
            identity = self._host.identity
            self._writer = Writer(
                self._directory,
                run=identity.run,
                trainer=identity.trainer,
                tell=self._host.tell,
                keep=Retention.of(identity.spec),
                to=self._destination(),
            )
        rank, size = writers.index(comm.rank), len(writers)
        if holding is None:
            nodes = [nodes_of(comm)[r] for r in writers]
            found: Portion | None = replicated(flat_state(managed.frozen(), plan, step), rank, nodes)
        else:
            found = holding(comm)
        if found is not None:
            name, config = managed.readable()
            state, layouts = found
            self._last = self._writer.save(
                state, layouts, step=step, epoch=comm.epoch, rank=rank, weights=name, config=config
            )
        else:
            why = "skipped: the members changed before the shards were copied"
            self._writer.skip(step=step, epoch=comm.epoch, rank=rank, size=size, problem=why)
        # A regroup may have decided the step: then its members are not those of now.
        self._writer.regrouped(rank=self._rank, epoch=self._epoch, gone=self._gone())

    def _destination(self) -> Destination | None:
        """Where copies go, where the job names such a place."""
        identity = self._host.identity
        uri = identity.spec.checkpoint_remote
        if uri is None:
            return None
        return Destination(
            remote=Remote.at(uri, run=identity.run),
            decisions=self._decisions,
            keep=Retention.of(identity.spec),
        )

    def before_update(self) -> None:
        """Tensors are about to change."""
        if self._writer is not None:
            self._writer.before_update()

    def regrouped(self, comm: Comm, learners: frozenset[int] = frozenset()) -> None:
        """The members changed: who commits may have, too.

        Whoever begins an epoch as a learner writes no part of its saves, so that their parts are numbered alike in all
        of it.
        """
        writers = self._writers[comm.epoch] = tuple(r for r in range(comm.size) if r not in learners)
        self._members[comm.epoch] = tuple(comm.members[r].trainer for r in writers)
        self._rank, self._epoch = writers.index(comm.rank) if comm.rank in writers else _NO_WRITER, comm.epoch
        here = frozenset(m.trainer for m in comm.members)
        self._pacing.regrouped(len(self._here - here))
        self._here = here
        if self._writer is not None:
            self._writer.regrouped(rank=self._rank, epoch=comm.epoch, gone=self._gone())

    def _gone(self) -> list[tuple[int, int]]:
        """(epoch, rank) of all who are no members any more. Trainers never come back."""
        return [(e, r) for e, members in self._members.items() for r, t in enumerate(members) if t not in self._here]

    def finish(self) -> None:
        """Wait until what was begun is durable or refused."""
        if self._writer is not None:
            self._writer.finish(_FINISH_S)

    def close(self) -> None:
        """Let go of the writer without waiting for what it has begun."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish(0.0)

    def restore(self, managed: Managed, plan: Plan, *, epoch: int) -> int:
        """Nobody in `epoch` holds the run's state: fill `managed` from a checkpoint, if there is one. Returns the step."""
        found = self.found(epoch=epoch)
        self.before_update()
        return load_flat(found, managed, plan) if found is not None else 0

    def found(self, *, epoch: int, take: Take = read_whole) -> Flat | None:
        """The state to begin with in `epoch`, if a checkpoint holds it; `take` has it out of a step that is open.

        The run's own newest one comes first (all members were lost at once), from wherever it can be had whole, then the
        one that it was told to resume.
        """
        run, store = self._host.identity.run, Store(self._directory)
        if store.directory.exists():
            # Before anything is read: what a leader of an epoch that is over would still delete stays from here on.
            claim = Claim(self._directory, run=run, epoch=epoch)
            try:
                claim.hold()
            except Overtaken as error:
                raise CheckpointError(str(error)) from None
            store = store.under(claim)
        # Nobody writes now: what lies there whole and lacks only its record is a checkpoint, too.
        store.complete(run, now=SystemClock().now())
        restore = self._restore(store, take)
        found = restore.newest()
        if found is not None:
            self._read = (epoch, restore.epoch)
            return found
        return self._resumed(Path(self._resume), take) if self._resume else None

    def opened(self, directory: Path, record: CommitRecord, tiers: Collection[Tier]) -> Reading:
        """The step that another rank has found, with what is in memory here. Raises `CheckpointError`."""
        return self._restore(Store(directory), read_whole).opened(record, tiers)

    def _restore(self, store: Store, take: Take) -> Restore:
        rewound = self._host.identity.rewound
        return Restore(
            store,
            run=self._host.identity.run,
            damaged=self._damaged,
            to=self._destination(),
            memory=self._writer.memory() if self._writer is not None else (),
            doubted=rewound.spoils if rewound is not None else none_doubted,
            take=take,
        )

    def line(self, epoch: int) -> int | None:
        """Which epoch of this run wrote the checkpoint that was read here to begin `epoch`, if one was."""
        return self._read[1] if self._read is not None and self._read[0] == epoch else None

    def _damaged(self, step: int, tier: Tier, problem: str) -> None:
        said = CheckpointCopied(
            trainer=self._host.identity.trainer, step=Step(step), tier=tier, state=TierState.DAMAGED, detail=problem
        )
        self._host.tell(said)

    def _resumed(self, path: Path, take: Take) -> Flat:
        if not path.is_dir():
            raise CheckpointError(
                f"resume={str(path)!r} is no directory; give a run's checkpoints folder or one of its steps"
            )
        name = path.name.removeprefix(_STEP_PREFIX)
        one = path.name != name and name.isdigit()
        return Store(path.parent if one else path).open(int(name) if one else None, take)


def nodes_of(comm: Comm) -> list[str]:
    """The host of each member."""
    return [str(member.node) for member in comm.members]


def flat_state(state: dict[str, Any], plan: Plan, step: int) -> Flat:
    """The state with the session's own entry: where the data stands."""
    return flatten(with_standing(state, plan, step))


def with_standing(state: dict[str, Any], plan: Plan, step: int) -> dict[str, Any]:
    """The state with the session's own entry."""
    own = {"step": step, "seed": plan.seed, "samples": plan.size, "global_batch": plan.global_batch}
    return {**state, RESERVED: own}


def load_flat(flat: Flat, managed: Managed, plan: Plan) -> int:
    """Fill `managed`; returns the step of the state. Refuses one of other data: its samples would not line up."""
    state = unflatten(flat)
    own = state.get(RESERVED, {})
    for key, now in (("samples", plan.size), ("global_batch", plan.global_batch), ("seed", plan.seed)):
        if own.get(key, now) != now:
            raise BatchError(
                f"the saved state was made with {key}={own[key]}, this run has {now}: samples would be lost or repeated; "
                f"use {key}={own[key]}"
            )
    managed.load(state)
    return int(own.get("step", 0))
