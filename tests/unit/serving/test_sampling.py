"""Which token follows from logits, settings and place."""

import pytest
import torch

from atoll.errors import NonFiniteError
from atoll.workers.engine import Sampling
from atoll.workers.torch_sampling import _narrow, choose

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))


def drawn(count=300, logits=LOGITS, **settings):
    return {choose(logits, Sampling(**settings), place) for place in range(count)}


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-9])
def test_temperature_of_nothing_takes_the_likeliest(temperature):
    assert drawn(20, LOGITS * 1e4, temperature=temperature) == {1}


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.8}, {1, 2, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 2, "top_p": 0.55}, {1}),
        ({"top_k": 2, "top_p": 0.6}, {1, 3}),
    ],
)
def test_top_k_and_top_p_keep_the_smallest_set_that_they_ask_for(settings, possible):
    assert drawn(**settings) == possible


def test_top_p_of_one_rules_nothing_out_where_sums_are_rounded():
    weights = torch.softmax(torch.linspace(0, 12, 50_000), dim=-1)
    assert float(weights.sort(descending=True).values.cumsum(0).max()) > 0.999
    assert torch.equal(_narrow(weights, Sampling(top_p=1.0)), weights)


def test_same_seed_and_place_make_the_same_token_and_others_do_not():
    logits = torch.zeros(1000)
    one = [choose(logits, Sampling(seed=3), place) for place in range(20)]
    assert one == [choose(logits, Sampling(seed=3), place) for place in range(20)]
    assert one != [choose(logits, Sampling(seed=4), place) for place in range(20)]
    assert len(set(one)) > 10


@pytest.mark.parametrize("seed", [-(1 << 63), -1, 0, (1 << 63) - 1])
def test_any_64_bit_seed_will_do(seed):
    assert 0 <= choose(LOGITS, Sampling(seed=seed), 7) < 4


def test_choosing_leaves_the_logits_and_the_global_generator_alone():
    logits, state = LOGITS.clone(), torch.get_rng_state()
    choose(logits, Sampling(top_k=2, top_p=0.5), 0)
    assert torch.equal(logits, LOGITS)
    assert torch.equal(torch.get_rng_state(), state)


def test_token_that_the_model_rules_out_is_never_chosen():
    assert drawn(logits=torch.tensor([float("-inf"), 0.0, 0.0])) == {1, 2}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_without_a_choice_are_an_error(bad, temperature):
    with pytest.raises(NonFiniteError, match="after 9 tokens"):
        choose(torch.tensor([0.0, bad]), Sampling(temperature=temperature), 9)
    with pytest.raises(NonFiniteError):
        choose(torch.full((2,), float("-inf")), Sampling(temperature=temperature), 9)


def test_half_precision_logits_are_taken():
    assert choose(LOGITS.bfloat16(), Sampling(top_p=0.3), 0) == 1
