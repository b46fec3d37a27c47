"""A page of another origin can do nothing, a session proves its page, and whoever asked for what is written down."""

import re

import pytest

from atoll.control_plane.rest_auth import CSRF_HEADER
from atoll.control_plane.tries import BURST
from atoll.errors import ClusterError
from atoll.schema.codec import to_plain

OURS = {"Origin": "http://127.0.0.1:8440"}


@pytest.fixture
def browser(site):
    """Headers of a page of ours, signed in, that sends what it has to."""
    cookie = {"Cookie": site.sign_in()}
    csrf = site.get("/api/me", token=None, headers=cookie).json()["csrf"]
    return {**cookie, **OURS, CSRF_HEADER: csrf}


def submit(site, spec, headers):
    return site.post("/api/runs", token=None, json=to_plain(spec), headers=headers)


def test_page_of_ours_that_proves_itself_may_submit(site, spec, browser):
    assert submit(site, spec, browser).status_code == 201


@pytest.mark.parametrize(
    "change",
    [
        {CSRF_HEADER: None},
        {CSRF_HEADER: "wrong"},
        {CSRF_HEADER: "tökén".encode()},
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:8440"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ],
)
def test_change_by_session_without_proof_or_from_elsewhere_is_refused(site, spec, browser, change):
    headers = {name: value for name, value in {**browser, **change}.items() if value is not None}
    answer = submit(site, spec, headers)
    assert answer.status_code in {403, 421}
    assert answer.json()["code"] == "forbidden"
    assert site.control.asked == []


def test_csrf_of_another_session_is_refused(site, spec, browser):
    site.clock.at += 1
    other = {"Cookie": site.sign_in(site.user("ann"))}
    assert submit(site, spec, {**browser, **other}).status_code == 403


def test_csrf_is_told_to_a_session_and_not_to_a_bearer_token(site, browser):
    assert site.get("/api/me").json()["csrf"] == ""
    assert len(site.get("/api/me", token=None, headers=browser).json()["csrf"]) == 64


@pytest.mark.parametrize("path", ["/api/runs", "/api/health", "/login", "/v1/completions"])
def test_no_answer_allows_another_origin(site, path):
    asking = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for headers in (asking, OURS | {"Access-Control-Request-Method": "POST"}):
        answer = site.ask("OPTIONS", path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.status_code >= 400 or path == "/login"


def test_two_host_headers_are_refused(site):
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(b"host", b"127.0.0.1:8440"), (b"host", b"evil.example")]
    scope = {"type": "http", "method": "GET", "path": "/api/health", "query_string": b"", "headers": raw}
    import asyncio

    asyncio.run(site.app(scope, None, send))
    assert sent[0]["status"] == 421


def test_link_followed_from_another_site_signs_nobody_in(site):
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}
    answer = site.get(f"/?token={site.token}", token=None, headers=headers)
    assert answer.headers["location"].startswith("/login")
    assert "set-cookie" not in answer.headers


def test_token_in_the_address_of_a_call_is_not_taken(site):
    assert site.get(f"/api/runs?token={site.token}", token=None).status_code == 401


def test_cookie_over_tls_is_secure_and_bound_to_the_host(site):
    answer = site.post("/login", token=None, data={"token": site.token}, base="https://127.0.0.1:8440")
    assert re.match(r"__Host-atoll_session=", answer.headers["set-cookie"])
    assert "Secure" in answer.headers["set-cookie"]
    assert "Path=/" in answer.headers["set-cookie"]


def test_session_ends_by_the_form_of_its_own_page_alone(site, browser):
    page = site.get("/logout", token=None, headers=browser)
    field = re.search(r'value="(\w+)"', page.text)[1]
    site.post("/logout", token=None, headers=browser, data={"csrf": "wrong"})
    assert site.get("/api/me", token=None, headers=browser).status_code == 200
    answer = site.post("/logout", token=None, headers=browser, data={"csrf": field})
    assert answer.status_code == 303
    assert site.get("/api/me", token=None, headers=browser).status_code == 401


