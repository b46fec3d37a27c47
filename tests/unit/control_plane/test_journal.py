import errno
import os
import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from atoll.control_plane import records as r
from atoll.control_plane import sql_journal
from atoll.control_plane.fs_reserve import log_of, widen
from atoll.control_plane.sql_journal import Journal
from atoll.errors import ClusterError
from atoll.schema.messages import Member
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

SPEC = JobSpec(name="n", working_dir="/", file="f.py", config={"lr": 0.1})
MEMBER = Member(trainer="t", rank=0, node="n", host="h", port=1)
ALL = (
    r.RunSubmitted(run="r", spec=SPEC, run_dir="/d", secret="00", at=1.0),
    r.SeatTaken(run="r", seat="s", node="n", at=1.0),
    r.RunPlaced(run="r", at=1.0),
    r.TrainerAssigned(run="r", trainer="t", seat="s", at=1.0),
    r.TrainerBegan(run="r", trainer="t", pid=1, start_ticks=2, at=1.0),
    r.EpochRaised(run="r", epoch=1, members=(MEMBER,), reason="first", at=1.0),
    r.RunServing(run="r", at=1.0),
    r.CheckpointKept(run="r", step=3, path="/c", at=1.0),
    r.CopyDecided(run="r", step=3, record="one", at=1.0),
    r.CopyWithdrawn(run="r", step=3, record="one", at=1.0),
    r.TrainerEnded(run="r", trainer="t", end=r.End.LOST, was_ready=True, reason="killed", at=1.0),
    r.TrainerGone(run="r", trainer="t", evidence="exit", at=1.0),
    r.RunStopping(run="r", goal=RunState.FAILED, reason="why", exit_code=2, at=1.0),
    r.SeatFreed(run="r", seat="s", at=1.0),
    r.RunEnded(run="r", at=1.0),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def opened(path):
    return Journal(path, pid=1, at=1.0, wait_s=0.1)


def test_every_kind_of_record_comes_back_as_it_was(path):
    journal = opened(path)
    journal.append(ALL)
    journal.close()
    again = opened(path)
    assert tuple(again.records()) == ALL
    again.close()


def test_each_opening_is_a_higher_incarnation(path):
    numbers = []
    for _ in range(3):
        journal = opened(path)
        numbers.append(journal.incarnation)
        journal.close()
    assert numbers == [1, 2, 3]


def test_second_holder_is_refused_while_the_first_lives(path):
    first = opened(path)
    with pytest.raises(ClusterError, match="held by another control plane"):
        opened(path)
    first.close()


def test_file_is_closed_to_others(path):
    opened(path).close()
    assert path.stat().st_mode & 0o077 == 0


def test_vital_record_uses_the_reserve_on_a_full_disk(path, monkeypatch):
    journal = opened(path)
    write, full = journal._write, [True]

    def once_full(records):
        if full.pop() if full else False:
            raise OperationalError("INSERT", {}, OSError(errno.ENOSPC, "full"))
        write(records)

    monkeypatch.setattr(journal, "_write", once_full)
    journal.append((ALL[5],))
    assert journal.records() == [ALL[5]]
    assert not path.with_suffix(".reserve").exists()
    journal.close()


def test_new_work_is_refused_on_a_full_disk(path, monkeypatch):
    journal = opened(path)

    def always_full(_):
        raise OperationalError("INSERT", {}, OSError(errno.ENOSPC, "full"))

    monkeypatch.setattr(journal, "_write", always_full)
    with pytest.raises(OperationalError):
        journal.append((ALL[0],))
    assert path.with_suffix(".reserve").exists()
    journal.close()


def fill_disk(engine):
    """As on a full disk: the database may not grow by a page any more, so SQLite itself says that it is full."""
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def test_append_that_finds_the_disk_full_leaves_a_journal_that_goes_on_once_there_is_room(path):
    journal = opened(path)
    fill_disk(journal._engine)
    with pytest.raises(OperationalError, match="full"):
        journal.append((ALL[0],) * 5000)
    assert journal.records() == []
    with journal._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    journal.append((ALL[0],))
    assert journal.records() == [ALL[0]]
    journal.close()


def test_control_plane_started_on_a_full_disk_leads_by_the_reserve(path, monkeypatch):
    opened(path).close()
    take, full = sql_journal._take, [True]

    def once_full(*given):
        if full:
            full.pop()
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        return take(*given)

    monkeypatch.setattr(sql_journal, "_take", once_full)
    monkeypatch.setattr(sql_journal.Journal, "_refill", lambda self: None)
    journal = opened(path)
    assert journal.incarnation == 2
    assert not path.with_suffix(".reserve").exists()
    journal.close()


def test_control_plane_that_cannot_start_for_want_of_space_says_so(path, monkeypatch):
    def always_full(*_):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(sql_journal, "_take", always_full)
    with pytest.raises(ClusterError, match=r"is full: .*; free some space"):
        opened(path)


def test_log_has_its_space_beforehand_and_keeps_what_is_decided(path):
    journal = opened(path)
    log = log_of(path)
    assert log.stat().st_size == sql_journal.LOG_BYTES
    for _ in range(50):
        journal.append((ALL[0],))
    assert log.stat().st_size == sql_journal.LOG_BYTES
    journal.close()
    journal = opened(path)
    assert journal.records() == [ALL[0]] * 50
    journal.close()


def test_space_of_the_reserve_goes_to_the_log_before_others_take_it(path, monkeypatch):
    journal = opened(path)
    write, full = journal._write, [True]

    def once_full(records):
        if full.pop() if full else False:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        write(records)

    monkeypatch.setattr(journal, "_write", once_full)
    journal.append((ALL[5],))
    assert log_of(path).stat().st_size > sql_journal.LOG_BYTES
    journal.close()


def test_space_that_the_disk_has_not_changes_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    file = tmp_path / "log"
    file.write_bytes(b"kept")
    assert not widen(file, 4096)
    assert file.read_bytes() == b"kept"
    assert widen(file, 4)
