"""Observations folded over time: a run's pace, a process, the lateness of observers."""

from hypothesis import given
from hypothesis import strategies as st

from atoll.fault.pace import ENOUGH, Pace
from atoll.fault.process import ProcessTrack
from atoll.fault.strain import MOST_S, WINDOW_S, Strain


def pace(*times, epoch=1):
    made = Pace()
    made.committed(epoch, 0, 99.0)
    for step, seconds in enumerate(times, 1):
        made.committed(epoch, step, seconds)
    return made


def test_pace_is_unknown_at_first():
    assert pace(*[0.1] * (ENOUGH - 1)).p99_s is None
    assert pace(*[0.1] * ENOUGH).p99_s == 0.1


def test_one_hiccup_does_not_change_the_pace():
    assert pace(*[0.1] * 20, 5.0).p99_s == 0.1
    assert pace(*[0.1] * 20, 5.0, 6.0).p99_s == 5.0


def test_first_step_of_an_epoch_says_nothing_about_the_pace():
    made = pace(*[0.1] * 9)
    for epoch in range(2, 9):
        made.committed(epoch, 8 + epoch, 3.0)
    assert made.p99_s == 0.1


def test_step_that_several_members_tell_counts_once():
    made = pace(*[0.1] * 9)
    for _ in range(4):
        made.committed(1, 10, 2.0)
    assert made.p99_s == 0.1


def test_pace_follows_a_run_that_became_slower():
    assert pace(*[0.1] * 300, *[0.4] * 200).p99_s == 0.4


def looks(*rows):
    track = ProcessTrack()
    return [track.looked(state=s, cpu_s=c, beat_age_s=0.0, late_s=0.0, at=at) for at, s, c in rows][-1]


def test_process_is_stopped_since_it_was_first_seen_so():
    assert looks((1.0, "S", 0.0), (2.0, "T", 0.0), (3.0, "T", 0.0)).stopped_at == 2.0


def test_process_that_goes_on_is_stopped_no_more():
    assert looks((2.0, "T", 0.0), (3.0, "R", 0.0)).stopped_at is None
    assert looks((2.0, "T", 0.0), (3.0, "R", 0.0), (4.0, "T", 0.0)).stopped_at == 4.0


def test_process_is_idle_since_its_time_last_went_on():
    assert looks((1.0, "S", 0.0), (2.0, "S", 0.5), (3.0, "S", 0.5), (9.0, "S", 0.51)).idle_at == 2.0


def test_pulse_alone_is_no_work():
    assert looks(*((float(i), "S", i * 0.001) for i in range(60))).idle_at == 0.0


def test_looks_in_quick_succession_hide_no_work():
    assert looks(*((i * 0.1, "R", i * 0.1) for i in range(60))).idle_at > 5.0


def test_strain_is_the_worst_of_the_last_seconds():
    strain = Strain()
    for at, late in ((0.0, 0.5), (1.0, 0.2), (2.0, 0.3)):
        strain.note(late, at=at)
    assert strain.worst(now=2.0) == 0.5
    assert strain.worst(now=WINDOW_S + 0.5) == 0.3
    assert strain.worst(now=WINDOW_S + 2.5) == 0.0


def test_process_that_was_stopped_for_a_minute_says_nothing_about_the_load():
    strain = Strain()
    strain.note(60.0, at=0.0)
    assert strain.worst(now=0.0) == MOST_S


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 2.0)), max_size=40))
def test_strain_equals_what_a_list_of_all_notes_would_say(steps):
    strain, notes, now = Strain(), [], 0.0
    for pause, late in steps:
        now += pause
        strain.note(late, at=now)
        notes.append((now, min(late, MOST_S) if late > 0.05 else 0.0))
        expected = max((n for at, n in notes if now - at <= WINDOW_S), default=0.0)
        assert strain.worst(now=now) == expected
