"""A disk that takes no more while training writes: `/dev/full` refuses as a full disk does."""

import json
import os

import pytest

from atoll.workers.fs_account import AccountFile
from atoll.workers.fs_output import PatientLines, log_stream


@pytest.fixture
def log(tmp_path):
    """`(fd, fill, free)`: a file whose descriptor leads to a full disk after `fill`, and to the file after `free`."""
    path = tmp_path / "log"
    real = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    full = os.open("/dev/full", os.O_WRONLY)
    fd = os.dup(real)
    yield path, fd, lambda: os.dup2(full, fd), lambda: os.dup2(real, fd)
    for each in (real, full, fd):
        os.close(each)


def test_print_to_a_full_disk_raises_nothing_and_the_log_says_later_what_is_missing(log):
    path, fd, fill, free = log
    out = log_stream(fd)
    print("before", file=out)
    fill()
    print("never seen", file=out)
    out.flush()
    print("nor this", file=out)
    free()
    print("after", file=out)
    lost = len("never seen\nnor this\n")
    assert path.read_text() == f"before\n\natoll: {lost} bytes of output were lost, the disk was full\nafter\n"


def test_print_to_a_broken_file_still_raises(log):
    _, fd, _, _ = log
    unwritable = os.open("/dev/null", os.O_RDONLY)
    os.dup2(unwritable, fd)
    os.close(unwritable)
    out = log_stream(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        print("text", file=out)
    with pytest.raises(OSError, match="Bad file descriptor"):
        out.close()


def test_lines_of_the_account_wait_for_room_and_keep_their_order(log):
    path, fd, fill, free = log
    lines = PatientLines(fd)
    assert lines.write(b"1\n")
    fill()
    assert not lines.write(b"2\n")
    assert not lines.write(b"3\n")
    assert lines.waiting_bytes == 4
    free()
    assert lines.write(b"4\n")
    assert path.read_bytes() == b"1\n2\n3\n4\n"


def test_full_disk_stops_no_trainer_and_is_said_once(tmp_path, capsys, lone_host):
    host = lone_host()
    account = AccountFile(tmp_path, host.identity.trainer)
    full, real = os.open("/dev/full", os.O_WRONLY), os.dup(account._file)
    os.dup2(full, account._file)
    for step in (1, 2, 3):
        account.write(json.dumps({"committed": step}) + "\n")
    assert capsys.readouterr().err.count("the disk is full") == 1
    os.dup2(real, account._file)
    account.close()
    written = (tmp_path / "account" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["committed"] for line in written] == [1, 2, 3]
    os.close(full)
    os.close(real)


def test_account_that_never_found_room_says_what_it_lacks(tmp_path, capsys, lone_host):
    account = AccountFile(tmp_path, lone_host().identity.trainer)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, account._file)
    account.write("line\n")
    account.close()
    assert "5 bytes never found room" in capsys.readouterr().err
    os.close(full)
