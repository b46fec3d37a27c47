"""The scheduler alone: who computes what in the next step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.workers.engine import Finish, Request, Sampling
from atoll.workers.engine_core import Scheduler


def scheduler(**changes):
    return Scheduler(**{"slots": 2, "context": 32, "budget": 4, "vocab": 10, **changes})


def request(name, length, most=3, **sampling):
    return Request(id=name, prompt=(1,) * length, sampling=Sampling(max_tokens=most, **sampling))


def step(s, token=5):
    """One step as an engine makes it: [(request, finish)] of those that got a token, and the batch."""
    batch = s.plan()
    chunks = (*batch.decode, *batch.prefill)
    s.computed(chunks)
    return [(c.request, s.emit(c.request, token)) for c in chunks if c.last], batch


def test_prompt_longer_than_the_budget_is_computed_in_chunks():
    s = scheduler()
    s.add(request("a", 10))
    taken = []
    for _ in range(3):
        emitted, batch = step(s)
        taken += [(c.start, len(c.tokens), c.last) for c in batch.prefill]
    assert taken == [(0, 4, False), (4, 4, False), (8, 2, True)]
    assert emitted == [("a", None)]


def test_running_request_gets_its_token_in_each_step_while_a_long_prompt_comes():
    s = scheduler()
    s.add(request("a", 2, most=9))
    step(s)
    s.add(request("b", 12))
    for _ in range(4):
        emitted, batch = step(s)
        assert [c.request for c in batch.decode] == ["a"]
        assert sum(len(c.tokens) for c in batch.prefill) == 3
    assert ("b", None) in emitted


def test_what_one_prompt_leaves_of_the_budget_goes_to_the_next():
    s = scheduler()
    s.add(request("a", 3))
    s.add(request("b", 3))
    batch = s.plan()
    assert [(c.request, len(c.tokens), c.last) for c in batch.prefill] == [("a", 3, True), ("b", 1, False)]


def test_prompts_are_computed_first_come_first_served():
    s = scheduler(slots=1)
    for name in "abc":
        s.add(request(name, 2, most=1))
    assert [step(s)[0][0][0] for _ in "abc"] == ["a", "b", "c"]
    assert not s.busy


def test_slot_of_an_ended_request_is_used_by_the_next():
    s = scheduler(slots=1)
    s.add(request("a", 1, most=1))
    s.add(request("b", 1, most=1))
    slots = [step(s)[1].prefill[0].slot for _ in "ab"]
    assert slots == [0, 0]


def test_plan_made_twice_before_it_is_computed_takes_no_second_slot():
    s = scheduler()
    s.add(request("a", 6))
    assert s.plan() == s.plan()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_while_waiting_in_prefill_and_in_decode_frees_the_slot(steps):
    s = scheduler(slots=1)
    s.add(request("a", 6))
    for _ in range(steps):
        step(s)
    assert s.abort("a")
    assert not s.abort("a")
    assert not s.busy
    s.add(request("b", 1, most=1))
    assert step(s)[0] == [("b", Finish.LENGTH)]


def test_abort_of_one_that_waits_behind_a_full_house_leaves_the_others():
    s = scheduler(slots=1)
    for name in "abc":
        s.add(request(name, 1, most=2))
    step(s)
    assert s.abort("b")
    assert [step(s)[0] for _ in range(3)] == [[("a", Finish.LENGTH)], [("c", None)], [("c", Finish.LENGTH)]]


def test_computed_of_an_aborted_request_is_ignored():
    s = scheduler()
    s.add(request("a", 6))
    batch = s.plan()
    s.abort("a")
    s.computed(batch.prefill)
    assert not s.busy


def test_stop_token_ends_a_request_even_as_its_last_token():
    s = scheduler()
    s.add(request("a", 1, most=1, stop_tokens=frozenset({5})))
    assert step(s)[0] == [("a", Finish.STOP)]


def test_context_full_ends_a_request():
    s = scheduler(context=4)
    s.add(request("a", 2, most=99))
    assert [step(s)[0][0][1] for _ in range(2)] == [None, Finish.LENGTH]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ((), "prompt is empty"),
        ((1,) * 32, "32 tokens, the model's context is 32: shorten the prompt to 31"),
        ((1, 10), "place 1 is not in the vocabulary, give ids from 0 to 9"),
        ((-1,), "place 0"),
        ((1 << 20000,), "place 0"),
    ],
)
def test_prompt_that_can_never_run_is_refused(prompt, said):
    s = scheduler()
    with pytest.raises(SpecError, match=said):
        s.add(Request(id="a", prompt=prompt, sampling=Sampling()))
    assert not s.busy


def test_max_tokens_below_one_is_refused():
    with pytest.raises(SpecError, match="max_tokens=0"):
        scheduler().add(request("a", 1, most=0))


def test_id_in_use_is_refused_while_waiting_and_while_running():
    s = scheduler()
    s.add(request("a", 1))
    with pytest.raises(SpecError, match="'a' is here already"):
        s.add(request("a", 2))
    step(s)
    with pytest.raises(SpecError, match="'a' is here already"):
        s.add(request("a", 2))


@pytest.mark.parametrize(("slots", "budget"), [(0, 4), (5, 4)])
def test_budget_below_the_slots_is_refused(slots, budget):
    with pytest.raises(SpecError, match=f"slots={slots}, budget={budget}"):
        scheduler(slots=slots, budget=budget)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 20), st.integers(1, 6)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("step"), st.integers(0, 9), st.just(0)),
    ),
    max_size=40,
)


def check_batch(batch, budget, slots):
    chunks = (*batch.decode, *batch.prefill)
    assert sum(len(c.tokens) for c in chunks) <= budget
    assert len({c.slot for c in chunks}) == len(chunks) == len({c.request for c in chunks})
    assert all(0 <= c.slot < slots for c in chunks)
    assert all(len(c.tokens) == 1 and c.last for c in batch.decode)


@settings(max_examples=150, deadline=None)
@given(acts=ACTS, slots=st.integers(1, 3), extra=st.integers(0, 4))
def test_no_slot_is_shared_the_budget_holds_and_every_request_ends(acts, slots, extra):
    budget = slots + extra
    s, open_requests, holds, made = scheduler(slots=slots, budget=budget, context=24), {}, {}, 0

    def one_step(token):
        emitted, batch = step(s, token)
        check_batch(batch, budget, slots)
        for c in (*batch.decode, *batch.prefill):
            assert holds.setdefault(c.request, c.slot) == c.slot
        assert len(set(holds.values())) == len(holds), "two requests hold one slot"
        for name, finish in emitted:
            open_requests[name] -= 1
            assert open_requests[name] >= 0
            if finish is not None:
                del open_requests[name], holds[name]

    for act, number, most in acts:
        if act == "add":
            s.add(request(f"r{made}", number, most, stop_tokens=frozenset({0})))
            open_requests[f"r{made}"] = most
            made += 1
        elif act == "abort":
            assert s.abort(f"r{number}") == (f"r{number}" in open_requests)
            open_requests.pop(f"r{number}", None)
            holds.pop(f"r{number}", None)
        else:
            one_step(number)
    for _ in range(1000):
        if not s.busy:
            break
        one_step(1)
    assert not open_requests
    assert not s.busy
