"""The dashboard's WebSocket in the real web process: it opens for a page of ours that is signed in, and for nobody else."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@pytest.fixture(scope="module")
def site():
    script = Path(__file__).resolve().parents[1] / "support" / "web_site.py"
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(20)


@pytest.fixture(scope="module")
def cookie(site):
    answer = httpx.post(f"{site['url']}/login", data={"token": site["eve"]}, trust_env=False)
    return "; ".join(f"{name}={value}" for name, value in answer.cookies.items())


def opened(site, **headers):
    given = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    origin = given.pop("Origin", None)
    url = site["url"].replace("http", "ws", 1) + SOCKET
    with connect(url, origin=origin, additional_headers=given, proxy=None, open_timeout=20) as socket:
        return str(socket.recv(20))


def test_page_of_ours_loads_everything_from_us_and_its_socket_opens(site, cookie):
    page = httpx.get(site["url"], headers={"Cookie": cookie}, trust_env=False, timeout=30)
    assert page.status_code == 200
    assert "Atoll" in page.text
    assert opened(site, Origin=site["url"], Cookie=cookie).startswith("0{")


@pytest.mark.parametrize(
    ("change"),
    [
        {"Cookie": None},
        {"Cookie": "atoll_session=wrong"},
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Host": "evil.example"},
    ],
)
def test_socket_from_elsewhere_or_without_a_session_does_not_open(site, cookie, change):
    with pytest.raises(InvalidStatus) as refused:
        opened(site, **{"Origin": site["url"], "Cookie": cookie} | change)
    assert refused.value.response.status_code == 403


def test_page_without_a_session_leads_to_the_form(site):
    answer = httpx.get(f"{site['url']}/runs/tiny-1", headers={"Accept": "text/html"}, trust_env=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/runs/tiny-1")
