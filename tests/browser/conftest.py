"""A real browser on a dashboard over an imagined cluster; both are ended by the pids that were started here."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 60


@pytest.fixture(scope="session")
def screenshot() -> ModuleType:
    spec = importlib.util.spec_from_file_location("atoll_screenshot", ROOT / "docs/screenshot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def chromium(screenshot) -> str:
    found = screenshot.find_chromium()
    if found is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` brings one")
    return found


@contextlib.contextmanager
def _serve(scene: str, at: float) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests/browser/imagined_cluster.py"), "--scene", scene, "--at", str(at)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        assert ready, f"the dashboard did not start within {START_S} s"
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture
def serve() -> Callable[[str, float], contextlib.AbstractContextManager[str]]:
    return _serve


@pytest.fixture(scope="module")
def story() -> Iterator[str]:
    """A run of more than a minute in which three trainers were lost."""
    with _serve("story", 70.0) as url:
        yield url


@pytest.fixture
def tab(screenshot, chromium):
    with screenshot.browser(chromium) as opened:
        opened.prepare()
        yield opened
