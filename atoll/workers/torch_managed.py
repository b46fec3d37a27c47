"""What `ctx.manage` takes: the objects that make up the run's state, and how each takes part in a step.

A module is averaged (through the reducer), its buffers merged; an optimizer's `step` first asks the session to commit;
everything with `state_dict` / `load_state_dict` is recorded at step entry and put back on an abort (law 4). Parameters
and optimizer state need no record: they change only after commit.

`optimizer.step` is replaced on the instance by a bound method, so that LR schedulers (which wrap it through `__func__`)
and `GradScaler` (which calls it) go on working whatever the order in which they were made.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from atoll.checkpoint.layout import tensor_names
from atoll.checkpoint.torch_state import Flat, unflatten
from atoll.errors import DeviceError, StateError, UserError
from atoll.workers.torch_ddp import bare, put_to_sleep

# What an optimizer's own step runs inside: commits the session's step first.
Update = Callable[[Optimizer], AbstractContextManager[bool]]

# Positional arguments of `manage` are named by kind, first match first.
_KINDS: tuple[tuple[type, str], ...] = (
    (nn.Module, "model"),
    (Optimizer, "optimizer"),
    (torch.optim.lr_scheduler.LRScheduler, "scheduler"),
    (GradScaler, "scaler"),
)

# The session's own entry in a checkpoint.
RESERVED = "atoll"


@dataclass(slots=True)
class _Entry:
    """What an abort puts back: hyperparameters by optimizer, and small states by name."""

    groups: dict[str, list[dict[str, Any]]]
    states: dict[str, Any]


class Managed:
    """The managed objects by name, in the order in which they were given."""

    def __init__(self, device: torch.device, update: Update) -> None:
        self._device = device
        self._update = update
        self._objects: dict[str, Any] = {}
        self._bare_steps: dict[str, Callable[..., Any]] = {}
        self._entry: _Entry | None = None
        self._updating = False
        self._versions: dict[int, int] = {}
        self._loaded: dict[int, int] = {}
        self._seen_a_step = False
        self._aside: list[tuple[nn.Parameter, torch.Tensor]] = []

    def add(self, name: str, item: Any) -> None:
        """Take charge of one object."""
        if name in self._objects or name == RESERVED:
            raise StateError(
                f"the name {name!r} is taken; give each managed object a name of its own: manage({name}2=...)"
            )
        if not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise StateError(
                f"{name} is a {type(item).__name__} without state_dict and load_state_dict, so it cannot be saved "
                "without pickle; add the two methods, or keep it out of manage()"
            )
        if isinstance(item, nn.Module):
            self._check_device(name, item)
            put_to_sleep(item)
            self._versions |= _versions(item)
            self._loaded |= _versions(item)
        if isinstance(item, Optimizer):
            self._bare_steps[name] = item.step
            _wrap(item, self._updates)
        self._objects[name] = item

    def replace(self, old: Sequence[str], items: Sequence[Any]) -> list[str]:
        """Let go of the objects named `old`, and take charge of `items` instead. Returns the names that they get."""
        for name in old:
            del self._objects[name]
            self._bare_steps.pop(name, None)
        self._entry, self._aside = None, []
        names = []
        for item in items:
            names.append(self.name_of(item))
            self.add(names[-1], item)
        return names

    def update_all(self) -> None:
        """Each managed optimizer's own update, with the gradients that there are."""
        for step in self._bare_steps.values():
            step()

    def name_of(self, item: Any) -> str:
        """A name for a positional argument."""
        kind = next((name for cls, name in _KINDS if isinstance(item, cls)), None)
        if kind is None:
            kind = type(item).__name__.lower()
        taken = sum(1 for name in self._objects if name.rstrip("0123456789") == kind)
        return kind if not taken else f"{kind}{taken + 1}"

    @property
    def modules(self) -> list[nn.Module]:
        """The managed modules."""
        return [o for o in self._objects.values() if isinstance(o, nn.Module)]

    @property
    def optimizers(self) -> list[Optimizer]:
        """The managed optimizers."""
        return [o for _, o in self._optimizers()]

    @property
    def tolerates_nonfinite(self) -> bool:
        """True with a managed GradScaler: it skips such updates itself and lowers its scale."""
        return any(isinstance(o, GradScaler) and o.is_enabled() for o in self._objects.values())

    def reduced_parameters(self) -> list[nn.Parameter]:
        """What the managed optimizers update (all that is trainable without one), in order of registration."""
        known = list(dict.fromkeys(p for m in self.modules for p in m.parameters() if p.requires_grad))
        updated = {id(p) for _, o in self._optimizers() for g in o.param_groups for p in g["params"]}
        foreign = len(updated - {id(p) for m in self.modules for p in m.parameters()})
        if foreign:
            raise StateError(
                f"the optimizer updates {foreign} parameters of no managed model; pass their module to ctx.manage too"
            )
        return [p for p in known if id(p) in updated] if updated else known

    def watch(self) -> Callable[[], None]:
        """Refuse from now on that an optimizer outside `manage` updates a managed model. Returns what ends the watch.

        Such an update could not be undone, nor be given to a joiner.
        """
        mine = {id(p) for m in self.modules for p in m.parameters()}

        def check(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            # One optimizer may work through others: those of a managed one are its own affair.
            if self._updating or any(optimizer is o for _, o in self._optimizers()):
                return
            if any(id(p) in mine for g in optimizer.param_groups for p in g["params"]):
                raise UserError(
                    f"{type(optimizer).__name__} updates a managed model but is not managed itself, so its step could "
                    "be neither agreed on nor saved; give it to ctx.manage, too"
                )

        return register_optimizer_step_pre_hook(check).remove

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What committed updates alone change: parameters of managed optimizers, and the tensors that these keep."""
        found = False
        for name, optimizer in self._optimizers():
            for at, param in enumerate(p for g in optimizer.param_groups for p in g["params"]):
                found = True
                yield f"{name}.{at}", param
                kept = optimizer.state.get(param, {})
                yield from ((f"{name}.{at}.{k}", t) for k, t in kept.items() if isinstance(t, torch.Tensor))
        if not found:
            yield from ((str(at), p) for at, p in enumerate(self.reduced_parameters()))

    def flip_bit(self) -> None:
        """Hurt this replica, as a bit that flips in memory would: the largest weight changes, and stays finite."""
        param = max((t for _, t in self.weights()), key=torch.Tensor.numel).detach()
        values = (param.to_local() if hasattr(param, "to_local") else param).view(-1)
        at = int(values.abs().argmax())
        one = values[at : at + 1].view(torch.uint8)
        # Of what holds the exponent's end and the first of the mantissa, a bit of the mantissa.
        one[max(values.element_size() - 2, 0)] ^= 0x10

    def trainable(self) -> list[tuple[int, bool]]:
        """What `reduced_parameters` depends on and a program may change as it goes: freezing, groups added."""
        updated = [p for _, o in self._optimizers() for g in o.param_groups for p in g["params"]]
        return [(id(p), p.requires_grad) for p in updated or (p for m in self.modules for p in m.parameters())]

    @contextmanager
    def _updates(self, optimizer: Optimizer) -> Iterator[bool]:
        with self._update(optimizer) as wanted:
            before, self._updating = self._updating, True
            try:
                yield wanted
            finally:
                self._updating = before

    def record(self) -> None:
        """Before a step is handed to the program."""
        self._entry = _Entry(
            groups={name: [_copied(g) for g in o.param_groups] for name, o in self._optimizers()},
            states={name: copy.deepcopy(o.state_dict()) for name, o in self._small()},
        )

    def set_aside(self) -> None:
        """The step is aborted, and the program goes on to its next: keep what it may do to averages of the weights.

        They change outside of any optimizer. What a whole step left as it was given, such as a frozen teacher, is not
        copied; a model that was received or restored counts as changed.
        """
        moved = [p for p in self._apart() if p._version != self._versions.get(id(p)) or not self._seen_a_step]  # noqa: SLF001 - torch's change counter
        self._aside = [(p, p.detach().clone()) for p in moved]

    def _apart(self) -> list[nn.Parameter]:
        """Parameters that no managed optimizer updates."""
        updated = {id(p) for _, o in self._optimizers() for g in o.param_groups for p in g["params"]}
        return [p for m in self.modules for p in m.parameters() if id(p) not in updated]

    def passed(self) -> None:
        """The program has gone through a committed step and come to the next."""
        self._seen_a_step = True

    def put_back(self) -> None:
        """Undo what the program did since `set_aside`."""
        with torch.no_grad():
            for param, value in self._aside:
                param.copy_(value)
        self._aside = []
        self.rollback()

    def rollback(self) -> None:
        """The step is aborted: put back what `record` saw."""
        entry = self._entry
        if entry is None:
            return
        for name, optimizer in self._optimizers():
            for group, recorded in zip(optimizer.param_groups, entry.groups[name], strict=True):
                group.update(_copied(recorded))
        for name, item in self._small():
            item.load_state_dict(copy.deepcopy(entry.states[name]))
            if isinstance(item, GradScaler):
                # Which optimizers it unscaled in the aborted try; its own update() clears this, but never came.
                item._per_optimizer_states.clear()  # noqa: SLF001 - torch offers no other way

    def state(self) -> dict[str, Any]:
        """Everything by name, as references to live tensors."""
        return {name: _bared(o).state_dict() for name, o in self._objects.items()}

    def frozen(self) -> dict[str, Any]:
        """Like `state`, but with everything copied that may change before the next update.

        Buffers, small states, and averages of the weights: parameters that the program changes outside of any optimizer.
        """
        small = {name for name, _ in self._small()}
        moved = {id(p) for p in self._apart() if p._version != self._loaded.get(id(p))}  # noqa: SLF001 - as above
        fixed = {p.data_ptr() for m in self.modules for p in m.parameters() if id(p) not in moved}
        state = self.state()
        for name, item in self._objects.items():
            if name in small:
                state[name] = copy.deepcopy(state[name])
            elif isinstance(item, nn.Module):
                state[name] = {
                    key: v.clone() if isinstance(v, torch.Tensor) and v.data_ptr() not in fixed else v
                    for key, v in state[name].items()
                }
        return state

    def readable(self) -> tuple[str, str]:
        """The name of the first module, whose weights other programs may read, and its configuration as JSON text."""
        for name, item in self._objects.items():
            if isinstance(item, nn.Module):
                written = getattr(getattr(item, "config", None), "to_json_string", None)
                return name, str(written()) if callable(written) else ""
        return "", ""

    def load(self, state: Mapping[str, Any]) -> None:
        """Fill every object from what `state` once returned."""
        missing = [name for name in self._objects if name not in state]
        if missing:
            have = sorted(set(state) - {RESERVED})
            raise StateError(
                f"the saved state has no {', '.join(missing)}; it holds {have}: use the names it was saved under"
            )
        for name, item in self._objects.items():
            try:
                _bared(item).load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                text = " ".join(str(error).split())
                raise StateError(f"{name} does not fit the saved state: {text[:400]}") from error
        for module in self.modules:
            self._loaded |= _versions(module)

    # -- learning (`torch_learning`) -------------------------------------------------------------------------------------

    @property
    def replayable(self) -> bool:
        """Whether the updates of managed optimizers, done again, lead to the same state: nothing else changes it."""
        kinds = (nn.Module, Optimizer, torch.optim.lr_scheduler.LRScheduler, GradScaler)
        updated = {id(p) for _, o in self._optimizers() for g in o.param_groups for p in g["params"]}
        trained = [p for m in self.modules for p in m.parameters() if p.requires_grad]
        return all(isinstance(o, kinds) for o in self._objects.values()) and all(id(p) in updated for p in trained)

    def large(self, flat: Flat) -> list[str]:
        """The tensors of a flat state that updates change: parameters, and what optimizers keep."""
        fixed = {p.data_ptr() for m in self.modules for p in m.parameters() if p.numel()}
        prefixes = tuple(f"{name}." for name, _ in self._optimizers())
        return [n for n, t in flat.tensors.items() if n.startswith(prefixes) or t.data_ptr() in fixed]

    def fill(self, flat: Flat) -> None:
        """Put the large part in its place; hyperparameters, buffers and small states stay as they are."""
        absent = {n: torch.empty(0) for n in tensor_names(flat.meta) if n not in flat.tensors}
        state = unflatten(Flat(tensors={**flat.tensors, **absent}, meta=flat.meta))
        with torch.no_grad():
            for name, item in self._objects.items():
                if isinstance(item, nn.Module):
                    for key, param in _bared(item).named_parameters():
                        param.copy_(state[name][key])
        for name, optimizer in self._optimizers():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state[name]["state"], "param_groups": groups})

    def hyperparameters(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Of each group, as they are now."""
        return [_copied(g) for g in optimizer.param_groups]

    def replay(
        self, optimizer: Optimizer, gradients: Sequence[torch.Tensor | None], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        """One update as it was asked for: with these gradients of the parameters, group by group, and hyperparameters."""
        name = next(n for n, o in self._optimizers() if o is optimizer)
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        kept = [p.grad for p in parameters], self.hyperparameters(optimizer)
        self._set(optimizer, gradients, groups)
        try:
            self._bare_steps[name]()
        finally:
            self._set(optimizer, *kept)

    def _set(
        self, optimizer: Optimizer, gradients: Sequence[torch.Tensor | None], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(_copied(dict(values)))
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        for param, gradient in zip(parameters, gradients, strict=True):
            param.grad = gradient

    def _check_device(self, name: str, module: nn.Module) -> None:
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.device.type != self._device.type:
                raise DeviceError(
                    f"{name}.{key} is on {tensor.device}, but this worker computes on {self._device}; "
                    f"move the model with model.to(ctx.device) before making the optimizer"
                )

    def _optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        return ((n, o) for n, o in self._objects.items() if isinstance(o, Optimizer))

    def _small(self) -> Iterator[tuple[str, Any]]:
        return ((n, o) for n, o in self._objects.items() if not isinstance(o, nn.Module | Optimizer))


def _versions(module: nn.Module) -> dict[int, int]:
    return {id(p): p._version for p in module.parameters()}  # noqa: SLF001 - torch's change counter


def _bared(item: Any) -> Any:
    return bare(item) if isinstance(item, nn.Module) else item


def _copied(group: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a group; a tensor learning rate is changed in place, so it is cloned."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}


def _wrap(optimizer: Optimizer, update: Update) -> None:
    inner = optimizer.step

    @functools.wraps(inner)
    def step(_self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if any(callable(a) for a in (*args, kwargs.get("closure"))):
            raise UserError(
                f"{type(optimizer).__name__}.step(closure) computes gradients again after they were averaged; "
                "use an optimizer without a closure"
            )
        with update(optimizer) as wanted:
            return inner(*args, **kwargs) if wanted else None

    optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
