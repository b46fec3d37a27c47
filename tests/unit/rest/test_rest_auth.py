import re

import pytest

from atoll.control_plane.rest_auth import host_name
from atoll.control_plane.rest_signin import COOKIE
from atoll.schema.codec import to_plain

PAGE = {"Accept": "text/html,*/*"}


@pytest.mark.parametrize("token", [None, "", "wrong", "t0ken-of-this-tes", "t0ken-of-this-test2", "tökén"])
def test_missing_or_wrong_token_is_refused_with_the_remedy(site, token):
    headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
    answer = site.get("/api/runs", token=None, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"
    assert "ATOLL_TOKEN" in answer.json()["problem"]
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/api/runs", "/metrics", "/api/openapi.json", "/v1/models", "/api/healthy"])
def test_every_path_but_health_needs_the_token(site, path):
    assert site.get(path, token=None).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "127.0.0.1@evil.example"])
def test_foreign_host_header_is_refused_even_with_the_token(site, host):
    assert site.get("/api/runs", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8440", "LOCALHOST:9", "127.0.0.1"])
def test_own_names_are_taken_on_any_port_since_ports_are_forwarded(site, host):
    assert site.get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8440"])
def test_request_of_a_page_of_another_origin_is_refused(site, origin, spec):
    answer = site.post("/api/runs", json=to_plain(spec), headers={"Origin": origin})
    assert answer.status_code == 403
    assert site.control.asked == []


def test_request_of_our_own_page_is_taken(site, spec):
    headers = {"Origin": "http://127.0.0.1:8440"}
    assert site.post("/api/runs", json=to_plain(spec), headers=headers).status_code == 201


def test_browser_without_a_session_is_sent_to_the_form(site):
    answer = site.get("/runs/tiny-1", token=None, headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/runs/tiny-1")
    form = site.get("/login?next=/runs/tiny-1", token=None)
    assert 'type="password"' in form.text
    assert "/login?next=/runs/tiny-1" in form.text


def test_form_with_the_token_sets_a_cookie_that_opens_pages_and_does_not_hold_the_token(site):
    answer = site.post("/login?next=/runs/x", token=None, data={"token": f" {site.token}\n"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/x")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert site.token not in cookie
    value = re.search(rf"{COOKIE}=([^;]+)", cookie)[1]
    assert site.get("/api/runs", token=None, headers={"Cookie": f"{COOKIE}={value}"}).status_code == 200
    assert site.get("/api/runs", token=value).status_code == 401


def test_form_with_a_wrong_token_says_so_and_sets_nothing(site):
    answer = site.post("/login", token=None, data={"token": "wrong"})
    assert answer.status_code == 401
    assert "not a token of this cluster" in answer.text
    assert "set-cookie" not in answer.headers


def test_link_with_the_token_signs_in_and_loses_it_from_the_address(site):
    answer = site.get(f"/runs/x?a=1&token={site.token}", token=None, headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/x?a=1")
    assert f"{COOKIE}=" in answer.headers["set-cookie"]
    assert site.token not in answer.headers["set-cookie"]
    assert site.get("/runs/x?token=wrong", token=None, headers=PAGE).headers["location"].startswith("/login")


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "http://evil.example", "/a\r\nX: y"])
def test_sign_in_leads_to_no_other_site(site, target):
    answer = site.ask("POST", "/login", token=None, params={"next": target}, data={"token": site.token})
    assert answer.headers["location"] == "/"


def test_form_body_that_is_too_large_is_not_read_to_its_end(site):
    assert site.post("/login", token=None, content=b"token=" + b"x" * 10_000).status_code == 401


def test_answers_may_be_neither_framed_nor_sniffed_nor_told_to_other_sites(site):
    headers = site.get("/api/runs").headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "change",
    [
        {"cookie": None},
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "https://127.0.0.1:8440"},
        {"origin": "null"},
        {"origin": None},
        {"sec-fetch-site": "cross-site"},
        {"cookie": "atoll_session=cluster.99999999999.00.00"},
    ],
)
def test_websocket_without_session_or_from_elsewhere_is_closed_before_it_opens(site, change):
    own = {"host": "127.0.0.1:8440", "origin": "http://127.0.0.1:8440", "cookie": site.sign_in()}
    assert site.websocket(own | change) == [("websocket.close", 1008)]


def test_websocket_of_our_own_page_reaches_the_application(site):
    own = {"host": "127.0.0.1:8440", "origin": "http://127.0.0.1:8440", "cookie": site.sign_in()}
    assert site.websocket(own) != [("websocket.close", 1008)]


def test_host_name_is_read_without_port_and_brackets():
    assert host_name("[::1]:80") == "::1"
    assert host_name("Example:80") == "example"
    assert host_name("[") == ""
