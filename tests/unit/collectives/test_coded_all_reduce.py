"""All-reduce between two islands with what crosses in a codec: near the sum, the same bits everywhere, nothing lost over time."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from declared_network import MBIT, two_nics

from atoll.collectives.plan_shapes import Recipe
from atoll.collectives.torch_codecs import CODECS, codec
from atoll.collectives.torch_residuals import Residuals
from atoll.collectives.work import Work
from atoll.errors import InternalError

COUNT = 20_003


def contributions(size, count, step=0):
    return [torch.randn(count, generator=torch.Generator().manual_seed(100 * step + r)) for r in range(size)]


def wait_all(works):
    assert [work.wait(10) or work.poison for work in works] == [True] * len(works)


def same_bits(buffers):
    return all(torch.equal(b.view(torch.int32), buffers[0].view(torch.int32)) for b in buffers)


def crossing(name, weights=(1.0,) * 4, groups=((0, 1), (2, 3))):
    return Recipe(shape="islands", groups=groups, weights=weights, codec=name, slices=2)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("count", [1, 7, 1025, COUNT])
def test_ranks_get_the_same_bits_within_the_bound_of_the_two_islands_sums(place, name, count):
    comms = place.on(two_nics(2, 2))
    buffers = contributions(4, count)
    inputs = [b.clone() for b in buffers]
    wait_all([c.all_reduce(b, codec=name, recipe=crossing(name)) for c, b in zip(comms, buffers, strict=True)])
    assert same_bits(buffers)
    # A range is a piece of a block or more: no error is beyond the largest of the bounds over all.
    sums = [(inputs[0] + inputs[1]).numpy(), (inputs[2] + inputs[3]).numpy()]
    largest = sum(float(np.abs(s).max()) * 2.01 for s in sums)
    if name in {"bf16", "int8"}:
        largest = sum(float(codec(name).error_bound(np.full(1, np.abs(s).max(), np.float32))[0]) for s in sums)
    exact = sum(i.double() for i in inputs)
    assert (buffers[0].double() - exact).abs().max().item() <= largest + 1e-5


def test_what_crosses_is_smaller_by_the_codec(place):
    comms = place.on(two_nics(2, 2))
    works = {}
    for name in (None, "int8"):
        recipe = crossing(name)
        works[name] = [c.all_reduce(torch.ones(100_000), codec=name, recipe=recipe) for c in comms]
        wait_all(works[name])

    def crossed(name):
        return sum(works[name][0].trace.edges[r].sent_bytes for r in (2, 3) if r in works[name][0].trace.edges)

    assert crossed(None) == pytest.approx(200_000)
    assert crossed("int8") == pytest.approx(50_000, rel=0.02)


def test_half_precision_takes_a_codec_too(place):
    comms = place.on(two_nics(2, 2))
    buffers = [torch.full((3000,), r + 1.0, dtype=torch.bfloat16) for r in range(4)]
    wait_all([c.all_reduce(b, codec="int8", recipe=crossing("int8")) for c, b in zip(comms, buffers, strict=True)])
    assert all(torch.equal(b, torch.full((3000,), 10.0, dtype=torch.bfloat16)) for b in buffers)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_number_that_is_not_finite_reaches_every_rank(place, name):
    comms = place.on(two_nics(2, 2))
    buffers = contributions(4, COUNT)
    buffers[1][15_000] = float("nan")
    buffers[2][3] = float("inf")
    wait_all([c.all_reduce(b, codec=name, recipe=crossing(name)) for c, b in zip(comms, buffers, strict=True)])
    assert not any(b[at].isfinite().item() for b in buffers for at in (3, 15_000))


@pytest.mark.parametrize(
    ("dtype", "op", "name", "words"),
    [
        (torch.int64, "sum", "int8", "int64 in codec 'int8'"),
        (torch.float64, "sum", "bf16", "float64 in codec 'bf16'"),
        (torch.float32, "max", "int8", "'max' of torch.float32"),
        (torch.float32, "sum", "zip", "codec 'zip'"),
    ],
)
def test_what_a_codec_does_not_take_is_refused_and_harms_no_one(place, dtype, op, name, words):
    comms = place.on(two_nics(1, 1))
    with pytest.raises(InternalError, match=words):
        comms[0].all_reduce(torch.ones(4).to(dtype), op=op, codec=name)
    wait_all([c.barrier() for c in comms])


def test_a_codec_that_loses_time_is_not_used(place):
    comms = place.on(two_nics(2, 2, inside=8000 * MBIT, across=8000 * MBIT))
    buffers = contributions(4, COUNT)
    inputs = [b.clone() for b in buffers]
    works = [c.all_reduce(b, codec="onebit") for c, b in zip(comms, buffers, strict=True)]
    wait_all(works)
    assert torch.allclose(buffers[0], sum(inputs), atol=1e-5)
    assert "in onebit" in works[0].trace.what  # the permission is part of what the ranks mean
    assert not works[0].trace.what.endswith("onebit")  # but the plan makes no use of it


# -- residuals -------------------------------------------------------------------------------------------------------


def stepped(comms, residuals, recipe, step, name, *, commit=True):
    """One step; returns (sum of what was given, what the ranks got)."""
    buffers = contributions(len(comms), COUNT, step)
    exact = sum(b.double() for b in buffers)
    works = [
        c.all_reduce(b, codec=name, recipe=recipe, residuals=r, key="w")
        for c, b, r in zip(comms, buffers, residuals, strict=True)
    ]
    wait_all(works)
    assert same_bits(buffers)
    for r in residuals:
        r.commit() if commit else r.rollback()
    return exact, buffers[0].double()


def left(residuals):
    return sum(r.state_dict()["w"].double() for r in residuals)


@pytest.mark.parametrize("name", ["bf16", "int8", "onebit", "ternary"])
def test_over_steps_and_plans_the_ranks_get_all_that_was_given_up_to_the_last_residual(place, name):
    comms, residuals = place.on(two_nics(2, 2)), [Residuals() for _ in range(4)]
    given, got = torch.zeros(COUNT, dtype=torch.float64), torch.zeros(COUNT, dtype=torch.float64)
    # Ranges go to other ranks from plan to plan: even shares, all by one rank of each island, other islands, none coded.
    recipes = [
        crossing(name),
        crossing(name, weights=(0.0, 1.0, 1.0, 0.0)),
        crossing(name, groups=((0, 2), (1, 3)), weights=(1.0, 0.25, 1.0, 1.0)),
        Recipe(shape="ring", groups=(0, 1, 2, 3), weights=(1.0,) * 4),
    ]
    for step, recipe in zip(range(8), itertools.cycle(recipes), strict=False):
        exact, here = stepped(comms, residuals, recipe, step, name)
        given, got = given + exact, got + here
        assert torch.allclose(given, got + left(residuals), atol=2e-3)
    assert not left(residuals).any()  # the last plan had no codec: nothing was held back


def test_a_step_tried_again_gives_the_same_bits(place):
    comms, residuals = place.on(two_nics(2, 2)), [Residuals() for _ in range(4)]
    stepped(comms, residuals, crossing("int8"), 0, "int8")
    before = [r.state_dict()["w"] for r in residuals]
    _, first = stepped(comms, residuals, crossing("int8"), 1, "int8", commit=False)
    assert all(torch.equal(r.state_dict()["w"], b) for r, b in zip(residuals, before, strict=True))
    _, second = stepped(comms, residuals, crossing("int8"), 1, "int8")
    assert torch.equal(first, second)


def test_an_epoch_of_one_gives_what_it_still_holds_back(place):
    comms, residuals = place.on(two_nics(1, 1)), [Residuals(), Residuals()]
    recipe = Recipe(shape="islands", groups=(0, 1), weights=(1.0, 1.0), codec="onebit")
    stepped(comms, residuals, recipe, 0, "onebit")
    mine = residuals[0].state_dict()["w"]
    for comm in comms:
        comm.close()
    (alone,) = place.epoch(1, number=2)
    buffer = torch.ones(83, 241).t()  # of any layout
    wait_all([alone.all_reduce(buffer, codec="onebit", residuals=residuals[0], key="w")])
    residuals[0].commit()
    assert torch.equal(buffer.reshape(-1), torch.ones(COUNT) + mine)
    assert not residuals[0].state_dict()["w"].any()


def test_an_operation_that_is_poisoned_loses_nothing(place):
    comms, residuals = place.on(two_nics(1, 1)), Residuals()
    buffer = torch.ones(COUNT)
    recipe = Recipe(shape="islands", groups=(0, 1), weights=(1.0, 1.0), codec="onebit")
    work = comms[0].all_reduce(buffer, codec="onebit", recipe=recipe, residuals=residuals, key="w")
    comms[0].abort("given up")
    assert not work.wait(5)
    residuals.commit()
    assert residuals.state_dict() == {}
    assert torch.equal(buffer, torch.ones(COUNT))


@pytest.mark.parametrize("name", sorted(CODECS))
def test_what_ranks_hold_back_does_not_grow_with_the_steps(place, name):
    comms, residuals = place.on(two_nics(2, 2)), [Residuals() for _ in range(4)]
    sizes = []
    for step in range(40):
        stepped(comms, residuals, crossing(name), step, name)
        sizes.append(sum((r.state_dict()["w"].double() ** 2).sum().item() for r in residuals))
    assert max(sizes[20:]) < 1.5 * max(sizes[:20])


def test_losses_are_told_before_those_who_wait_can_commit(place, monkeypatch):
    hold, tell = threading.Event(), Work._tell
    monkeypatch.setattr(Work, "_tell", lambda work: (hold.wait(5), tell(work)))
    comms, residuals = place.on(two_nics(1, 1)), [Residuals(), Residuals()]
    stepped(comms, residuals, Recipe(shape="islands", groups=(0, 1), weights=(1.0, 1.0), codec="onebit"), 0, "onebit")
    hold.set()
    assert left(residuals).any()


def test_ranks_round_by_chances_of_their_own(place):
    comms = place.on(two_nics(1, 1))
    recipe = Recipe(shape="islands", groups=(0, 1), weights=(1.0, 1.0), codec="ternary")
    one = contributions(1, COUNT)[0]
    buffers = [one.clone(), one.clone()]
    wait_all([c.all_reduce(b, codec="ternary", recipe=recipe) for c, b in zip(comms, buffers, strict=True)])
    # With the same chances both send the same: every sum is twice -s, 0 or s, and never one s alone.
    sizes = buffers[0].view(-1)[:1024].abs()
    assert len({round(v, 4) for v in sizes.tolist()}) == 3
