import itertools

import pytest

from atoll.errors import TransitionError
from atoll.workers.transaction import TABLE, StepEvent, StepState, Transaction

NEVER_BACK = {StepState.COMMITTED, StepState.SETTLED}


def test_undisturbed_step_is_settled_after_vote_and_acknowledgement():
    step = Transaction(step=1, epoch=1)
    for event in (StepEvent.CAST, StepEvent.PASSED, StepEvent.ALL_KNOW):
        step = step.after(event)
    assert step.state is StepState.SETTLED
    assert step.committed


def test_committed_step_is_never_undone():
    for (state, _), after in TABLE.items():
        if state in NEVER_BACK:
            assert after in NEVER_BACK


def test_only_a_cast_vote_leads_to_commit():
    ways = {state for (state, _), after in TABLE.items() if after is StepState.COMMITTED}
    assert ways == {StepState.PREPARED, StepState.IN_DOUBT, StepState.COMMITTED}


def test_every_state_is_reached():
    assert {*TABLE.values(), StepState.COMPUTING} == set(StepState)


@pytest.mark.parametrize(
    ("state", "event"), [p for p in itertools.product(StepState, StepEvent) if p not in TABLE], ids=str
)
def test_pair_without_a_row_tells_its_story(state, event):
    with pytest.raises(TransitionError, match=f"{state} .*no row for {event}"):
        Transaction(step=4, epoch=2, state=state).after(event)
