"""The scheduling benchmark as its user runs it: quick parts that need no cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_parts_give_their_figures_and_are_kept(tmp_path):
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.scheduling", "--quick", "--part", "events", "--part", "jct"]
    command += ["--resume", str(kept), "--table", str(tmp_path / "table.md")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["failed"] == []
    assert figures["events_per_s"] > 0
    # On virtual time: what it is does not depend on the machine.
    assert figures["simulated_jct_vs_fifo"] > 1
    assert set(json.loads(kept.read_text())["parts"]) == {"events", "jct"}
    assert "| simulated_jct_vs_fifo |" in (tmp_path / "table.md").read_text()
