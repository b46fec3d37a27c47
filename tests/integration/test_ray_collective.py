"""Users of `ray.util.collective` choose the backend ATOLL: actors of a real Ray, all its operations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.control_plane import fs_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
DRIVER = Path(__file__).parent / "scripts" / "ray_collective_driver.py"
SIZE = 3


def test_actors_exchange_over_atoll_leave_nothing_and_name_a_lost_one(ray_cluster):
    record = fs_cluster.load(ray_cluster.cluster_dir)
    command = [sys.executable, str(DRIVER), record.ray_address, record.token_file]
    out = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert out.returncode == 0, out.stderr
    said = json.loads(out.stdout.splitlines()[-1])
    for rank, found in enumerate(said["found"]):
        assert found["sum"] == [6.0] * 4
        assert found["max"] == [3.0] * 4
        assert found["reduce"] == ([6.0] * 2 if rank == 1 else [rank + 1.0] * 2)
        assert found["told"] == [3.0] * 2
        assert found["lists"] == [[r, r] for r in range(SIZE)]
        assert found["piece"] == [6.0 * (rank + 1)] * 2
        assert found["got"] == ([0.0, 1.0, 2.0] if rank == 1 else [0.0] * 3)
    assert said["left"] == [[]] * SIZE
    for words in said["lost"]:
        assert "all_reduce of float32[2], operation 1 of group 'mixed' failed" in words
        assert "lost rank-2" in words
