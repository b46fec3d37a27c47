"""What a cluster keeps where, and which logs are fetched; the stores themselves are in tests/contracts."""

import asyncio
from pathlib import Path

import pytest

from atoll import config
from atoll.control_plane import fs_durable
from atoll.control_plane import records as r
from atoll.control_plane.arrow_metrics import Kept, surplus
from atoll.control_plane.durable_runtime import LogFetcher, Tidier
from atoll.control_plane.fs_durable import Durable
from atoll.control_plane.log_keeping import LATE_S, PIECES, LogKeeper
from atoll.control_plane.state import Cluster
from atoll.errors import ClusterError, ConnectError
from atoll.schema.messages import LogChunk
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

URL = "postgresql://u:secret@h/d"


def settings(**env):
    return config.load({"ATOLL_HOME": "/h", **env})


def test_cluster_without_settings_keeps_files_of_its_own(tmp_path):
    assert fs_durable.settle(tmp_path, settings()) == Durable()
    assert not (tmp_path / fs_durable.NAME).exists()
    assert Durable().journal(tmp_path) == tmp_path / "journal.sqlite"
    assert Path(Durable().opened_archive(tmp_path).uri) == tmp_path / "archive"
    assert (tmp_path / "archive").stat().st_mode & 0o077 == 0


def test_settings_of_the_first_start_hold_for_later_ones(tmp_path):
    wanted = Durable(database=URL, archive="s3://b/f", keep_days=7.0)
    assert (
        fs_durable.settle(tmp_path, settings(ATOLL_DATABASE=URL, ATOLL_ARCHIVE="s3://b/f", ATOLL_KEEP_DAYS="7"))
        == wanted
    )
    assert fs_durable.settle(tmp_path, settings()) == wanted == fs_durable.load(tmp_path)
    assert (tmp_path / fs_durable.NAME).stat().st_mode & 0o077 == 0
    assert wanted.journal(tmp_path) == wanted.history(tmp_path) == URL


def test_cluster_with_runs_does_not_begin_anew_in_another_database(tmp_path):
    (tmp_path / "journal.sqlite").touch()
    with pytest.raises(ClusterError, match=r"the runs of this cluster are in .*journal\.sqlite; unset it"):
        fs_durable.settle(tmp_path, settings(ATOLL_DATABASE=URL))
    fs_durable.settle(tmp_path, settings(ATOLL_ARCHIVE="/elsewhere"))


@pytest.mark.parametrize(
    ("env", "problem"),
    [({"ATOLL_DATABASE": "mysql://x/y"}, "names 'mysql'"), ({"ATOLL_KEEP_DAYS": "soon"}, "a number of days")],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, env, problem):
    with pytest.raises(ClusterError, match=problem):
        fs_durable.settle(tmp_path, settings(**env))
    assert not (tmp_path / fs_durable.NAME).exists()


def test_damaged_settings_are_no_reason_to_begin_anew(tmp_path):
    (tmp_path / fs_durable.NAME).write_text("{")
    with pytest.raises(ClusterError, match="correct it, or delete it"):
        fs_durable.load(tmp_path)


def test_files_go_by_age_and_by_size_the_oldest_first():
    files = [Kept(run=name, bytes=10, at=at) for name, at in (("a", 1.0), ("b", 5.0), ("c", 9.0))]
    assert surplus(files, now=10.0, keep_s=6.0, keep_bytes=99) == ["a"]
    assert surplus(files, now=10.0, keep_s=99.0, keep_bytes=15) == ["a", "b"]
    assert surplus(files, now=10.0, keep_s=99.0, keep_bytes=30) == []


# -- logs ------------------------------------------------------------------------------------------------------------


def cluster(*, ended=None, gone=False, trainers=("t",)):
    """A run with trainers that began on one node."""
    made = Cluster(incarnation=1)
    spec = JobSpec(name="n", working_dir="/", file="f.py")
    records = [
        r.RunSubmitted(run="r", spec=spec, run_dir="/d", secret="00", at=1.0),
        r.RunPlaced(run="r", at=1.0),
    ]
    for name in trainers:
        records += [
            r.SeatTaken(run="r", seat=f"s{name}", node="n", at=1.0),
            r.TrainerAssigned(run="r", trainer=name, seat=f"s{name}", at=1.0),
            r.TrainerBegan(run="r", trainer=name, pid=1, start_ticks=2, at=1.0),
        ]
    if gone:
        lost = r.TrainerEnded(run="r", trainer="t", end=r.End.LOST, was_ready=True, reason="k", at=2.0)
        records += [lost, r.TrainerGone(run="r", trainer="t", evidence="exit", at=2.0)]
    if ended is not None:
        stopping = r.RunStopping(run="r", goal=RunState.STOPPED, reason="x", exit_code=1, at=2.0)
        records += [stopping, r.RunEnded(run="r", at=ended)]
    for record in records:
        made.apply(record)
    return made


class Log:
    """A log that an agent answers from."""

    def __init__(self, text=""):
        self.text, self.away, self.asked = text, False, 0

    async def ask(self, want):
        self.asked += 1
        if self.away:
            raise ConnectError("away")
        piece = self.text[want.offset : want.offset + 4]
        return LogChunk(request="", text=piece, next_offset=want.offset + len(piece))


class Clock:
    def now(self):
        return 10.0


def rounds(made, log, number=1, known=None):
    kept = []

    async def go():
        fetcher = LogFetcher(LogKeeper(known or {}), made, Clock(), log.ask)
        for _ in range(number):
            await fetcher.round(kept.append)

    asyncio.run(go())
    return kept


def test_log_is_fetched_in_pieces_to_its_end_and_on_from_where_the_history_ends():
    assert [(k.start, k.text) for k in rounds(cluster(), Log("0123456789"))] == [(0, "0123"), (4, "4567"), (8, "89")]
    assert [k.text for k in rounds(cluster(), Log("0123456789"), known={("r", "t"): 8})] == ["89"]


def test_log_of_a_process_that_is_gone_is_asked_for_until_nothing_is_new():
    living, gone = Log("abc"), Log("abc")
    rounds(cluster(), living, 3)
    rounds(cluster(gone=True), gone, 3)
    assert (living.asked, gone.asked) == (4, 2)


def test_one_long_log_does_not_hold_up_the_others():
    log = Log("x" * 4 * 100)
    assert len(rounds(cluster(), log)) == PIECES
    assert len(rounds(cluster(), log, 2)) == 2 * PIECES


def test_agent_that_is_away_is_asked_again_once_in_each_round():
    log = Log("abc")
    log.away = True
    assert rounds(cluster(trainers=("t", "u", "v")), log, 2) == []
    assert log.asked == 2


def test_runs_that_ended_long_ago_are_left_alone():
    assert LogKeeper({}).wanted(cluster(gone=True, ended=3.0), 10.0)
    assert not LogKeeper({}).wanted(cluster(gone=True, ended=3.0), 4.0 + LATE_S)


def test_archive_that_fails_is_said_and_tried_again(monkeypatch):
    class Fails:
        tries = 0

        def tidy(self, now):
            self.tries += 1
            if self.tries == 1:
                raise OSError("no space")

        def close(self):
            pass

    trims = []
    monkeypatch.setattr("atoll.control_plane.durable_runtime.trim", lambda: trims.append(1))
    archivist = Fails()
    tidier = Tidier(lambda: archivist, Clock())
    tidier.tidy()
    assert tidier.problem == "metrics are not archived: no space"
    tidier.tidy()
    assert (tidier.problem, archivist.tries, len(trims)) == ("", 2, 2)
    tidier.close()
