"""The benchmark of checkpoints as its user runs it: one quick part with ranks, on a real disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_quick_part_gives_its_figures_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--quick", "--part", "read", "--dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["failed"] == []
    assert figures["quick"]
    # What is read does not depend on how fast: each byte once, whoever wrote it and whoever wants it.
    for case in ("1_to_4", "4_to_1", "4_to_3"):
        assert 1 <= figures[f"read_amplification_{case}"] <= 1.05
    assert not list(tmp_path.iterdir())
