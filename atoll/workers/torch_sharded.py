"""A model that is sharded over the members, through changes of the members (laws 3, 7, 9).

The program hands over `build(mesh)`; it is called when this member's place among the shards is known, and again when the
shape of the mesh changes. What stays is torch's process group of the mesh, whose communicator is swapped at each epoch.

At a regroup every member tells what it holds (`buddies.Standing`), and all conclude alike: the places, who must be
filled, and from whom. A loss that a spare replaces moves one shard, from its buddy's memory to the spare. Where the
number of shards changes, every member keeps what it has, builds anew, and is filled by the reshard planner. What was
held before is kept until a step is committed in the new shape, so that a loss in the middle of all this loses nothing.

With copies each k steps (`copy_every`) the newest state may be lost with one member: then all are filled with the last one
that was copied, and the session goes back to its step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.fs_pack import logical_of
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.reshard import Copy
from atoll.checkpoint.torch_flat import cut
from atoll.checkpoint.torch_state import Flat
from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.torch_backend import BACKEND, Options, ProcessGroup
from atoll.collectives.torch_subset import Subset
from atoll.errors import CheckpointError, InternalError, UserError
from atoll.schema.codec import decode_as, encode
from atoll.workers.buddies import (
    Holding,
    Place,
    Recovery,
    Standing,
    arrange,
    buddies,
    column_of,
    fallback,
    group_of,
    kept,
    needy,
    recovery,
    shard_size,
)
from atoll.workers.comparing import comparable
from atoll.workers.peers import Comm, completed
from atoll.workers.saving_runtime import Portion, nodes_of
from atoll.workers.torch_built import Build, Built, made_of
from atoll.workers.torch_copies import Shadow, Trained
from atoll.workers.torch_grains import seed_all
from atoll.workers.torch_holdings import LIVE, Holdings
from atoll.workers.torch_managed import Managed
from atoll.workers.torch_memory import memory_for
from atoll.workers.torch_moves import Held, exchange
from atoll.workers.torch_reducer import Reducer
from atoll.workers.torch_restart import EpochOver, Filled, Restart
from atoll.workers.torch_shard_access import Access, Task
from atoll.workers.torch_shard_plans import (
    boxed,
    header,
    heard,
    islands,
    planned,
    scattered,
    specs_of,
    teller,
    told_of_holes,
)
from atoll.workers.torch_sharded_reducer import ShardedReducer
from atoll.workers.torch_shards import Shards, Spec, joined, local_state
from atoll.workers.torch_snapshots import Own

DIMENSION = "shard"
_FILE = "file"


class Sharded:
    """The sharded part of one trainer's state."""

    def __init__(
        self,
        build: Build,
        asked: int | None,
        managed: Managed,
        seed: int,
        access: Access,
        *,
        copy_every: int = 1,
    ) -> None:
        self._build, self._asked, self._managed, self._seed = build, asked, managed, seed
        self._access = access
        self.built = Built()
        self.tainted = False
        self._place: Place | None = None
        self._step = self._line = 0
        self._live = False
        self._mesh: DeviceMesh | None = None
        self._held = Holdings(copy_every)
        self._comm: Comm | None = None
        self._places: tuple[Place, ...] = ()
        self._sends = self._keeps = False
        self._ward: Place | None = None
        self._tag = ""
        self._entries = 0
        self._new = False

    # -- regroup -------------------------------------------------------------------------------------------------------

    def follow(self, comm: Comm, task: Task) -> int | None:
        """Stand where all members stand: after which step. None when the epoch ended meanwhile."""
        size = shard_size(comm.size, self._asked)
        self._held.collect()
        self._held.settle(task.step)
        applying = task.applying and self._live
        if applying and (self.tainted or self._place is None or self._place.size != size or not self._entries):
            task.update_now()  # the model will be another, or have another structure, where the others' updates are done
            self._step, applying = task.step, False
        work = comm.all_gather(encode(self._standing(comm, task.step, applying=applying)))
        if not completed(work):
            return None
        standings = [decode_as(Standing, payload) for payload in work.result]
        places = arrange(standings, size, task.step)
        wanting = needy(standings, places)
        found = recovery(standings, task.step, size, [places[r].index for r in wanting]) if wanting else None
        if wanting and found is None and not task.fresh:
            # Lost with its copy, or since the last copy: nobody goes on with the newest state.
            task.give_up()
            wanting, found = tuple(range(comm.size)), fallback(standings, task.step, size)
        elif applying and comm.rank in wanting:
            task.update_now()
        elif applying:
            self._line = task.line
        self._rebuild_for(places[comm.rank])
        step: int | None = task.step
        if task.fresh or (wanting and found is None):
            step = self._restart(comm, standings, places, task.step)
        elif found is not None:
            step = found.step if self._fill(comm, standings, places, wanting, found) else None
        if step is None:
            return None
        self._place, self._step, self._live, self.tainted = places[comm.rank], step, True, False
        self._enter(comm, standings, places, step)
        return step

    def take_new(self) -> bool:
        """Whether the managed objects are others than at the last call."""
        new, self._new = self._new, False
        return new

    def _standing(self, comm: Comm, step: int, *, applying: bool) -> Standing:
        current = self._live and self._place is not None and self._step == step and not applying
        live = self._live and not self.tainted and (applying or self._step == step)
        mine = _holding(self._place, step, self._tag, self._line) if current and self._place is not None else None
        node = str(comm.members[comm.rank].node)
        return Standing(node=node, place=self._place, live=live, holdings=self._held.listed(step, mine))

    def _rebuild_for(self, place: Place) -> None:
        """Build for `place`, unless the model that is there will do. What it held is kept."""
        had = self._place
        same = had is not None and (had.size, had.index) == (place.size, place.index)
        if same and not self.tainted:
            return
        if self._live and had is not None:
            self._held.retire(Own(shards=self._shards(), place=had, step=self._step, line=self._line))
        self._live, self._place = False, None
        self._make(place)

    def _make(self, place: Place) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group(
            BACKEND, store=HashStore(), rank=place.index, world_size=place.size, pg_options=Options(adopts=True)
        )
        self._mesh = init_device_mesh("cpu", (place.size,), mesh_dim_names=(DIMENSION,))
        cast("ProcessGroup", dist.group.WORLD).divisible = False
        seed_all(self._seed, 0, 0)
        made = made_of(self._build(self._mesh))
        self.built.objects = dict(zip(self._managed.replace(tuple(self.built.objects), made), made, strict=True))
        self._new = True

    def _fill(
        self,
        comm: Comm,
        standings: Sequence[Standing],
        places: Sequence[Place],
        wanting: Sequence[int],
        found: Recovery,
    ) -> bool:
        """Put the state of those who want it together from all who hold it. False when the epoch ended."""
        telling = teller(standings, found)
        if telling is None:
            raise CheckpointError(told_of_holes(standings, found.step))
        rank, key = telling
        work = comm.all_gather(self._held.told(key, self._own_if_live()) if comm.rank == rank else b"")
        if not completed(work):
            return False
        specs, meta = heard(work.result[rank])
        copies = planned(specs, found, (rank, key), [(r, places[r]) for r in wanting], standings)
        place = places[comm.rank] if comm.rank in wanting else None
        sources = self._held.sources(specs, self._own_if_live(), self._place)
        if self._take(comm, copies, sources, specs, meta, place) is None:
            return False
        if place is not None:
            self._line = found.line
        return True

    def _take(
        self,
        comm: Comm,
        copies: Sequence[Copy],
        sources: Mapping[str, Held],
        specs: Mapping[str, Spec],
        meta: dict[str, Any],
        place: Place | None,
    ) -> int | None:
        """Carry the copies out; fill the model for `place`, if any. The step of what came; None when the epoch ended."""
        target = self._memory(specs, place, anew=not self._live) if place is not None else {}
        held = boxed(target, specs, place.size, place.index) if place is not None else {}
        if not exchange(comm, copies, sources, held):
            return None
        if place is None:
            return 0
        return self._fit(target, specs, meta)

    def _memory(self, specs: Mapping[str, Spec], place: Place, *, anew: bool) -> dict[str, torch.Tensor]:
        """Where a state comes to: straight into the model, which then is nothing until it is whole, if `anew`."""
        if not anew:
            return memory_for(specs, place, None)
        self._access.before_change()
        self._live, self.tainted = False, True
        return memory_for(specs, place, self._shards())

    def _fit(self, tensors: Mapping[str, torch.Tensor], specs: Mapping[str, Spec], meta: dict[str, Any]) -> int:
        """Load what came for this place. The step of it."""
        if self._mesh is None:
            raise InternalError("the sharded model was not built yet")
        return self._access.load(Flat(tensors=joined(tensors, specs, self._mesh), meta=meta))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def holding(self, comm: Comm) -> Portion | None:
        """What each member writes of a checkpoint: boxes of its shard. None when the epoch has ended.

        Nobody asks anybody: who holds what follows from the places. What is not sharded may change before the next
        update, and is copied.
        """
        if comm is not self._comm or self._place is None:
            return None
        own, places = self._shards(), self._places
        specs = own.specs
        tensors = {n: t.clone() if specs[n].dim is None else t for n, t in own.flat.tensors.items()}
        logicals = [Logical(n, s.dtype, tuple(s.shape)) for n, s in specs.items()]

        def of(one: Logical, rank: int) -> tuple[Box, tuple[int, ...]]:
            spec, place = specs[one.name], places[rank]
            like = [r for r, p in enumerate(places) if spec.dim is None or p.index == place.index]
            return spec.box(place.size, place.index), tuple(like)

        return cut(Flat(tensors=tensors, meta=own.flat.meta), logicals, comm.rank, nodes_of(comm), of)

    def _restart(self, comm: Comm, standings: Sequence[Standing], places: Sequence[Place], step: int) -> int | None:
        """Nobody holds the state after `step`, or nobody all of it: all begin from a checkpoint, or at 0 as built.

        The step; None when the epoch ended.
        """
        place, model, trained = places[comm.rank], self._shards(), self._trained()
        restart = Restart(
            comm=comm,
            access=self._access,
            places=places,
            specs_of=lambda saved: specs_of(saved, model.specs, trained),
            memory=lambda specs: self._memory(specs, place, anew=True),
        )
        try:
            found = restart.found()
        except EpochOver:
            return None
        if found is False:
            if step:
                raise CheckpointError(told_of_holes(standings, step))
            return 0  # nothing was computed yet: what `build` makes is that state
        self._line = comm.epoch
        if isinstance(found, Filled):
            return self._fit(found.flat.tensors, found.specs, found.flat.meta)
        read = found if isinstance(found, Flat) else None
        saved = [logical_of(n, t) for n, t in read.tensors.items()] if read is not None else []
        work = comm.all_gather(header(restart.specs_of(saved), read.meta) if read is not None else b"")
        if not completed(work):
            return None
        specs, meta = heard(work.result[0])
        copies = scattered(specs, (0, _FILE), places)
        sources = {_FILE: {n: (t, whole(t.shape)) for n, t in read.tensors.items()}} if read is not None else {}
        self._live = False
        return self._take(comm, copies, sources, specs, meta, place)

    # -- epochs --------------------------------------------------------------------------------------------------------

    def _enter(self, comm: Comm, standings: Sequence[Standing], places: tuple[Place, ...], step: int) -> None:
        """The epoch begins: the mesh's group is carried by it, and who keeps whose copy is settled."""
        self._comm, self._places = comm, places
        group = cast("ProcessGroup", dist.group.WORLD)
        group.adopt(cast("Communicator", Subset(cast("Communicator", comm), group_of(places, comm.rank))))
        nodes = [s.node for s in standings]
        keepers = buddies(places, nodes, islands(comm))
        ward = next((r for r, buddy in enumerate(keepers) if buddy == comm.rank), None)
        buddy = keepers[comm.rank]
        self._tag, self._entries = self._shards().tag, self._count()
        self._ward = places[ward] if ward is not None else None
        keep = ward is not None and self._is_kept(standings[comm.rank], places[ward], step)
        self._sends = buddy is not None and not self._is_kept(standings[buddy], places[comm.rank], step)
        self._keeps = ward is not None and not keep
        if self._held.snapshots is None:
            self._held.copies.regrouped(buddy=buddy, ward=ward, keep=keep)
            return
        self._held.snapshots.regrouped(
            buddy=buddy,
            ward=ward,
            sends=self._sends,
            keeps=self._keeps,
            active=any(k is not None for k in keepers),
            step=step,
            line=self._line,
        )

    def _is_kept(self, standing: Standing, place: Place, step: int) -> bool:
        """Whether that member has the copy in hand, in the form that the state has now."""
        found = kept(standing, place, step)
        return found is not None and self._held.follows(found) and (found.tag, found.line) == (self._tag, self._line)

    def _count(self) -> int:
        """How many entries the optimizer's state has: it changes once, at the first update."""
        return sum(len(s) for s in self.built.optimizer_entry[1].state.values())

    @property
    def shard(self) -> str | None:
        """Which part this rank holds, where others hold the same, bit by bit."""
        place = self._place if self.column is not None else None
        return comparable(place.index, place.size) if place is not None else None

    @property
    def column(self) -> Subset | None:
        """The owners of this rank's shard in all replica groups; None where there is one group."""
        if self._comm is None:
            return None
        ranks = column_of(self._places, self._comm.rank)
        return Subset(cast("Communicator", self._comm), ranks) if len(ranks) > 1 else None

    def reducer(self) -> Reducer:
        """What reduces the gradients of the model as it is now."""
        if not self.built.objects:
            return Reducer([])
        return ShardedReducer(self._managed.reduced_parameters(), self._managed.modules, lambda: self.column)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def check_update(self, optimizer: Optimizer, *, again: bool) -> None:
        """A buddy can follow one update a step, of the optimizer that there is. Raises `UserError`."""
        if optimizer is not self.built.optimizer_entry[1]:
            raise UserError(
                "this optimizer belongs to a mesh that is no more; ask the handle that ctx.manage returned for it in each "
                "step: parts.optimizer.step()"
            )
        if again:
            raise UserError("optimizer.step was called twice in one step; a sharded model takes one update a step")

    def make_step(self, committed: int) -> None:
        """A step is about to be handed to the program: the state is as an abort, or a return to it, has to find it."""
        self._held.settle(committed)
        snapshots, place = self._held.snapshots, self._place
        if snapshots is not None and place is not None and snapshots.is_due(committed):
            snapshots.take(self._as_of(committed, place), self._trained(), self._ward)

    def begin_step(self, committed: int) -> None:
        """Before a step: copies follow what was committed; what a buddy lacks is sent while the step computes."""
        comm, place = self._comm, self._place
        if comm is None or place is None:
            return
        if self._held.snapshots is not None:
            self._held.snapshots.move(comm)
            return
        if self._count() != self._entries:
            # The optimizer has made its state: a new structure, on all ranks at the same step.
            self._tag, self._entries = self._shards().tag, self._count()
            self._sends = self._keeps = True
        if not (self._sends or self._keeps):
            return
        own, trained, copies = self._shards(), self._trained(), self._held.copies
        if self._sends:
            copies.send(comm, own)
        if self._keeps and self._ward is not None:
            size, index = self._ward.size, self._ward.index
            copies.receive(comm, Shadow(own, trained, size=size, index=index, step=committed, line=self._line))
        self._sends = self._keeps = False

    def prepare(self, step: int, *, updating: bool) -> bool:
        """Before the vote on `step`: the buddy can follow it. False when the epoch ended."""
        if self._comm is None:
            return False
        if self._held.snapshots is not None:
            return self._held.snapshots.prepare(self._comm, step)
        return self._held.copies.prepare(self._comm, step, self._trained(), updating=updating)

    def committed(self, step: int, line: int) -> None:
        """This rank's own shard follows at once, or on the spot where its optimizer was called."""
        self._step, self._line = step, line

    def secure(self, committed: int) -> bool:
        """No step follows: copy the last state too, so that no loss from here on takes it back. False when the epoch ended."""
        comm, snapshots = self._comm, self._held.snapshots
        if snapshots is None or comm is None or self._place is None:
            return True
        self._held.settle(committed)
        if not snapshots.land(comm):
            return False
        if snapshots.is_due(committed) or not snapshots.covers(committed):
            snapshots.take(self._as_of(committed, self._place), self._trained(), self._ward)
        if not snapshots.land(comm) or not completed(comm.all_gather(b"")):
            return False
        snapshots.landed_everywhere(committed)
        return True

    # -- inside --------------------------------------------------------------------------------------------------------

    def _as_of(self, step: int, place: Place) -> Own:
        return Own(shards=self._shards(), place=place, step=step, line=self._line)

    def _own_if_live(self) -> Shards | None:
        return self._shards() if self._live else None

    def _shards(self) -> Shards:
        if self._mesh is None:
            raise InternalError("the sharded model was not built yet")
        return local_state(self._access.state(), self._mesh)

    def _trained(self) -> Trained:
        name, optimizer = self.built.optimizer_entry
        where = {id(p): f"{n}.{key}" for n, m in self.built.modules.items() for key, p in m.named_parameters()}
        params = [p for g in optimizer.param_groups for p in g["params"]]
        return Trained(optimizer, name, tuple(where[id(p)] for p in params))


def _holding(place: Place, step: int, tag: str, line: int) -> Holding:
    return Holding(key=LIVE, size=place.size, index=place.index, step=step, tag=tag, line=line)
