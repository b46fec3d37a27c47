"""What the program's `build(mesh)` returned last: the handle through which the program reaches it.

The objects of a sharded model change when the mesh does, so the program asks the handle for them each time: inside the
loop `parts.model` is always the model of the present mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn, optim
from torch.amp import GradScaler
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from atoll.errors import InternalError, StateError

Build = Callable[[DeviceMesh], Any]

# What these do to an element depends on nothing but that element's gradient and state.
_ELEMENTWISE = frozenset({
    optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.Adagrad, optim.Adadelta, optim.RMSprop,
    optim.Rprop, optim.ASGD,
})  # fmt: skip


class Built:
    """By name: `parts.model`, `parts.optimizer`, `parts.scheduler`, as `ctx.manage` names what it is given."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """The object of that name as it is now."""
        objects: dict[str, Any] = self.__dict__.get("objects", {})
        if name in objects:
            return objects[name]
        if not objects and not name.startswith("_"):
            raise StateError(
                f"{name} is not there yet: build is called when the members are known; use it inside the ctx.steps loop"
            )
        raise AttributeError(f"build returned no {name}; it returned {sorted(objects)}")

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules, by name."""
        return {n: o for n, o in self.objects.items() if isinstance(o, nn.Module)}

    @property
    def optimizer_entry(self) -> tuple[str, Optimizer]:
        """The one optimizer and its name."""
        found = next(((n, o) for n, o in self.objects.items() if isinstance(o, Optimizer)), None)
        if found is None:
            raise InternalError("the sharded model was not built yet")
        return found


def made_of(returned: Any) -> tuple[Any, ...]:
    """What `build` returned, checked: sharded modules, one optimizer, and what else it manages. Raises `StateError`."""
    made = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    optimizers = [o for o in made if isinstance(o, Optimizer)]
    if len(optimizers) != 1:
        raise StateError(
            f"build returned {len(optimizers)} optimizers; return the model and one optimizer, with a group for each "
            "set of hyperparameters"
        )
    kind = type(optimizers[0])
    if kind not in _ELEMENTWISE and not getattr(kind, "elementwise", False):
        raise StateError(
            f"{kind.__name__} may need the whole of a tensor for its update, and the keeper of a copy has a shard only; use "
            "SGD, Adam or AdamW, or say elementwise = True in its class if it treats each element by itself"
        )
    if not any(isinstance(part, FSDPModule) for o in made if isinstance(o, nn.Module) for part in o.modules()):
        raise StateError(
            "build returned no module that fully_shard was applied to; call fully_shard(model, mesh=mesh) in it, or give "
            "an unsharded model to ctx.manage itself"
        )
    if any(isinstance(o, GradScaler) and o.is_enabled() for o in made):
        raise StateError("build returned a GradScaler, whose verdict on a shard is not that on the whole; use bfloat16")
    return made
