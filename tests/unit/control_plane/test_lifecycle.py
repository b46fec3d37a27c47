import pytest

from atoll.control_plane.lifecycle import END_OF_GOAL, TABLE, Move, after
from atoll.errors import TransitionError
from atoll.schema.views import RunState


def test_every_state_but_the_first_is_reached():
    assert {RunState.QUEUED, *TABLE.values()} == set(RunState)


def test_no_way_leads_out_of_an_ended_run():
    assert not [pair for pair in TABLE if pair[0].ended]


def test_every_end_is_a_goal():
    assert {s for s in RunState if s.ended} == set(END_OF_GOAL)


@pytest.mark.parametrize("state", RunState)
@pytest.mark.parametrize("move", Move)
def test_pair_without_a_row_says_what_is_possible(state, move):
    if (state, move) in TABLE:
        assert after("r", state, move) is TABLE[state, move]
    else:
        with pytest.raises(TransitionError, match=f"run r is {state}: cannot {move}"):
            after("r", state, move)
