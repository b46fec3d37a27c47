"""The plans by which a sharded state moves, and what members tell each other of its structure.

All of it follows from what every member knows - places, holdings, specs - so all compute the same and nobody asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.reshard import Copy, Planner, Source, Target
from atoll.errors import InternalError
from atoll.workers.buddies import Place, Recovery, Standing, holders_of, missing
from atoll.workers.peers import Comm
from atoll.workers.torch_copies import Trained
from atoll.workers.torch_moves import Held
from atoll.workers.torch_shards import Spec, tag_of


def planned(
    specs: Mapping[str, Spec],
    found: Recovery,
    teller: tuple[int, str],
    wanting: Sequence[tuple[int, Place]],
    standings: Sequence[Standing],
) -> list[Copy]:
    """The copies that fill all who want it; what is not sharded comes from the teller."""

    def cost(source: int, target: int) -> float:
        return 0.0 if source == target else 1.0 if standings[source].node == standings[target].node else 2.0

    planner, copies = Planner(cost), list[Copy]()
    held = [(rank, key, index) for index in found.holders for rank, key in holders_of(standings, found, index)]
    for name in sorted(specs):
        spec = specs[name]
        sources = [Source(rank, key, spec.box(found.size, index)) for rank, key, index in held]
        if spec.dim is None:
            sources = [Source(*teller, whole(spec.shape))]
        targets = [Target(rank, spec.box(place.size, place.index)) for rank, place in wanting]
        copies += planner.plan(name, spec.torch_dtype.itemsize, sources, targets)
    return copies


def header(specs: Mapping[str, Spec], meta: dict[str, Any]) -> bytes:
    """What one who is filled has to know of the state besides the values of its tensors."""
    plain = {name: (s.dtype, s.shape, s.dim) for name, s in specs.items()}
    return json.dumps({"meta": meta, "specs": plain, "tag": tag_of(specs)}).encode()


def heard(told: bytes) -> tuple[dict[str, Spec], dict[str, Any]]:
    """As `header` was given it. Raises `InternalError` where it was changed on its way."""
    plain = json.loads(told)
    specs = {name: Spec(dtype, tuple(shape), dim) for name, (dtype, shape, dim) in plain["specs"].items()}
    if tag_of(specs) != plain["tag"]:
        raise InternalError("the structure of the state changed on its way")
    return specs, plain["meta"]


def boxed(tensors: Mapping[str, torch.Tensor], specs: Mapping[str, Spec], size: int, index: int) -> Held:
    """The tensors of shard `index` of `size`, with their boxes."""
    return {n: (t, specs[n].box(size, index)) for n, t in tensors.items() if n in specs}


def teller(standings: Sequence[Standing], found: Recovery) -> tuple[int, str] | None:
    """The lowest rank that holds a shard of its own of that state, with all that is not sharded."""
    wanted = (found.step, found.line, False)
    held = [(r, h.key) for r, s in enumerate(standings) for h in s.holdings if (h.step, h.line, h.copy) == wanted]
    return min(held) if held else None


def told_of_holes(standings: Sequence[Standing], step: int) -> str:
    """What is said where the state after `step` is lost."""
    sizes = sorted({h.size for s in standings for h in s.holdings})
    holes = "; ".join(f"shards {list(missing(standings, step, n))} of {n}" for n in sizes) or "every shard"
    return (
        f"the state after step {step} cannot be put together: lost with their owners and buddies: {holes}; and no "
        "checkpoint holds an earlier one. Start the run again, with checkpoint_every"
    )


def islands(comm: Comm) -> list[list[int]]:
    """The ranks of each island, by the outermost division of the network that the epoch knows."""
    network: Any = getattr(comm, "network", None)
    groups: Any = network.groups if network is not None and network.topology.links else None
    if not isinstance(groups, tuple):
        return [list(range(comm.size))]
    return [_ranks(group) for group in groups]


def _ranks(group: Any) -> list[int]:
    return [group] if isinstance(group, int) else [rank for part in group for rank in _ranks(part)]


def scattered(specs: Mapping[str, Spec], holder: tuple[int, str], places: Sequence[Place]) -> list[Copy]:
    """From one who holds everything whole to everybody's place."""
    planner, copies = Planner(), list[Copy]()
    for name in sorted(specs):
        spec = specs[name]
        targets = [Target(r, spec.box(p.size, p.index)) for r, p in enumerate(places)]
        copies += planner.plan(name, spec.torch_dtype.itemsize, [Source(*holder, whole(spec.shape))], targets)
    return copies


def specs_of(saved: Iterable[Logical], model: Mapping[str, Spec], trained: Trained) -> dict[str, Spec]:
    """How the tensors of a checkpoint lie in the model as it was built: an optimizer's follow their parameters."""
    prefix, found = f"{trained.prefix}.state.", dict[str, Spec]()
    for one in saved:
        at = one.name.removeprefix(prefix).partition(".")[0] if one.name.startswith(prefix) else ""
        like = model.get(one.name) or (model.get(trained.names[int(at)]) if at.isdigit() else None)
        dim = like.dim if like is not None and like.shape == one.shape else None
        found[one.name] = Spec(one.dtype, one.shape, dim)
    return found
