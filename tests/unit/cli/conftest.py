import threading

import pytest
import uvicorn

from atoll.control_plane.rest_auth import Guard
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader
from atoll.control_plane.rest_server import application
from atoll.control_plane.rest_source import ClusterSource
from atoll.control_plane.web_server import bind

TOKEN = "cli-test-token"


class Cluster:
    """A cluster in memory that the command line reaches over a real socket."""

    def __init__(self):
        self.reader = MemoryReader()
        self.control = MemoryControl(self.reader)
        app = application(ClusterSource(self.reader, self.control))

        @app.get("/v1/models")
        async def models():
            return {"data": [{"id": "tiny"}]}

        listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        guarded = Guard(app, token=TOKEN, hosts=frozenset({"127.0.0.1"}))
        self._server = uvicorn.Server(uvicorn.Config(guarded, log_level="critical", timeout_graceful_shutdown=1))
        self._listener = listener
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="atoll-test-web", daemon=True)
        self._thread.start()

    @property
    def only_run(self):
        """The id of the one run."""
        (run,) = self.reader.views
        return run

    def close(self):
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """No settings of whoever runs the tests reach the command line under test."""
    for name in ("ATOLL_ADDRESS", "ATOLL_TOKEN", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cluster(monkeypatch, bare_environment):
    running = Cluster()
    monkeypatch.setenv("ATOLL_ADDRESS", running.url)
    monkeypatch.setenv("ATOLL_TOKEN", TOKEN)
    yield running
    running.close()


@pytest.fixture
def atoll(capsys, monkeypatch):
    """Run the command line in this process: `atoll("ls")` gives (exit code, stdout, stderr)."""
    from atoll import cli

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["atoll", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call
