from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from atoll.schema.messages import ReadLog
from atoll.workers.agent_files_runtime import (
    AgentRecord,
    private_dir,
    read_log,
    read_record,
    take_lock,
    write_record,
)
from atoll.workers.agent_messages import Saved
from atoll.workers.proc_runtime import end_session, fence, find_writer, lives, my_start_ticks, send_signal, start_ticks


@pytest.fixture
def sleeper(tmp_path):
    with (tmp_path / "out.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], stdout=out, start_new_session=True
        )
    yield process
    process.kill()
    process.wait()


def test_a_process_is_named_by_pid_and_start_time(sleeper):
    ticks = start_ticks(sleeper.pid)
    assert lives(sleeper.pid, ticks)
    assert not lives(sleeper.pid, ticks + 1)
    assert lives(os.getpid(), my_start_ticks())


def test_a_signal_for_an_earlier_process_of_the_same_pid_hits_nobody(sleeper):
    assert not send_signal(sleeper.pid, start_ticks(sleeper.pid) - 1, signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_fenced_process_is_dead_and_a_zombie_does_not_live(sleeper):
    ticks = start_ticks(sleeper.pid)
    assert fence(sleeper.pid, ticks)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(sleeper.pid, ticks)
    assert sleeper.wait() == -signal.SIGKILL
    assert not fence(sleeper.pid, ticks)


def test_no_pid_is_nobody():
    assert not lives(0, 0)
    assert not send_signal(0, 0, signal.SIGTERM)


def test_the_leader_of_a_session_is_spared_when_its_session_is_ended(sleeper):
    end_session(sleeper.pid, start_ticks(sleeper.pid))
    assert sleeper.poll() is None


def test_a_process_is_found_by_the_log_it_writes(sleeper, tmp_path):
    assert find_writer(tmp_path / "out.log").pid == sleeper.pid
    assert find_writer(tmp_path / "other.log") is None


def test_a_state_directory_has_one_agent(tmp_path):
    lock = take_lock(private_dir(tmp_path / "state"))
    assert take_lock(tmp_path / "state") is None
    os.close(lock)
    os.close(take_lock(tmp_path / "state"))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_record_is_read_back_and_a_damaged_one_is_none(tmp_path):
    record = AgentRecord(pid=1, start_ticks=2, fingerprint="f", saved=Saved(incarnation=3))
    assert read_record(tmp_path) is None
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    (tmp_path / "agent.json").write_bytes(b"{")
    assert read_record(tmp_path) is None


def test_a_log_chunk_never_cuts_a_character_in_two(tmp_path):
    path = tmp_path / "t.log"
    path.write_text("aé")
    first = read_log(ReadLog(request="q", run="r", trainer="t", offset=0, limit=2), path)
    assert (first.text, first.next_offset) == ("a", 1)
    rest = read_log(ReadLog(request="q", run="r", trainer="t", offset=1, limit=10), path)
    assert (rest.text, rest.next_offset) == ("é", 3)


def test_a_log_read_past_its_end_stays_there(tmp_path):
    path = tmp_path / "t.log"
    path.write_text("abc")
    chunk = read_log(ReadLog(request="q", run="r", trainer="t", offset=99, limit=2), path)
    assert (chunk.text, chunk.next_offset, chunk.problem) == ("", 3, "")
