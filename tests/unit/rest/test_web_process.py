import io
import json
import os
import threading

import httpx
import pytest

from atoll.control_plane import web_server
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader
from atoll.control_plane.rest_people import People
from atoll.control_plane.tries import BURST
from atoll.errors import PortInUse


def started_with(monkeypatch, capsys, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code = web_server.main()
    return code, capsys.readouterr().err


def a_config(tmp_path, port, **changes):
    plain = {"host": "127.0.0.1", "port": port, "cluster_dir": str(tmp_path), "home": str(tmp_path)}
    return json.dumps({**plain, "control": "127.0.0.1:1", "secret": "00" * 32, **changes})


def test_port_in_use_names_its_holder_and_the_way_out():
    with web_server.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 belongs to pid {os.getpid()} .*--port"):
            web_server.bind("127.0.0.1", port)


def test_web_process_on_a_taken_port_says_one_line_and_exits(monkeypatch, capsys, tmp_path):
    (tmp_path / "token").write_text("t")
    with web_server.bind("127.0.0.1", 0) as first:
        code, err = started_with(monkeypatch, capsys, a_config(tmp_path, first.getsockname()[1]))
    assert code == 3
    assert err.count("\n") == 1
    assert err.endswith("(port-in-use)\n")


def test_web_process_without_a_token_says_where_it_should_be(monkeypatch, capsys, tmp_path):
    code, err = started_with(monkeypatch, capsys, a_config(tmp_path, 0))
    assert code == 2
    assert f"{tmp_path / 'token'} does not exist; run `atoll up` first (unauthorized)" in err


@pytest.mark.parametrize("text", ["", "{", "{}", '{"host": 1}'])
def test_web_process_refuses_a_configuration_that_does_not_fit(monkeypatch, capsys, text):
    code, err = started_with(monkeypatch, capsys, text)
    assert code == 70
    assert err.endswith("(bad-message)\n")


async def alive(scope, receive, send):
    if scope["type"] == "lifespan":
        for answer in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{answer}.complete"})


def test_web_process_whose_cluster_directory_is_gone_ends(tmp_path):
    beat = tmp_path / "cluster" / "web.beat"
    beat.parent.mkdir()
    with web_server.bind("127.0.0.1", 0) as listener:
        serving = threading.Thread(target=web_server.serve, args=(alive, listener, beat))
        serving.start()
        wait = threading.Event()
        for _ in range(100):
            if beat.exists() or wait.wait(0.1):
                break
        beat.unlink()
        beat.parent.rmdir()
        serving.join(10)
        assert not serving.is_alive()


def test_forwarded_address_is_not_believed(tmp_path):
    beat = tmp_path / "cluster" / "web.beat"
    beat.parent.mkdir()
    reader = MemoryReader()
    app = web_server.create_app(reader, MemoryControl(reader), "t", dashboard=False, people=People("t"))
    wrong = {"Authorization": "Bearer wrong"}
    with web_server.bind("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = threading.Thread(target=web_server.serve, args=(app, listener, beat))
        serving.start()
        try:
            with httpx.Client(base_url=url, timeout=10) as client:
                answers = [
                    client.get("/api/me", headers={**wrong, "X-Forwarded-For": f"10.9.{n}.1"}).status_code
                    for n in range(int(BURST) + 5)
                ]
                lines = client.get("/api/audit", headers={"Authorization": "Bearer t"}).json()
        finally:
            beat.unlink()
            beat.parent.rmdir()
            serving.join(10)
    assert answers[-1] == 429
    assert {line["source"] for line in lines} == {"127.0.0.1"}
