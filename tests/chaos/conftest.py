"""An embedded cluster of its own: what happens here must not meet other tests."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chaos_home():
    """ATOLL_HOME with a short path: Unix sockets lie below it."""
    home = Path(tempfile.mkdtemp(prefix="atoll-c-", dir="/tmp"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(chaos_home):
    """A `ClusterInfo` that answers."""
    from atoll.control_plane import fs_cluster, ray_bootstrap

    info = ray_bootstrap.ensure(None, chaos_home, port=fs_cluster.free_port("127.0.0.1"), cpus=2)
    yield info
    ray_bootstrap.shutdown(info)
