from __future__ import annotations

import math

import pytest

from atoll.schema.views import RunState
from atoll.ui import wording
from atoll.ui.wording import Tone


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, wording.NOTHING),
        (0, "0"),
        (1.58741, "1.587"),
        (12.3456, "12.35"),
        (9999.4, "9,999"),
        (123456.7, "123,457"),
        (0.00012345, "1.23e-04"),
        (-2.5, "-2.500"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
    ],
)
def test_a_measurement_has_four_significant_digits(value, words):
    assert wording.number(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, wording.NOTHING),
        (-1, "0 ms"),
        (0.2141, "214 ms"),
        (3.2, "3.20 s"),
        (125, "2 min 05 s"),
        (4320, "1 h 12 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds, words):
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (-3, "just now"),
        (9, "just now"),
        (47, "40 s ago"),
        (61, "1 min ago"),
        (7200, "2 h ago"),
        (200000, "2 d ago"),
    ],
)
def test_relative_times_are_coarse_so_that_they_stand_still(passed, words):
    assert wording.ago(1000.0, now=1000.0 + passed) == words


@pytest.mark.parametrize(
    ("value", "words"), [(17, "17 B"), (2048, "2.0 KiB"), (64 << 20, "64.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_take_the_unit_that_fits(value, words):
    assert wording.size(value) == words


@pytest.mark.parametrize("kind", ["EpochRaised", "epoch_raised", "epoch-raised", "epoch.raised"])
def test_kinds_of_every_spelling_read_the_same(kind):
    assert wording.kind_words(kind) == "Epoch raised"


@pytest.mark.parametrize(
    ("kind", "tone"),
    [
        ("CheckpointFailed", Tone.BAD),
        ("CheckpointCommitted", Tone.GOOD),
        ("TrainerExited", Tone.CARE),
        ("PeerDown", Tone.CARE),
        ("EpochRaised", Tone.ACTIVE),
        ("SomethingNew", Tone.CALM),
    ],
)
def test_an_event_has_the_tone_of_its_kind(kind, tone):
    assert wording.event_tone(kind) is tone


def test_every_state_of_a_run_has_a_shape_of_its_own():
    assert len({wording.run_glyph(state) for state in RunState}) == len(RunState)
    assert all(wording.run_tone(state) in Tone for state in RunState)


def test_logs_lose_colours_and_overwritten_progress():
    assert wording.plain_log("\x1b[32mok\x1b[0m\r\n 10%\r 90%\rdone\nlast") == ["ok", "done", "last"]
    assert wording.plain_log("\x1b]0;title\x07text") == ["text"]


def test_clock_times_are_utc():
    assert wording.clock_time(3661.0) == "01:01:01"


def test_one_is_not_many():
    assert [wording.plural(n, "spare") for n in (0, 1, 2)] == ["0 spares", "1 spare", "2 spares"]
