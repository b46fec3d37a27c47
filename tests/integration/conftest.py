"""One embedded Ray, control plane, agent and dashboard for all integration tests of a session."""

import shutil
import tempfile
import time
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="session")
def cluster_home():
    """ATOLL_HOME of the tests, with a short path: Unix sockets lie below it."""
    home = Path(tempfile.mkdtemp(prefix="atoll-t-", dir="/tmp"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(cluster_home):
    """A `ClusterInfo` that answers. Ending it must leave no process behind."""
    from atoll.control_plane import fs_cluster, ray_bootstrap

    info = ray_bootstrap.ensure(None, cluster_home, port=fs_cluster.free_port("127.0.0.1"), cpus=2)
    yield info
    ray_bootstrap.shutdown(info)
    left = [p for p in psutil.process_iter(["pid", "cmdline"]) if belongs(p, cluster_home)]
    _, left = psutil.wait_procs(left, timeout=5)
    assert [p.info for p in left] == []


def belongs(process, home):
    """True for a process that has anything of this home in its command line or holds one of its files."""
    try:
        if any(str(home) in word for word in process.info["cmdline"] or ()):
            return True
        return any(str(home) in file.path for file in process.open_files())
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def warm():
    """A process with torch imported, which forks sets of ranks."""
    from forked_ranks import Warm

    process = Warm("backend_ranks", "backend_faults")
    yield process
    process.close()


@pytest.fixture
def eventually():
    """`eventually(what, seconds)` waits until `what()` is true; integration tests may wait, with a deadline."""

    def wait(what, seconds=30.0):
        until = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < until, f"not within {seconds} s"
            time.sleep(0.1)
        return value

    return wait
