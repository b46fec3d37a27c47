"""A benchmark as its user runs it: one quick part on a real lab."""

import json
import subprocess
import sys
from pathlib import Path

import lab_specs
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(lab_specs.REFUSED), reason=lab_specs.REFUSED)]


def run(*words):
    command = [sys.executable, "-m", "benchmarks.collectives", "--quick", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_quick_part_gives_its_figure_and_is_kept_for_the_next_run(tmp_path):
    kept, table = tmp_path / "kept.json", tmp_path / "table.md"
    first = run("--part", "2x2", "--resume", str(kept), "--table", str(table))
    assert first.returncode == 0, first.stderr
    figures = json.loads(first.stdout.splitlines()[-1])
    # Its bound is 3; this machine is not quiet, but a flat ring would give 1.
    assert figures["vs_gloo_2x2"] > 1.5
    assert figures["quick"]
    assert "vs_gloo_2x2" in table.read_text()

    again = run("--part", "2x2", "--resume", str(kept))
    assert "kept from" in again.stdout
    assert json.loads(again.stdout.splitlines()[-1]) == figures
