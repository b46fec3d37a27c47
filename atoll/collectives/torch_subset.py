"""Some ranks of a communicator, as a communicator of their own: what carries the process group of an inner mesh.

Every rank of the communicator calls the same operations in the same order, each within its own subset, so the numbers
of operations agree without a word. Everything is made of moves; sums are added up here in the order of the subset's
ranks, so their bits do not depend on which rank of the communicator holds which place.

When the epoch ends, an operation ends with zeros in the tensors that it was to write. They flow through the rest of the
body as finite numbers, and nothing that torch keeps between operations is broken by an exception (law 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from atoll.collectives.call import Call
from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.tcp_exchanges import Move, Pieces, Reduction
from atoll.collectives.tcp_operations import ReduceOp, dtype_name
from atoll.collectives.work import Work
from atoll.errors import UserError

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_COMBINE: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "avg": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
    "product": torch.mul,
}


class Subset:
    """`ranks` of `communicator`, this one among them, as ranks 0 to len(ranks) - 1."""

    def __init__(self, communicator: Communicator, ranks: Sequence[int]) -> None:
        self._whole, self._ranks = communicator, tuple(ranks)
        self.rank, self.size = self._ranks.index(communicator.rank), len(self._ranks)
        self.epoch = communicator.epoch
        self.members = tuple(communicator.members[r] for r in self._ranks)

    def move(self, task: Move) -> Work:
        """Tensors from rank to rank."""
        outer = Work()
        inner = self._whole.move(self._renamed(task))
        results = [t for pieces in task.takes.values() for t in pieces]
        inner.add_done_callback(lambda done: _end(outer, done, results, lambda: None))
        return outer

    def reduce(self, task: Reduction) -> Work:
        """Each piece goes to its owner, which adds up in rank order."""
        own = task.pieces.get(self.rank, ())
        arrived = {
            r: [torch.empty_like(t, memory_format=torch.contiguous_format) for t in own] for r in range(self.size)
        }
        takes = arrived if own else {}
        inner = self._whole.move(self._renamed(Move(call=task.call, gives=task.pieces, takes=takes)))
        outer = Work()

        def write() -> None:
            for at, result in enumerate(task.into):
                total = combined(task.call.op, [arrived[r][at] for r in range(self.size)])
                result.detach().copy_(total.reshape(result.shape))

        inner.add_done_callback(lambda done: _end(outer, done, task.into, write))
        return outer

    def all_reduce(self, buffer: torch.Tensor, *, op: ReduceOp = "sum", in_place: bool = False) -> Work:
        """`buffer` becomes the elementwise `op` over the subset; the contributions lie apart from it either way."""
        del in_place
        return self.all_reduce_directly([buffer], Call("all_reduce", dtype_name(buffer), buffer.numel(), op))

    def all_reduce_directly(self, buffers: Pieces, call: Call) -> Work:
        """As `all_reduce`, for several tensors."""
        arrived = {
            r: [torch.empty_like(t, memory_format=torch.contiguous_format) for t in buffers] for r in range(self.size)
        }
        task = Move(call=call, gives=dict.fromkeys(range(self.size), buffers), takes=arrived)
        inner = self._whole.move(self._renamed(task))
        outer = Work()

        def write() -> None:
            for at, result in enumerate(buffers):
                result.detach().copy_(combined(call.op, [arrived[r][at] for r in range(self.size)]))

        inner.add_done_callback(lambda done: _end(outer, done, buffers, write))
        return outer

    def broadcast(self, buffer: torch.Tensor, *, root: int) -> Work:
        """`buffer` becomes that of `root`."""
        gives = {r: [buffer] for r in range(self.size) if r != root} if self.rank == root else {}
        takes = {} if self.rank == root else {root: [buffer]}
        return self.move(Move(call=Call("broadcast", dtype_name(buffer), buffer.numel()), gives=gives, takes=takes))

    def barrier(self) -> Work:
        """Done once all of the subset have called it."""
        token = torch.zeros(1, dtype=torch.uint8)
        return self.all_reduce_directly([token], Call("all_reduce", "uint8", 1, "sum"))

    def send(self, buffer: torch.Tensor, *, to: int, tag: int = 0) -> Work:
        """One message."""
        return self._whole.send(buffer, to=self._ranks[to], tag=tag)

    def recv(self, buffer: torch.Tensor, *, source: int | None, tag: int = 0) -> Work:
        """The next message of `source` with this tag."""
        if source is None:
            raise UserError("recv from any rank is not possible on the mesh of ctx.manage(build); name the rank")
        return self._whole.recv(buffer, source=self._ranks[source], tag=tag)

    def all_gather(self, payload: bytes) -> Work:
        """Byte strings of unequal length have no use in a sharded model; refuse rather than mix up subsets."""
        raise UserError(
            f"an operation on {len(payload)} bytes of unequal length, such as a sum of sparse tensors, is not possible on "
            "the mesh of ctx.manage(build); use dense tensors"
        )

    def _renamed(self, task: Move) -> Move:
        return Move(
            call=task.call,
            gives={self._ranks[r]: pieces for r, pieces in task.gives.items()},
            takes={self._ranks[r]: pieces for r, pieces in task.takes.items()},
        )


def combined(op: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """All parts in their order; halves are added in float32."""
    wide = _WIDE.get(parts[0].dtype, parts[0].dtype)
    total = parts[0].to(wide)
    for part in parts[1:]:
        total = _COMBINE[op](total, part.to(wide))
    return total / len(parts) if op == "avg" else total


def _end(outer: Work, inner: Work, results: Pieces, write: Callable[[], None]) -> None:
    if inner.poison is None:
        outer.finish(inner.result, write=write)
        return
    for tensor in results:
        tensor.detach().zero_()
    outer.spoil(inner.poison)
