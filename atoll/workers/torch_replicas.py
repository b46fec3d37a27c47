"""Digests of what this member holds, told to the control plane, which compares those of one step (`atoll/fault/replicas.py`).

`weights` is over what committed updates alone change: the parameters of managed optimizers and what these keep. `rest`
is over all else that modules hold: buffers, frozen parameters, averages. Those a program may change on one worker only,
as by an evaluation in training mode; so they are told apart, and condemn nobody. A learner tells nothing until it was
examined. Members of a sharded model compare with the owners of the same shard.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from atoll.checkpoint.torch_state import tensor_digest
from atoll.clock import Clock, SystemClock
from atoll.schema.ids import Epoch, Step
from atoll.schema.trainer_messages import ReplicaDigested
from atoll.workers.comparing import BYTES_PER_S, Turns, received, together
from atoll.workers.host import Host
from atoll.workers.regroup import Decision, Report
from atoll.workers.torch_managed import Managed

_MASK = (1 << 64) - 1
_KERNELS = ("foreach", "fused", "capturable")


@dataclass(frozen=True, slots=True)
class _Due:
    """All members agreed to compare what they hold after `step`; `of` will tell."""

    step: int
    epoch: int
    of: int


class Replicas:
    """What this member tells of its replica."""

    def __init__(self, host: Host, managed: Managed, device: torch.device, clock: Clock | None = None) -> None:
        self._host, self._managed, self._device = host, managed, device
        self._clock = clock or SystemClock()
        self._turns = Turns(every=host.identity.spec.compare_every, last=self._clock.monotonic())
        self._classes: tuple[str, ...] = ()
        self._due: _Due | None = None
        self.shard: str | None = ""
        self.numeric = ""

    # -- the regroup -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """All that is managed is known."""
        self.numeric = numeric_class(self._device, self._managed)
        self._turns.cost_s = sum(t.nbytes for _, t in self._weights()) / BYTES_PER_S

    def regrouped(self, reports: Sequence[Report], decision: Decision, rank: int, *, sharded: bool) -> None:
        """All members know what each of them was, and who is given whose state."""
        self._classes, self._due = tuple(r.numeric for r in reports), None
        if sharded:
            self.numeric = together(self._classes)
        elif rank in decision.receive and not decision.learn:
            self.given(decision.source, decision.step)

    def given(self, source: int, step: int) -> None:
        """This member holds, bit by bit, what `source` held after `step`."""
        self.numeric = received(self.numeric, self._classes[source], step)

    # -- steps -------------------------------------------------------------------------------------------------------

    @property
    def willing(self) -> bool:
        """What this member says with its vote."""
        return self._turns.willing(self._clock.monotonic())

    def heard(self, step: int, epoch: int, ballots: Sequence[dict[str, Any]], learners: frozenset[int]) -> None:
        """The votes on `step` are here, the same ones on all members."""
        holders = [b for rank, b in enumerate(ballots) if rank not in learners]
        due = len(holders) > 1 and self._turns.due(step, [bool(b.get("compare")) for b in holders])
        self._due = _Due(step, epoch, len(holders)) if due else None

    def boundary(self, step: int, *, learning: bool) -> None:
        """`step` is committed, its body has ended, and nothing has changed the state since."""
        due, self._due = self._due, None
        if due is None or due.step != step or learning or self.shard is None or not self.numeric:
            return
        began = self._clock.monotonic()
        fact = ReplicaDigested(
            trainer=self._host.identity.trainer,
            epoch=Epoch(due.epoch),
            step=Step(step),
            of=due.of,
            numeric=self.numeric,
            shard=self.shard,
            weights=_digest(self._weights()),
            rest=_digest(self._rest()) if not self.shard else "",
        )
        now = self._clock.monotonic()
        self._turns.took(now - began, now)
        self._host.tell(fact)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._managed.weights()

    def _rest(self) -> Iterator[tuple[str, torch.Tensor]]:
        known = {id(t) for _, t in self._managed.weights()}
        for at, module in enumerate(self._managed.modules):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if id(tensor) not in known:
                    yield f"{at}.{name}", tensor


def _digest(tensors: Iterator[tuple[str, torch.Tensor]]) -> str:
    return f"{sum(tensor_digest(name, _local(tensor)) for name, tensor in tensors) & _MASK:016x}"


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This member's part, where others hold the rest."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def numeric_class(device: torch.device, managed: Managed) -> str:
    """What has to be the same for the same updates to give the same bits.

    Threads too: a norm that a program clips by is summed in another order with another number of them.
    """
    hardware = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    kernels = sorted({_kernel(o) for o in managed.optimizers})
    words = (
        device.type,
        platform.machine(),
        hardware,
        f"torch {torch.__version__}",
        f"{torch.get_num_threads()} threads",
    )
    return ", ".join((*words, *kernels))


def _kernel(optimizer: Optimizer) -> str:
    flags = [k for k in _KERNELS if optimizer.defaults.get(k)]
    return " ".join((type(optimizer).__name__, *flags))
