from __future__ import annotations

import dataclasses

from atoll.workers.supervision import Action, Seen, Supervision

HEALTHY = Seen(attached=True, stream=1, beating=True, frames=1, web_lives=True, ensure_lives=False)
STOPPED = dataclasses.replace(HEALTHY, stopped=True)
AWAY = dataclasses.replace(HEALTHY, attached=False)


def looks(supervision, seen, start, seconds, step=0.25):
    """(time, action) of looking at the same thing for a while."""
    found, now = [], start
    while now < start + seconds:
        found += [(now - start, action) for action in supervision.look(seen, now=now)]
        now += step
    return found


def test_a_stopped_control_plane_is_killed_once_after_three_seconds():
    supervision = Supervision()
    assert looks(supervision, STOPPED, 0.0, 90.0) == [(3.0, Action.KILL_STOPPED_CONTROL)]


def test_a_silent_control_plane_that_may_be_slow_has_thirty_seconds():
    supervision = Supervision()
    assert looks(supervision, HEALTHY, 0.0, 90.0) == [(30.0, Action.KILL_SILENT_CONTROL)]


def test_a_slow_control_plane_that_beats_again_is_left_alone():
    supervision = Supervision()
    assert looks(supervision, HEALTHY, 0.0, 25.0) == []
    later = dataclasses.replace(HEALTHY, frames=2)
    assert supervision.look(later, now=25.0) == []
    assert looks(supervision, later, 25.25, 25.0) == []
    stopped = dataclasses.replace(STOPPED, frames=2)
    assert supervision.look(stopped, now=50.25) == [Action.KILL_STOPPED_CONTROL]


def test_a_beating_control_plane_is_left_alone():
    supervision = Supervision()
    for n in range(200):
        seen = dataclasses.replace(HEALTHY, frames=n // 4)
        assert supervision.look(seen, now=n / 4) == []


def test_a_control_plane_that_never_beats_is_not_killed_for_silence():
    supervision = Supervision()
    assert looks(supervision, dataclasses.replace(HEALTHY, beating=False), 0.0, 60.0) == []


def test_a_stall_of_the_agent_kills_nobody():
    supervision = Supervision()
    supervision.look(HEALTHY, now=0.0)
    assert supervision.look(HEALTHY, now=120.0) == []


def test_the_next_stream_may_be_killed_again():
    supervision = Supervision()
    looks(supervision, STOPPED, 0.0, 4.0)
    second = dataclasses.replace(STOPPED, stream=2, frames=2)
    assert looks(supervision, second, 4.0, 4.0) == [(2.75, Action.KILL_STOPPED_CONTROL)]


def test_a_control_plane_away_for_ten_seconds_is_created_again_with_growing_pauses():
    supervision = Supervision()
    found = looks(supervision, AWAY, 0.0, 60.0)
    assert {action for _, action in found} == {Action.START_ENSURE}
    assert [at for at, _ in found] == [10.0, 12.0, 16.0, 24.0, 40.0]


def test_only_one_creation_runs_and_a_hung_one_is_ended():
    supervision = Supervision()
    looks(supervision, AWAY, 0.0, 10.5)
    running = dataclasses.replace(AWAY, ensure_lives=True)
    assert looks(supervision, running, 10.5, 60.0) == []
    assert supervision.look(running, now=101.0) == [Action.KILL_ENSURE]


def test_a_web_process_that_does_not_stay_is_started_with_growing_pauses():
    supervision = Supervision()
    found = looks(supervision, dataclasses.replace(HEALTHY, web_lives=False, beating=False), 0.0, 8.0)
    assert found == [(at, Action.START_WEB) for at in (0.0, 0.5, 1.5, 3.5, 7.5)]


def test_a_web_process_that_stayed_is_started_at_once_when_it_ends():
    supervision = Supervision()
    gone = dataclasses.replace(HEALTHY, web_lives=False, beating=False)
    looks(supervision, gone, 0.0, 4.0)
    looks(supervision, dataclasses.replace(gone, web_lives=True), 4.0, 40.0)
    supervision.look(gone, now=44.0)
    assert looks(supervision, gone, 44.25, 0.75) == [(0.25, Action.START_WEB)]


def test_a_web_process_that_stops_beating_is_killed_once_after_ten_seconds():
    supervision = Supervision()
    calm = dataclasses.replace(HEALTHY, beating=False)
    for second in range(1, 4):
        assert supervision.look(dataclasses.replace(calm, web_beat=second), now=float(second)) == []
    found = looks(supervision, dataclasses.replace(calm, web_beat=3), 3.0, 30.0)
    assert found == [(10.0, Action.KILL_WEB)]


def test_a_web_process_is_not_judged_by_the_beat_of_the_one_before():
    supervision = Supervision()
    starting = dataclasses.replace(HEALTHY, beating=False, web_beat=7)
    assert looks(supervision, starting, 0.0, 30.0) == []
