import os

import pytest

from atoll.errors import SpecError
from atoll.schema.durations import seconds
from atoll.workers.notice_runtime import VOID_S, read_notice
from atoll.workers.proc_memory import RECENT_S, MemoryKills


def given(tmp_path, text, *, at=1000.0):
    file = tmp_path / "notice"
    file.write_text(text)
    os.utime(file, (at, at))
    return file


@pytest.mark.parametrize(("text", "span"), [("30", 30), ("30s", 30), ("2 m", 120), ("1.5h", 5400), ("5MIN", 300)])
def test_span_of_time_is_read_as_people_write_it(text, span):
    assert seconds(text) == span


@pytest.mark.parametrize("text", ["", "soon", "-3s", "3 days", "1e9"])
def test_what_is_no_span_of_time_is_refused(text):
    with pytest.raises(SpecError, match="write 30s"):
        seconds(text)


def test_no_file_is_no_notice(tmp_path):
    assert read_notice(tmp_path / "notice", "n", 0.0) is None


def test_time_counts_from_when_the_notice_was_written(tmp_path):
    file = given(tmp_path, "120s\n")
    first, second = read_notice(file, "n", 1001.0), read_notice(file, "n", 1030.0)
    assert (first.left_s, second.left_s) == (119.0, 90.0)
    assert first.notice == second.notice == "given 1970-01-01T00:16:40.000+00:00"


def test_notice_past_its_time_leaves_none_and_one_long_past_is_void(tmp_path):
    file = given(tmp_path, "120s")
    assert read_notice(file, "n", 1000 + 121).left_s == 0.0
    assert read_notice(file, "n", 1000 + 121 + VOID_S) is None


@pytest.mark.parametrize("text", ["", '{"action": "terminate"}'])
def test_notice_without_a_readable_span_leaves_half_a_minute(tmp_path, text):
    assert read_notice(given(tmp_path, text), "n", 1000.0).left_s == 30.0


def counters(tmp_path, machine, own):
    (tmp_path / "vmstat").write_text(f"nr_free_pages 1\noom_kill {machine}\nthp 3\n")
    (tmp_path / "memory.events").write_text(f"low 0\noom 1\noom_kill {own}\noom_group_kill 0\n")
    return tmp_path / "vmstat"


@pytest.mark.parametrize("rise", [(1, 0), (0, 1)])
def test_kernels_kill_for_memory_is_seen_for_a_moment(tmp_path, rise):
    kills = MemoryKills(counters(tmp_path, 5, 7), tmp_path)
    assert not kills.recent(10.0)
    counters(tmp_path, 5 + rise[0], 7 + rise[1])
    assert kills.recent(11.0)
    assert not kills.recent(11.1 + RECENT_S)


def test_kills_of_long_ago_and_missing_counters_are_no_evidence(tmp_path):
    assert not MemoryKills(counters(tmp_path, 500, 3), tmp_path).recent(0.0)
    assert not MemoryKills(tmp_path / "no", tmp_path / "none").recent(0.0)
    assert not MemoryKills().recent(0.0)