def test_sessions_of_a_revoked_token_end_with_it(site):
    cookie = {"Cookie": site.sign_in(site.user("ann"))}
    assert site.get("/api/me", token=None, headers=cookie).json()["user"] == "ann"
    site.post("/api/users/ann/revoke", json={})
    assert site.get("/api/me", token=None, headers=cookie).status_code == 401


def test_stream_ends_with_the_token_of_whoever_follows(site):
    site.add_run()
    token = site.user("ann", "viewer")
    caller = site.people.by_token(token, "here")
    assert site.people.still(caller) == caller
    site.post("/api/users/ann/revoke", json={})
    with pytest.raises(Exception, match="good no more"):
        site.people.still(caller)


def test_wrong_tokens_beyond_a_few_are_slowed_and_a_good_one_is_never_held_up(site):
    answers = [site.get("/api/runs", token="wrong") for _ in range(int(BURST) + 2)]
    assert [a.status_code for a in answers] == [401] * int(BURST) + [429, 429]
    assert answers[-1].json()["code"] == "too-many-tries"
    assert int(answers[-1].headers["retry-after"]) > 0
    assert site.get("/api/runs").status_code == 200
    assert site.post("/login", token=None, data={"token": site.token}).status_code == 429
    site.clock.at += 60
    assert site.post("/login", token=None, data={"token": site.token}).status_code == 303


def audited(site):
    return [(a["user"], a["method"], a["path"], a["status"], a["code"]) for a in site.get("/api/audit").json()]


def test_what_changes_something_is_written_down_with_who_and_what_came_of_it(site, spec):
    ann = site.user("ann")
    run = site.post("/api/runs", token=ann, json=to_plain(spec)).json()["run"]
    site.post("/api/runs/nope/stop", token=ann, json={})
    site.post(f"/api/runs/{run}/beat", token=ann, json={})
    site.get("/api/runs", token=ann)
    line = site.get("/api/audit?user=ann").json()[-1]
    assert audited(site) == [("ann", "POST", "/api/runs", 201, "")]
    assert (line["source"], line["at"], line["role"]) == ("127.0.0.1", site.clock.at, "user")
    assert run in line["note"]


def test_refusals_and_sign_ins_are_written_down_and_floods_are_not(site):
    eve = site.user("eve", "viewer")
    site.post("/api/runs", token=eve, json={})
    site.sign_in(eve)
    for _ in range(20):
        site.get("/api/runs", token="wrong")
    site.get("/api/runs", token=None)
    found = audited(site)
    assert found[-2:] == [("eve", "POST", "/login", 303, ""), ("eve", "POST", "/api/runs", 403, "forbidden")]
    assert found[:-2] == [("", "GET", "/api/runs", 401, "unauthorized")] * int(BURST)


def test_line_is_there_before_what_it_tells_of_is_done(site, spec):
    seen = []
    plain = site.control.invoke

    async def invoke(method, body):
        seen.extend(site.people._store.audit(0, 10, None))
        return await plain(method, body)

    site.control.invoke = invoke
    site.post("/api/runs", json=to_plain(spec))
    assert [(a.path, a.status) for a in seen] == [("/api/runs", 0)]


def test_on_a_full_disk_nothing_is_done_but_for_the_clusters_own_token(site, spec, capsys):
    ann = site.user("ann")

    def full(line):
        raise ClusterError("disk is full")

    site.people._store.begin = full
    answer = site.post("/api/runs", token=ann, json=to_plain(spec))
    assert (answer.status_code, answer.json()["code"]) == (409, "cluster-error")
    assert site.control.asked == []
    assert site.post("/api/runs", json=to_plain(spec)).status_code == 201
    assert "not in the audit log" in capsys.readouterr().err


@pytest.mark.parametrize("value", [str(2**63), "9" * 30, "-1", "x"])
def test_place_in_the_audit_log_that_no_line_has_is_refused(site, value):
    assert site.get(f"/api/audit?before={value}").status_code in {400, 422}


