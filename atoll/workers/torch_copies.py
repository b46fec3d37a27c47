"""A buddy's copy of another rank's shard: it lies in a checkpoint slab and follows the owner's updates (law 7).

The copy is made once, as the file image of a pack. From then on the owner sends what its optimizer is about to apply -
its reduced gradient, as it is when the step is voted on - and the buddy votes only once it holds that. After the commit
it applies the very same update to the copy, with an optimizer of the same class and hyperparameters over the slab: the
copy stands where the owner stands, whatever step was decided, and no committed step can be lost with its owner. State
that the optimizer makes at its first update is made here alike; the copy is then taken anew, into a slab with room for it.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from atoll.checkpoint.fs_pack import Slab
from atoll.errors import InternalError
from atoll.workers.peers import Comm, Pending, completed
from atoll.workers.torch_moves import checked, checked_size, checksum, pieces_of, placed, verified
from atoll.workers.torch_shards import Shards, Spec

# Apart from what a regroup sends.
_TAG = 1
_CHECK = 8
# The key of the copy that follows its owner.
IN_HAND = "copy"
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")

Groups = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trained:
    """An optimizer and what it updates: for each of its parameters, in its order, the tensor's name in the state."""

    optimizer: Optimizer
    prefix: str
    names: tuple[str, ...]

    @property
    def params(self) -> list[nn.Parameter]:
        """In the order of `names`."""
        return [p for g in self.optimizer.param_groups for p in g["params"]]

    def groups(self) -> Groups:
        """The hyperparameters of each group, as they are now."""
        taken = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        return [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in g.items()} for g in taken]


class Shadow:
    """The copy of shard `index` of `size` after `step`, which epoch `line` committed.

    `like` is the structure of the state; `trained` lends its optimizer's form.
    """

    def __init__(self, like: Shards, trained: Trained, *, size: int, index: int, step: int, line: int = 0) -> None:
        self.size, self.index, self.step, self.line, self.tag = size, index, step, line, like.tag
        self._specs = {name: spec for name, spec in like.specs.items() if spec.dim is not None}
        empty = empty_parts(self._specs, size, index)
        self._slab = Slab()
        self._slab.lay_out(empty)
        self._tensors = {name: self._slab.tensor(name) for name in empty}
        self._same = {name: t.clone() for name, t in like.flat.tensors.items() if name not in self._specs}
        self._trained = trained
        self._optimizer: Optimizer | None = None

    @property
    def memory(self) -> torch.Tensor:
        """The slab's bytes."""
        return torch.frombuffer(self._slab.view(), dtype=torch.uint8, count=self._slab.length)

    def take(self, own: Shards, step: int, line: int) -> None:
        """Be a copy of `own`, whose structure is the one that this was made for."""
        self.step, self.line = step, line
        for name, tensor in self._tensors.items():
            tensor.copy_(own.flat.tensors[name])
        self._same = {name: t.clone() for name, t in own.flat.tensors.items() if name not in self._specs}

    def whole(self) -> dict[str, torch.Tensor]:
        """All tensors as they were taken, those included that are not sharded."""
        return {**self._same, **self._tensors}

    def tensors(self) -> dict[str, torch.Tensor]:
        """All sharded tensors by name, what the optimizer has made since included."""
        found = dict(self._tensors)
        if self._optimizer is not None:
            for at, param in enumerate(_params(self._optimizer)):
                for key, value in self._optimizer.state.get(param, {}).items():
                    if isinstance(value, torch.Tensor) and value.shape == param.shape:
                        found[f"{self._trained.prefix}.state.{at}.{key}"] = value
        return found

    def taken(self) -> list[torch.Tensor]:
        """The sharded tensors that it was made for, in an order that its owner knows."""
        return [self._tensors[name] for name in _sharded(self._specs)]

    def gradients(self, payload: torch.Tensor, present: Sequence[bool]) -> list[torch.Tensor | None]:
        """What the owner sent, as one gradient for each parameter."""
        offset, found = 0, list[torch.Tensor | None]()
        for name, there in zip(self._trained.names, present, strict=True):
            like = self._tensors[name]
            end = offset + (like.numel() * like.element_size() if there else 0)
            found.append(payload[offset:end].clone().view(like.dtype).view(like.shape) if there else None)
            offset = end
        return found

    def gradient_bytes(self, present: Sequence[bool]) -> int:
        """How long the owner's message is."""
        return checked_size([self._tensors[n] for n, there in zip(self._trained.names, present, strict=True) if there])

    def advance(self, gradients: Sequence[torch.Tensor | None], groups: Groups) -> None:
        """Apply the owner's update."""
        optimizer = self._optimizer = self._optimizer or self._shadowed()
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)
        for param, gradient in zip(_params(optimizer), gradients, strict=True):
            param.grad = gradient
        type(optimizer).step(optimizer)
        for param in _params(optimizer):
            param.grad = None

    def _shadowed(self) -> Optimizer:
        """An optimizer like the owner's, over the slab. Hooks are the program's and see only its own optimizer."""
        source = self._trained.optimizer
        shadow: Optimizer = object.__new__(type(source))
        vars(shadow).update({k: v for k, v in vars(source).items() if k != "step"})
        vars(shadow).update({hooks: OrderedDict() for hooks in _HOOKS})
        own = [
            nn.Parameter(self._tensors[n], requires_grad=self._tensors[n].is_floating_point())
            for n in self._trained.names
        ]
        rest = iter(own)
        shadow.param_groups = [
            {**g, "params": [next(rest) for _ in g["params"]]} for g in source.param_groups
        ]  # fmt: skip
        shadow.state = defaultdict(dict)
        for at, (mine, theirs) in enumerate(zip(self._trained.params, own, strict=True)):
            for key, value in source.state.get(mine, {}).items():
                name = f"{self._trained.prefix}.state.{at}.{key}"
                made = self._tensors.get(name, self._same.get(name, value))
                if made is not value:
                    shadow.state[theirs][key] = made
        return shadow


