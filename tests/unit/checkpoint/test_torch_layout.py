"""Layouts of real states: each box a view of the values that belong there, each element held, DTensors as torch cuts them.

Process groups are torch's fake ones: one process is each rank of a mesh in turn, and nothing is communicated.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from atoll.checkpoint.assigning import assign
from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.coverage import coverage_problem
from atoll.checkpoint.torch_layout import Affine, Part, fused, interleaved, lay_out, sliced
from atoll.errors import StateError


@contextlib.contextmanager
def being(rank, size):
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def numbers(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def laid_by_all(size, state_of, **settings):
    laid = []
    for rank in range(size):
        with being(rank, size):
            laid.append(lay_out(state_of(rank), rank=rank, size=size, node=f"n{rank}", **settings))
    return laid


def check(laid, whole_of):
    """Views hold what their boxes say, owners cover everything once, holders hold the same."""
    own = assign([one.layout for one in laid]).own
    logicals = {one.name: one for each in laid for one in each.layout.logicals}
    assert logicals.keys() == whole_of.keys()
    assert coverage_problem(list(logicals.values()), [piece for pieces in own for piece in pieces]) == ""
    for each in laid:
        for (name, box), view in each.views.items():
            assert logicals[name].shape == tuple(whole_of[name].shape)
            assert torch.equal(view, whole_of[name][box.within(whole(logicals[name].shape))])


MESHES = [(4,), (2, 2), (2, 3), (2, 2, 2)]


@st.composite
def placed(draw):
    mesh = draw(st.sampled_from(MESHES))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    choices = [Replicate(), *(Shard(dim) for dim in range(len(shape)))]
    return mesh, shape, [draw(st.sampled_from(choices)) for _ in mesh]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(placed())
def test_dtensor_lies_where_torch_puts_it_for_any_placement_even_or_not(case):
    mesh_shape, shape, placements = case
    size, full = torch.Size(mesh_shape).numel(), numbers(*shape)

    def state(_rank):
        mesh = init_device_mesh("cpu", mesh_shape)
        return {"w": distribute_tensor(full, mesh, placements, src_data_rank=None)}

    check(laid_by_all(size, state), {"w": full})


class Net(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.up = nn.Linear(3, rows, bias=False)
        self.down = nn.Linear(rows, 5)


@pytest.mark.parametrize("rows", [8, 12, 16])
@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (2, 3)])
def test_fully_shard_over_tensor_parallel_lies_in_one_piece_of_each_strided_shard(shape, rows):
    torch.manual_seed(0)
    reference = Net(rows)
    full = {f"model.{k}": v.detach().clone() for k, v in reference.state_dict().items()}

    def state(_rank):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
        model = Net(rows)
        model.load_state_dict(reference.state_dict())
        for module, name, placement in ((model.up, "weight", Shard(0)), (model.down, "weight", Shard(1))):
            cut = distribute_tensor(getattr(module, name).detach(), mesh["tp"], [placement], src_data_rank=None)
            setattr(module, name, nn.Parameter(cut))
        bias = distribute_tensor(model.down.bias.detach(), mesh["tp"], [Replicate()], src_data_rank=None)
        model.down.bias = nn.Parameter(bias)
        return {"model": fully_shard(model, mesh=mesh["dp"]).state_dict()}

    check(laid_by_all(shape[0] * shape[1], state), full)


def test_fully_shard_optimizer_is_laid_out_beside_its_model():
    torch.manual_seed(0)
    reference = nn.Linear(3, 7)
    full = {f"model.{k}": v.detach().clone() for k, v in reference.state_dict().items()}

    def state(_rank):
        model = nn.Linear(3, 7)
        model.load_state_dict(reference.state_dict())
        model = fully_shard(model, mesh=init_device_mesh("cpu", (3,)))
        optimizer = torch.optim.AdamW(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    laid = laid_by_all(3, state)
    decay = 1 - 1e-3 * 1e-2
    expected = {name: tensor * decay for name, tensor in full.items()}
    for i, name in enumerate(("model.weight", "model.bias")):
        expected |= {f"optimizer.state.{i}.{key}": torch.zeros_like(full[name]) for key in ("exp_avg", "exp_avg_sq")}
        expected[f"optimizer.state.{i}.step"] = torch.tensor(1.0)
    check(laid, expected)
    assert laid[0].tree["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_mesh_of_one_group_among_several_is_held_by_the_copies_of_its_ranks():
    full, copies = numbers(6, 2), {0: (0, 2), 1: (1, 3)}
    laid = []
    for rank in range(4):
        with being(rank % 2, 2):
            mesh = init_device_mesh("cpu", (2,))
            state = {"w": distribute_tensor(full, mesh, [Shard(0)], src_data_rank=None), "plain": full}
            laid.append(lay_out(state, rank=rank, size=4, copies=copies))
    assert [[h.holders for h in one.layout.held] for one in laid] == [[(0, 1, 2, 3), c] for c in [(0, 2), (1, 3)] * 2]
    check(laid, {"w": full, "plain": full})


def test_padded_parameter_of_a_late_rank_is_no_box():
    full = numbers(5, 2)
    laid = laid_by_all(
        4, lambda _: {"w": distribute_tensor(full, init_device_mesh("cpu", (4,)), [Shard(0)], src_data_rank=None)}
    )
    assert [list(one.views) for one in laid] == [
        [("w", Box((0, 0), (2, 2)))],
        [("w", Box((2, 0), (4, 2)))],
        [("w", Box((4, 0), (5, 2)))],
        [],
    ]
    assert laid[3].layout.logicals == laid[0].layout.logicals


@pytest.mark.parametrize("placement", [None, Shard(0), Shard(1)])
def test_fused_weights_are_views_of_their_parts(placement):
    parts = {"q.weight": numbers(8, 4), "k.weight": numbers(4, 4) + 100, "v.weight": numbers(4, 4) + 200}
    full = torch.cat(list(parts.values()))

    def state(_rank):
        if placement is None:
            return {"qkv": full}
        return {"qkv": distribute_tensor(full, init_device_mesh("cpu", (3,)), [placement], src_data_rank=None)}

    laid = laid_by_all(3, state, affine={"qkv": fused(0, {n: len(t) for n, t in parts.items()})})
    check(laid, parts)
    assert laid[0].tree == {"qkv": {"$parts": [{"$tensor": name} for name in parts]}}


def test_view_is_the_memory_of_the_state_itself():
    weight = numbers(6, 2)
    laid = lay_out({"up": weight}, rank=0, size=1, affine={"up": fused(0, {"gate": 4, "up": 2})})
    laid.views["up", whole((2, 2))].fill_(-1)
    assert weight[4:].eq(-1).all()
    assert weight[:4].ge(0).all()


def test_interleaved_heads_are_boxes_of_their_tensors():
    parts = {"q": numbers(8, 3), "k": numbers(4, 3) + 100, "v": numbers(4, 3) + 200}
    rounds = [t.chunk(4)[g] for g in range(4) for t in parts.values()]
    laid = laid_by_all(
        2, lambda _: {"qkv": torch.cat(rounds)}, affine={"qkv": interleaved(0, {"q": 8, "k": 4, "v": 4}, 4)}
    )
    check(laid, parts)
    assert len(laid[0].views) == 12
    with pytest.raises(StateError, match="3 groups do not divide"):
        interleaved(0, {"q": 8}, 3)


def test_experts_of_each_rank_are_ranges_of_all_experts():
    experts = numbers(6, 2, 2)
    laid = [
        lay_out(
            {"moe.w1": experts[a:b].clone(), "router": experts[0]},
            rank=rank,
            size=4,
            affine={"moe.w1": sliced("moe.w1", 0, a, b - a, 6, holders)},
        )
        for rank, (a, b, holders) in enumerate([(0, 4, (0, 2)), (4, 6, (1, 3)), (0, 4, (0, 2)), (4, 6, (1, 3))])
    ]
    check(laid, {"moe.w1": experts, "router": experts[0]})


def test_pipeline_stages_name_their_layers_as_the_whole_model_does():
    layers = [numbers(3, 3) + 10 * i for i in range(4)]

    def called(stage):
        return lambda name: f"layers.{int(name.split('.')[1]) + 2 * stage}.weight"

    laid = [
        lay_out(
            {"layers": {"0": layers[2 * stage], "1": layers[2 * stage + 1]}},
            rank=rank,
            size=4,
            holders=(2 * stage, 2 * stage + 1),
            rename=called(stage),
        )
        for rank, stage in enumerate((0, 0, 1, 1))
    ]
    check(laid, {f"layers.{i}.weight": layer for i, layer in enumerate(layers)})


def test_tied_weights_are_one_tensor():
    weight = numbers(4, 2)
    laid = lay_out({"embed": weight, "head": weight}, rank=0, size=1)
    assert laid.tree == {"embed": {"$tensor": "embed"}, "head": {"$tensor": "embed"}}
    assert list(laid.views) == [("embed", whole((4, 2)))]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(2, 3)
        self.other = nn.Linear(3, 2, bias=False)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_one_tensor_also_on_ranks_that_have_no_rows_of_them():
    torch.manual_seed(0)
    reference = Tied()
    full = {f"model.{name}": value.detach().clone() for name, value in reference.named_parameters()}

    def state(_rank):
        model = Tied()
        model.load_state_dict(reference.state_dict())
        return {"model": fully_shard(model, mesh=init_device_mesh("cpu", (4,))).state_dict()}

    laid = laid_by_all(4, state)
    check(laid, full)
    assert {one.layout.logicals for one in laid} == {laid[0].layout.logicals}
    assert all(one.tree == laid[0].tree for one in laid)


def test_what_no_checkpoint_can_hold_is_refused_by_its_path():
    with pytest.raises(StateError, match=r"two tensors of the state are called 'a\.b'"):
        lay_out({"a.b": numbers(2), "a": {"b": numbers(3)}}, rank=0, size=1)
    with pytest.raises(StateError, match="no such tensor"):
        lay_out({"a": numbers(2)}, rank=0, size=1, affine={"b": fused(0, {"q": 2})})
    with pytest.raises(StateError, match="not all of it"):
        lay_out({"a": numbers(2)}, rank=0, size=1, affine={"a": Affine(0, (Part(0, 1, "q", 0, 1),))})
    with being(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        partial = DTensor.from_local(numbers(2), mesh, [Partial()], run_check=False)
        with pytest.raises(StateError, match="not complete"):
            lay_out({"a": partial}, rank=0, size=2)