def test_every_number_in_a_query_is_one_that_a_store_can_hold(site):
    paths = site.get("/api/openapi.json").json()["paths"]
    found = [
        (path, p["name"], kind.get("maximum"))
        for path, methods in paths.items()
        for method in methods.values()
        for p in method.get("parameters", ())
        for kind in (p["schema"], *p["schema"].get("anyOf", ()))
        if kind.get("type") in {"integer", "number"}
    ]
    assert found
    assert [one for one in found if one[2] is None or one[2] > 2**63 - 1] == []


def test_token_is_shown_once_and_stands_in_no_other_answer(site):
    given = site.post("/api/users", json={"name": "ann", "role": "user"}).json()
    secret = given["token"].rpartition("_")[2]
    assert len(secret) == 64
    for path in ("/api/users", "/api/audit", "/api/teams", "/api/status", "/api/doctor"):
        assert secret not in site.get(path).text
        assert site.token not in site.get(path).text


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"name": "a b"}, "letters"),
        ({"name": "x", "days": 0}, "days=0"),
        ({"name": "x", "role": "king"}, "role"),
    ],
)
def test_user_that_cannot_be_added_is_refused_with_the_reason(site, body, problem):
    answer = site.post("/api/users", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
    assert problem in answer.json()["problem"]


def test_user_of_a_team_that_is_not_there_is_refused(site):
    answer = site.post("/api/users", json={"name": "x", "team": "nope"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert "no such team; there are: none" in answer.json()["problem"]


def test_user_of_a_name_that_is_taken_is_refused(site):
    answer = site.post("/api/users", json={"name": "admin"})
    assert (answer.status_code, answer.json()["code"]) == (409, "already-there")


def test_team_with_members_is_not_taken_away(site):
    site.ask("PUT", "/api/teams/research", json={"queues": ["a"]})
    site.user("ann", team="research")
    assert site.ask("PUT", "/api/teams/research", json={"queues": []}).status_code == 400
    site.post("/api/users/ann/revoke", json={})
    assert site.ask("PUT", "/api/teams/research", json={"queues": []}).status_code == 200
    assert site.get("/api/teams").json() == []


def test_same_submission_under_one_key_is_one_run(site, spec):
    key = {"Idempotency-Key": "k-1"}
    first = site.post("/api/runs", json=to_plain(spec), headers=key).json()["run"]
    again = site.post("/api/runs", json=to_plain(spec), headers=key)
    assert (again.status_code, again.json()["run"]) == (201, first)
    other = site.post("/api/runs", json={**to_plain(spec), "workers": 3}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "key-reused")
    assert list(site.reader.views) == [first]


def test_key_makes_no_run_id_out_of_one_that_cannot_be(site, spec):
    answer = site.post("/api/runs", json={**to_plain(spec), "run_id": ""}, headers={"Idempotency-Key": "k-2"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, "k\u00e9y".encode("latin-1")])
def test_key_that_is_none_is_refused(site, spec, key):
    answer = site.post("/api/runs", json=to_plain(spec), headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")


def test_cluster_token_cannot_be_rotated_or_revoked_over_rest(site):
    for wish in ("rotate", "revoke"):
        answer = site.post(f"/api/users/admin/{wish}", json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert site.post("/api/users/nobody/rotate", json={}).status_code == 404


def test_refusals_of_one_user_are_written_down_so_often_and_no_more(site):
    viewer, other = site.user("v", "viewer"), site.user("w", "viewer")
    answers = {site.post("/api/users", token=viewer, json={}).status_code for _ in range(int(BURST) + 20)}
    site.post("/api/users", token=other, json={})
    assert answers == {403}
    assert [line[0] for line in audited(site)] == ["w"] + ["v"] * int(BURST)


def test_wrong_tokens_in_the_form_are_written_down_so_often_and_no_more(site):
    for _ in range(int(BURST) + 20):
        site.post("/login", token=None, data={"token": "wrong"})
    assert len(audited(site)) == int(BURST)
