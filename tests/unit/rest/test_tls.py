"""TLS as `atoll up --tls` sets it up: who is trusted, for how long, and that nothing else is."""

import datetime as dt
import json
import ssl
import threading

import httpx
import pytest
import uvicorn
from cryptography import x509

from atoll import config
from atoll.client import Client
from atoll.control_plane import fs_cluster, fs_tls, web_server
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader
from atoll.errors import ConnectError, UserError

DAY_S = 86_400.0
NOW = dt.datetime.now(dt.UTC).timestamp()


def a_door(home, names=("head.example",), now=NOW, given=None):
    return fs_tls.open_door(home, "127.0.0.1", names, given, now=now)


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """The web server of a home with TLS; its URL."""
    a_door(tmp_path)
    app = web_server.create_app(MemoryReader(), control := MemoryControl(MemoryReader()), "own", dashboard=False)
    control.reader.hosts = []
    with web_server.bind("127.0.0.1", 0) as listener:
        stopped = []
        plain = uvicorn.Server.__init__

        def remember(self, options):
            plain(self, options)
            stopped.append(self)

        monkeypatch.setattr(uvicorn.Server, "__init__", remember)
        arguments = (app, listener, tmp_path / "beat", fs_tls.files(tmp_path))
        thread = threading.Thread(target=web_server.serve, args=arguments, name="atoll-test-tls", daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        stopped[0].should_exit = True
        thread.join(10)


def test_client_of_this_home_trusts_its_own_authority_and_speaks_to_it(serving, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path))
    with Client(serving, "own", patience_s=5) as client:
        assert client.me().user == "admin"


def test_client_of_another_home_refuses_it(serving, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "other"))
    a_door(tmp_path / "other")
    with Client(serving, "own", patience_s=0) as client, pytest.raises(ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        client.me()
    monkeypatch.setenv("ATOLL_CA", str(tmp_path / "tls" / "ca.pem"))
    with Client(serving, "own", patience_s=5) as client:
        assert client.version().protocol >= 1


def test_plain_http_is_not_answered_and_old_protocols_are_refused(serving, tmp_path):
    with pytest.raises(httpx.HTTPError):
        httpx.get(serving.replace("https", "http") + "/api/health", trust_env=False)
    context = config.trusted(tmp_path / "tls" / "ca.pem")
    answer = httpx.get(f"{serving}/api/health", verify=context, trust_env=False)
    assert answer.json() == {"ok": True}
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_certificate_is_for_the_names_of_the_server_and_its_key_is_closed_to_others(tmp_path):
    opened = a_door(tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / "tls" / "cert.pem").read_bytes())
    named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(named.get_values_for_type(x509.DNSName)) == {"head.example", "localhost"}
    assert {str(a) for a in named.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert opened.hosts() == {"head.example", "localhost", "127.0.0.1", "::1"}
    for name in ("key.pem", "ca.key"):
        assert (tmp_path / "tls" / name).stat().st_mode & 0o077 == 0


def test_certificate_is_made_anew_before_it_ends_under_the_same_authority(tmp_path):
    a_door(tmp_path)
    folder = tmp_path / "tls"
    before = {name: (folder / name).read_text() for name in ("ca.pem", "cert.pem")}
    fs_tls.renew(tmp_path, now=NOW + 300 * DAY_S)
    assert (folder / "cert.pem").read_text() == before["cert.pem"]
    fs_tls.renew(tmp_path, now=NOW + 380 * DAY_S)
    assert (folder / "cert.pem").read_text() != before["cert.pem"]
    assert (folder / "ca.pem").read_text() == before["ca.pem"]


def test_given_certificate_is_taken_and_trusted_as_it_is(tmp_path):
    a_door(tmp_path / "maker")
    certificate, key = fs_tls.files(tmp_path / "maker")
    given = fs_tls.Given(certificate=certificate, key=key)
    a_door(tmp_path / "user", given=given)
    assert (tmp_path / "user" / "tls" / "ca.pem").read_text() == certificate.read_text()
    fs_tls.renew(tmp_path / "user", now=NOW + 5000 * DAY_S)
    assert fs_tls.files(tmp_path / "user")[0].read_text() == certificate.read_text()


def test_files_that_are_no_certificate_are_refused(tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    with pytest.raises(UserError, match="no certificate and its key"):
        a_door(tmp_path, given=fs_tls.Given(certificate=tmp_path / "x.pem", key=tmp_path / "x.pem"))


def test_home_without_the_folder_listens_in_clear_on_this_host_alone(tmp_path):
    assert fs_tls.door(tmp_path).url(80) == "http://127.0.0.1:80"
    a_door(tmp_path)
    assert fs_tls.door(tmp_path).url(80) == "https://127.0.0.1:80"
    fs_tls.close(tmp_path)
    assert fs_tls.door(tmp_path) == fs_tls.Door()


def test_door_to_all_addresses_is_reached_on_this_host_by_the_loopback_one():
    opened = fs_tls.Door(tls=True, host="0.0.0.0")
    assert opened.url(443) == "https://127.0.0.1:443"
    assert "0.0.0.0" not in opened.hosts()
    assert fs_tls.Door(tls=True, host="fd00::1").url(443) == "https://[fd00::1]:443"


@pytest.mark.parametrize(("url", "expected"), [("https://127.0.0.1:1", True), ("http://127.0.0.1:1", False)])
def test_web_process_speaks_tls_where_clients_were_told_so(tmp_path, url, expected):
    a_door(tmp_path)
    record = fs_cluster.ClusterRecord(
        rest_url=url, ray_address="", control="", web_host="", web_port=1, node="n", embedded=True
    )
    fs_cluster.save(tmp_path, record)
    assert (web_server._tls(tmp_path, tmp_path) is not None) is expected


def test_up_refuses_to_listen_beyond_this_host_in_clear(monkeypatch, capsys, tmp_path):
    from atoll import cli

    monkeypatch.setenv("ATOLL_HOME", str(tmp_path))
    for words in (["--host", "0.0.0.0"], ["--tls-cert", "x"], ["--no-tls", "--host", "0.0.0.0"]):
        monkeypatch.setattr("sys.argv", ["atoll", "up", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert "need --tls" in capsys.readouterr().err


def test_tls_is_not_chosen_while_a_cluster_is_up(monkeypatch, capsys, tmp_path):
    from atoll import cli

    folder = fs_cluster.private_dir(tmp_path / "clusters" / "c")
    (folder / "cluster.json").write_text(json.dumps({"rest_url": "http://127.0.0.1:9", "ray_address": "a"}))
    (folder / "cluster.json").chmod(0o600)
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["atoll", "up", "--tls"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "run `atoll down` first" in capsys.readouterr().err
