"""The weights to serve, out of a checkpoint: the state that training managed as `model`, by the model's own names.

They are taken from the checkpoint's tree and not from the names of its tensors: tensors that share their memory, such as
an embedding that is also the head, are stored once, and the tree says where else they belong. Training may have wrapped
the model that the serving function builds bare; a wrapper's prefix is taken off only where the model has no such names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from atoll.checkpoint.torch_state import Flat, unflatten
from atoll.errors import CheckpointError

_STATE = "model"
# torch.compile's and data parallelism's.
_WRAPPERS = ("_orig_mod.", "module.")


def weights_of(flat: Flat, names: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors for a model whose state has `names`. Raises `CheckpointError` where there is no state `model`."""
    states = unflatten(flat)
    found = states.get(_STATE)
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"the checkpoint has no state {_STATE!r} but {', '.join(sorted(states)) or 'nothing'}: hand the model over as "
            f"ctx.manage({_STATE}=...) in training"
        )
    weights = dict(found)
    while (prefix := _wrapper(weights, names)) is not None:
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _wrapper(weights: Collection[str], names: Collection[str]) -> str | None:
    """The prefix that all of `weights` have and none of the model's `names`."""
    fitting = (
        p for p in _WRAPPERS if all(w.startswith(p) for w in weights) and not any(n.startswith(p) for n in names)
    )
    return next(fitting, None) if weights else None
