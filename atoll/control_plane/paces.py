"""The members of a new epoch with their weights: by measured speed where that pays (see `atoll.fault.balance`)."""

from __future__ import annotations

import dataclasses

from atoll.control_plane.state import Run
from atoll.fault import balance
from atoll.schema.messages import Member


def weighed(run: Run, members: tuple[Member, ...], told: balance.Counts | None = None) -> tuple[Member, ...]:
    """`members` with the weights that share the grains best, as far as anybody's speed is known.

    `told`: the split for whose sake the epoch is raised. It holds where the members are those that it was found for.
    """
    names = [m.trainer for m in members]
    if told is not None and told.keys() == set(names):
        found = [float(told[name]) for name in names]
    else:
        before = {m.trainer: m.weight for m in run.members}
        found = balance.weights(names, run.speeds.grains, run.speeds.paces, before)
    return tuple(dataclasses.replace(m, weight=w) for m, w in zip(members, found, strict=True))
