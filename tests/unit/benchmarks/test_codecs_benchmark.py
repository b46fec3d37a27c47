"""The benchmark of codecs: every codec has its figures, and what does not depend on the machine is right."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from atoll.collectives.torch_codecs import CODECS
from benchmarks import codecs


def test_quick_run_ends_with_one_line_of_figures_of_every_codec(capsys, monkeypatch):
    monkeypatch.setattr(codecs, "QUICK_COUNT", 40_000)
    assert codecs.main(["--quick"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["quick"]
    assert said["failed"] == []
    for name in [*CODECS, "ternary_by_chance"]:
        assert said[f"{name}_cpu_s_per_gb"] > 0
        assert 0 < said[f"{name}_off_by_bound"] <= 1
    assert said["int8_size"] <= 0.26
    # What is lost grows as bits fall.
    assert said["bf16_loss"] < said["int8_loss"] < said["ternary_loss"] < said["onebit_loss"] < 1


def test_ternary_is_measured_in_both_ways_of_rounding():
    found = codecs.contestants(np.ones(10, np.float32))
    assert {name: one.seed for name, one in found.items()} == dict.fromkeys(CODECS) | {"ternary_by_chance": 1}
