"""The benchmark of checkpoints: what it counts, and the tables that it makes up."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import (
    checkpoint,
    checkpoint_parts_gpu,
    checkpoint_parts_read,
    checkpoint_parts_save,
    checkpoint_parts_tables,
)
from benchmarks.checkpoint_state import FULL, QUICK, local, tensors


def saved(by, *ranks):
    """One save as its ranks tell it: (staged, local, durable, blocked) of each."""
    return [
        {"by": by, "begun": 10.0, "staged": a, "local": b, "durable": c, "blocked_s": d, "call_s": 0.0}
        for a, b, c, d in ranks
    ]


def test_state_of_a_full_run_is_a_gibibyte_at_least():
    assert FULL.state_bytes >= 1 << 30
    assert QUICK.state_bytes < FULL.state_bytes / 10


def test_step_is_held_up_by_the_rank_that_is_held_up_longest():
    assert checkpoint_parts_save.held_up(saved("atoll", (11, 12, 13, 0.1), (11, 12, 13, 0.4))) == 0.4


def test_own_save_ends_with_the_record_and_a_peers_with_its_last_rank():
    moments = [(11, 12, 14, 0), (11.5, 13, 15, 0)]
    assert checkpoint_parts_save.written(saved("atoll", *moments)) == 3
    assert checkpoint_parts_save.written(saved("raw", *moments)) == 4
    assert checkpoint_parts_save.durable(saved("raw", *moments)) == 5


def test_phases_add_up_to_what_was_written():
    answers = saved("atoll", (11, 12, 14, 0), (11, 13, 15, 0))
    found = checkpoint_parts_save.phases([answers])
    assert sum(spread["median"] for spread in found.values()) == checkpoint_parts_save.written(answers)


@pytest.mark.parametrize("ranks", [7, 75, 100])
def test_made_up_cuts_cover_every_tensor_once(ranks):
    logicals = checkpoint_parts_tables.table(100_000).logicals
    found = checkpoint_parts_tables.cut(ranks, logicals)
    assert len(found.rank) == len(logicals) * ranks
    assert found.boxes.volumes().sum() == sum(one.count for one in logicals)
    assert np.array_equal(np.unique(found.rank), np.arange(ranks))


def test_tables_without_a_bar_in_a_quick_run_and_digests_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_parts_tables, "_QUICK_ROWS", 20_000)
    report = checkpoint_parts_tables.manifest(quick=True, place=tmp_path)
    assert {f.name: f.value for f in report.figures} == {"manifest_1m_open_ms": None, "plan_1m_s": None}
    assert report.details["plan_s"]["median"] > 0
    assert not list(tmp_path.iterdir())
    rates = {f.name: f.value for f in checkpoint_parts_tables.digest(quick=True, place=tmp_path).figures}
    assert all(rate > 0 for rate in rates.values())


def test_every_byte_read_is_counted(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    before = checkpoint_parts_read.rchar()
    file.read_bytes()
    assert 1 << 20 <= checkpoint_parts_read.rchar() - before < 2 << 20


def test_states_are_told_by_their_tensors():
    state = {"model": {"w": torch.ones(2)}, "optimizer": {"state": {"w": {"step": torch.tensor(1.0)}}, "lr": 0.1}}
    assert set(tensors(state)) == {"model.w", "optimizer.state.w.step"}
    assert local(state)["optimizer"]["lr"] == 0.1


def test_every_part_is_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        checkpoint.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in checkpoint.PARTS)


def test_saves_of_a_device_are_measured_on_the_host_alike(tmp_path):
    report = checkpoint_parts_gpu.measured(torch.device("cpu"), 1 << 20, 1, tmp_path)
    assert all(figure.value > 0 for figure in report.figures)
    assert not list(tmp_path.iterdir())
