"""A `torch.distributed` process group over a communicator.

A plain Python subclass of `ProcessGroup`: torch's C++ (DDP, functional collectives) finds its methods by name, so names
and parameters are torch's. 2.13 calls `all_gather_single`, `reduce_scatter_single` and `all_to_all_single`; 2.11
`_allgather_base`, `_reduce_scatter_base` and `alltoall_base`: they are the same here.

The group object may outlive its communicator: `adopt` swaps it, and from then on a failure ends operations as if done
(`torch_work`). Without a communicator all operations end so. Who made the group with a communicator of its own hears of
failures by exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist

from atoll.collectives import torch_arguments as arguments
from atoll.collectives.call import Call
from atoll.collectives.tcp_communicator import Communicator
from atoll.collectives.tcp_exchanges import Move, Pieces, Reduction
from atoll.collectives.tcp_operations import CARRIED_IN, ReduceOp
from atoll.collectives.tcp_roll_call import TAG
from atoll.collectives.torch_arguments import listed, op_of
from atoll.collectives.torch_group_life import GroupLife
from atoll.collectives.torch_sparse import packed, sum_of
from atoll.collectives.torch_work import Handle, Several
from atoll.collectives.work import Work

Tensors = Sequence[torch.Tensor]
Options = Any  # torch's option structs, or what its short overloads take in their place


# torch's stubs give each method two forms for one name; a Python group needs the one that C++ calls.
_TorchGroup: Any = dist.ProcessGroup


class ProcessGroup(GroupLife, _TorchGroup):  # type: ignore[misc]
    """One rank's view of a group. Errors of arguments are `ValueError`s of this rank, raised before anything is sent."""

    # -- reductions --------------------------------------------------------------------------------------------------

    def allreduce(self, tensors: Tensors, opts: Options = None) -> Handle:
        """Each of `tensors` becomes its sum (or other `reduceOp`) over all ranks."""
        tensors, op = listed(tensors), op_of(opts)
        if tensors[0].is_sparse:
            return self._sum_sparse(tensors[0], op)
        arguments.check_reducible(self._place("all_reduce"), op, tensors)
        if len(tensors) == 1:
            return self._reduce_all(tensors[0], op, opts)
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        return self._reduce_all(flat, op, opts, results=tensors, after=lambda: arguments.split_into(flat, tensors))

    def allreduce_coalesced(self, tensors: Tensors, opts: Options = None) -> Handle:
        """As `allreduce`."""
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: Tensors, opts: Options) -> Handle:
        """The first of `tensors` becomes the sum on `opts.rootRank`; others keep theirs."""
        [tensor], op, root = listed(tensors), op_of(opts), opts.rootRank
        arguments.check_reducible(self._place("reduce"), op, [tensor])
        task = Reduction(
            call=Call("reduce", arguments.name(tensor), tensor.numel(), op, plan=root),
            pieces={root: [tensor]},
            into=[tensor] if root == self.rank() else (),
        )
        return self._run("reduce", [tensor], lambda c: c.reduce(task), opts)

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Options = None) -> Handle:
        """`outputs[0]` becomes the sum of what all ranks have in `inputs[0]` for this rank; pieces may be unequal."""
        return self._reduce_pieces(listed(outputs), {r: [t] for r, t in enumerate(inputs[0])}, opts)

    def reduce_scatter_single(self, output: torch.Tensor, value: torch.Tensor, opts: Options = None) -> Handle:
        """`output` becomes this rank's part of the sum of all ranks' `value`."""
        return self.reduce_scatter_single_coalesced([output], [value], opts)

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Options = None) -> Handle:
        """Several at once."""
        size = self.size()
        parts = [
            arguments.equal_parts(self._place("reduce_scatter"), i, o, size)
            for o, i in zip(outputs, inputs, strict=True)
        ]
        return self._reduce_pieces(outputs, {r: [p[r] for p in parts] for r in range(size)}, opts)

    # -- moves -------------------------------------------------------------------------------------------------------

    def broadcast(self, tensors: Tensors, opts: Options) -> Handle:
        """`tensors` become those of `opts.rootRank`."""
        tensors = listed(tensors)
        root = opts if isinstance(opts, int) else opts.rootRank
        [first, *others] = tensors
        if not others:
            return self._run("broadcast", tensors, lambda c: c.broadcast(first, root=root), opts)

        def copy() -> None:
            for other in others:
                other.detach().copy_(first)

        return self._run("broadcast", tensors, lambda c: c.broadcast(first, root=root), opts, after=copy)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Options = None) -> Handle:
        """`outputs[0][r]` becomes the tensor of rank r; they may be unequal."""
        return self._gather_all({r: [t] for r, t in enumerate(outputs[0])}, listed(inputs), opts)

    def allgather_coalesced(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Options = None) -> Handle:
        """`outputs[r]` become the tensors of rank r."""
        return self._gather_all(dict(enumerate(outputs)), inputs, opts)

    def all_gather_single(self, output: torch.Tensor, value: torch.Tensor, opts: Options = None) -> Handle:
        """`output` becomes all ranks' `value`, one after the other."""
        return self.all_gather_single_coalesced([output], [value], opts)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Options = None) -> Handle:
        """Several at once."""
        size = self.size()
        parts = [
            arguments.equal_parts(self._place("all_gather"), o, i, size) for o, i in zip(outputs, inputs, strict=True)
        ]
        return self._gather_all({r: [p[r] for p in parts] for r in range(size)}, inputs, opts, results=outputs)

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Options) -> Handle:
        """On `opts.rootRank`, `outputs[0][r]` becomes the tensor of rank r."""
        root, [value] = opts.rootRank, listed(inputs)
        takes: dict[int, Pieces] = {}
        if root == self.rank():
            takes = {r: [t] for r, t in enumerate(outputs[0])}
            arguments.check_alike(self._place("gather"), value, outputs[0])
        call = Call("gather", arguments.name(value), value.numel(), plan=root)
        task = Move(call=call, gives={root: [value]}, takes=takes)
        return self._run("gather", outputs[0] if takes else [], lambda c: c.move(task), opts)

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Options) -> Handle:
        """`outputs[0]` becomes what `opts.rootRank` has for this rank in `inputs[0]`."""
        root, [output] = opts.rootRank, listed(outputs)
        gives: dict[int, Pieces] = {}
        if root == self.rank():
            gives = {r: [t] for r, t in enumerate(inputs[0])}
            arguments.check_alike(self._place("scatter"), output, inputs[0])
        call = Call("scatter", arguments.name(output), output.numel(), plan=root)
        task = Move(call=call, gives=gives, takes={root: [output]})
        return self._run("scatter", [output], lambda c: c.move(task), opts)

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Options = None) -> Handle:
        """`outputs[r]` becomes what rank r has for this rank in its `inputs`."""
        call = Call("all_to_all", arguments.name(inputs[0]))
        gives, takes = ({r: [t] for r, t in enumerate(tensors)} for tensors in (inputs, outputs))
        task = Move(call=call, gives=gives, takes=takes)
        return self._run("all_to_all", outputs, lambda c: c.move(task), opts)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        value: torch.Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        opts: Options = None,
    ) -> Handle:
        """Rows of `value` go to the ranks by `input_splits`, those that come fill `output`; no splits: equal ones."""
        place, size = self._place("all_to_all"), self.size()
        inputs = arguments.rows(place, value, input_splits, size)
        outputs = arguments.rows(place, output, output_splits, size)
        handle = self.alltoall(outputs, inputs, opts)
        handle.set_results([output])
        return handle

    def barrier(self, opts: Options = None) -> Handle:
        """Done once all ranks have called it."""
        return self._run("barrier", [], lambda c: c.barrier(), opts)

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(self, tensors: Tensors, to: int, tag: int = 0) -> Handle:
        """One message; it needs no receive to be posted, so pipelines cannot deadlock."""
        [tensor] = listed(tensors)
        arguments.check_tag(self._place("send"), tag, TAG)
        return self._run("send", [tensor], lambda c: c.send(tensor, to=to, tag=tag), peer=to)

    def recv(self, tensors: Tensors, source: int, tag: int = 0) -> Handle:
        """The next message of `source` with this tag."""
        [tensor] = listed(tensors)
        arguments.check_tag(self._place("recv"), tag, TAG)
        return self._run("recv", [tensor], lambda c: c.recv(tensor, source=source, tag=tag), peer=source)

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Handle:
        """The next message with this tag of any rank; the handle's `source_rank` tells whose."""
        [tensor] = listed(tensors)
        arguments.check_tag(self._place("recv"), tag, TAG)
        return self._run("recv", [tensor], lambda c: c.recv(tensor, source=None, tag=tag), peer=-1)

    # -- several at once ---------------------------------------------------------------------------------------------

    def _start_coalescing(self, device: torch.device) -> None:
        del device
        self._batch = []

    def _end_coalescing(self, device: torch.device) -> Several:
        del device
        batch, self._batch = self._batch or [], None
        return Several(batch)

    # -- names of torch 2.11 -----------------------------------------------------------------------------------------

    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    alltoall_base = all_to_all_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    # -- inside ------------------------------------------------------------------------------------------------------

    def _reduce_all(
        self,
        tensor: torch.Tensor,
        op: str,
        opts: Options,
        results: Tensors = (),
        after: Callable[[], None] | None = None,
    ) -> Handle:
        """By a plan where it can add this up, else directly."""
        results = results or [tensor]
        adds = torch.view_as_real(tensor.detach()) if tensor.is_complex() and op in {"sum", "avg"} else tensor
        if op not in {"sum", "avg", "min", "max"} or adds.dtype not in CARRIED_IN:
            call = Call("all_reduce", arguments.name(tensor), tensor.numel(), op)
            begin = lambda c: c.all_reduce_directly([tensor], call)  # noqa: E731
            return self._run("all_reduce", results, begin, opts, after=after)
        if op == "avg":
            after = _both(lambda: tensor.detach().div_(self.size()), after)
        planned = cast("ReduceOp", "sum" if op == "avg" else op)
        return self._run(
            "all_reduce", results, lambda c: c.all_reduce(adds, op=planned, in_place=True), opts, after=after
        )

    def _reduce_pieces(self, outputs: Tensors, pieces: dict[int, Pieces], opts: Options) -> Handle:
        op, place = op_of(opts), self._place("reduce_scatter")
        arguments.check_pieces(place, pieces, outputs, self.size(), self.rank())
        arguments.check_reducible(place, op, outputs)
        count = sum(t.numel() for ts in pieces.values() for t in ts)
        call = Call("reduce_scatter", arguments.name(outputs[0]), count, op)
        task = Reduction(call=call, pieces=pieces, into=outputs)
        return self._run("reduce_scatter", outputs, lambda c: c.reduce(task), opts)

    def _gather_all(
        self, takes: dict[int, Pieces], inputs: Tensors, opts: Options, results: Tensors | None = None
    ) -> Handle:
        arguments.check_pieces(self._place("all_gather"), takes, inputs, self.size(), self.rank())
        count = sum(t.numel() for ts in takes.values() for t in ts)
        call = Call("all_gather_into", arguments.name(inputs[0]), count)
        task = Move(call=call, gives=dict.fromkeys(range(self.size()), inputs), takes=takes)
        wrote = results if results is not None else [t for ts in takes.values() for t in ts]
        return self._run("all_gather", wrote, lambda c: c.move(task), opts)

    def _sum_sparse(self, tensor: torch.Tensor, op: str) -> Handle:
        if op != "sum":
            raise ValueError(f"{self._place('all_reduce')}: {op} of a sparse tensor; it takes sum")
        payload, gathered = packed(tensor), []

        def begin(communicator: Communicator) -> Work:
            work = communicator.all_gather(payload)
            gathered.append(work)
            return work

        def after() -> None:
            with torch.no_grad():
                tensor.copy_(sum_of(gathered[0].result, tensor))

        return self._run("all_reduce", [tensor], begin, after=after)

    def _place(self, kind: str) -> str:
        return f"{kind} on rank {self.rank()} of group {self.group_name!r}"


def _both(first: Callable[[], Any], then: Callable[[], None] | None) -> Callable[[], None]:
    def call() -> None:
        first()
        if then is not None:
            then()

    return call