@dataclass(slots=True)
class _Arriving:
    shadow: Shadow
    tensors: list[torch.Tensor]
    pieces: list[torch.Tensor]
    check: torch.Tensor
    works: list[Pending]


@dataclass(slots=True)
class _Update:
    step: int
    line: int
    gradients: list[torch.Tensor | None] | None
    groups: Groups


class Copies:
    """What this rank keeps of another's shard, and sends of its own."""

    def __init__(self) -> None:
        self.shadow: Shadow | None = None
        self.older: list[Shadow] = []
        self._arriving: _Arriving | None = None
        self._leaving: list[Pending] = []
        self._kept_alive: list[Any] = []
        self._pending: _Update | None = None
        self._buddy: int | None = None
        self._ward: int | None = None

    def regrouped(self, *, buddy: int | None, ward: int | None, keep: bool) -> None:
        """Who keeps this rank's shard from now on, and whose this one keeps; `keep` the copy in hand, which is theirs."""
        self._buddy, self._ward = buddy, ward
        self._arriving, self._leaving, self._kept_alive, self._pending = None, [], [], None
        if self.shadow is not None and not keep:
            self.older.append(self.shadow)  # until a step is committed without it
            self.shadow = None

    def shadows(self) -> dict[str, Shadow]:
        """What is kept, by key."""
        older = {f"{IN_HAND}-{at}": shadow for at, shadow in enumerate(self.older)}
        return older if self.shadow is None else {IN_HAND: self.shadow, **older}

    def send(self, comm: Comm, own: Shards) -> None:
        """Have the buddy take this rank's shard as it is; it must not change before `prepare` has returned."""
        if self._buddy is None:
            return
        pieces = pieces_of([own.flat.tensors[name] for name in _sharded(own.specs)])
        self._leaving = [comm.send(piece, to=self._buddy, tag=_TAG, in_place=True) for piece in pieces]
        check = checksum(*pieces)
        self._kept_alive = [*pieces, check]
        self._leaving.append(comm.send(check, to=self._buddy, tag=_TAG))

    def receive(self, comm: Comm, shadow: Shadow) -> None:
        """Take the ward's shard; it counts once `prepare` has returned."""
        if self._ward is None:
            return
        check = torch.empty(_CHECK, dtype=torch.uint8)
        tensors = shadow.taken()
        pieces = pieces_of(tensors)
        works = [comm.recv(piece, source=self._ward, tag=_TAG, in_place=True) for piece in pieces]
        works.append(comm.recv(check, source=self._ward, tag=_TAG))
        self._arriving = _Arriving(shadow, tensors, pieces, check, works)

    def prepare(self, comm: Comm, step: int, trained: Trained, *, updating: bool) -> bool:
        """Before the vote: the buddy holds what it needs to follow this step. False when the epoch ended."""
        if not self._arrived():
            return False
        params = trained.params if updating else []
        present = [p.grad is not None for p in params]
        sent = list[Pending]()
        if updating and self._buddy is not None:
            gradients = [local(p.grad) for p in params if p.grad is not None]
            sent.append(comm.send(checked(gradients), to=self._buddy, tag=_TAG))
        found: list[torch.Tensor | None] | None = None
        if updating and self.shadow is not None and self._ward is not None:
            buffer = torch.empty(self.shadow.gradient_bytes(present), dtype=torch.uint8)
            if not completed(comm.recv(buffer, source=self._ward, tag=_TAG)):
                return False
            found = self.shadow.gradients(verified(buffer, f"the gradient from rank {self._ward}"), present)
        if not all(completed(work) for work in [*sent, *self._leaving]):
            return False
        self._leaving, self._kept_alive = [], []
        self._pending = _Update(step, comm.epoch, found, trained.groups() if updating else [])
        return True

    def settle(self, step: int) -> bool:
        """`step` is the last that is committed: follow it, or forget what was prepared for a later one.

        True where it was prepared here: then nobody needs what was held before.
        """
        pending, self._pending = self._pending, None
        if pending is None or pending.step != step:
            return False
        self.older.clear()
        if self.shadow is not None:
            if pending.gradients is not None:
                self.shadow.advance(pending.gradients, pending.groups)
            self.shadow.step, self.shadow.line = step, pending.line
        return True

    def _arrived(self) -> bool:
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return True
        if not all(completed(work) for work in arriving.works):
            return False
        if not torch.equal(checksum(*arriving.pieces), arriving.check):
            raise InternalError(f"the shard of rank {self._ward} changed on its way to its buddy")
        placed(arriving.pieces, arriving.tensors)
        self.shadow = arriving.shadow
        return True


def _sharded(specs: Mapping[str, Spec]) -> list[str]:
    return sorted(name for name, spec in specs.items() if spec.dim is not None)


def empty_parts(specs: Mapping[str, Spec], size: int, index: int) -> dict[str, torch.Tensor]:
    """Tensors without values, of the types and shapes that shard `index` of `size` has."""
    return {n: torch.empty(s.box(size, index).shape, dtype=s.torch_dtype, device="meta") for n, s in specs.items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor; another tensor itself."""
    found: Any = getattr(tensor, "to_local", None)
    return found() if found is not None else tensor


def _params(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for g in optimizer.param_groups for p in g["params"]]
