"""The table of permissions against the router: no endpoint without a row, and no row that anybody slips past."""

import dataclasses
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route

from atoll.control_plane.identity import Caller
from atoll.control_plane.permissions import TABLE, UNKNOWN, required, submitted_by
from atoll.control_plane.rest_people import People
from atoll.control_plane.rest_server import application
from atoll.errors import ForbiddenError
from atoll.schema.codec import to_plain
from atoll.schema.people import Role
from atoll.schema.views import NodeView, RunState

FILLED = {"run": "tiny-1", "node": "node-1", "user": "bob", "team": "research"}
QUERY = {"/api/story": "?subject=tiny-1", "/api/runs/{run}/logs": "?trainer=tiny-1-t0"}
NEEDING = [(method, path, needs) for (method, path), needs in TABLE.items() if needs.role is not None]


def routes_of(app):
    """(method, template) of everything that a router holds, the included ones too."""
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes_of(inner)
        elif isinstance(route, Route | APIRoute):
            yield from ((method, route.path) for method in (route.methods or {"ANY"}) - {"HEAD"})
        else:
            assert isinstance(route, Mount), f"a kind of route that this test does not know: {route!r}"


def ask(site, method, path, **rest):
    body = {"json": {}} if method != "GET" else {}
    return site.ask(method, path.format(**FILLED) + QUERY.get(path, ""), **body, **rest)


def test_every_route_has_a_row_and_every_row_a_route(site):
    found = {(m, p) for m, p in routes_of(site.application) if (m, p) not in {("ANY", path) for path in UNKNOWN}}
    assert found == set(TABLE)


def test_documented_table_is_the_one_that_is_asked():
    page = (Path(__file__).resolve().parents[3] / "docs" / "identity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+) (/\S+)` \| (\w+) \| ([\w ]*) \| (yes)? \|$", page, re.MULTILINE)
    told = {(method, path): (role, only, bool(audited)) for method, path, role, only, audited in rows}
    only = {(True, False): "own runs", (False, True): "queues of the team", (False, False): ""}
    asked = {
        where: (needs.role or "anybody", only[needs.own, needs.queue], needs.audited) for where, needs in TABLE.items()
    }
    assert told == asked


def test_route_without_a_row_is_refused_to_everybody(site):
    bare = application(site.source)

    @bare.get("/api/new")
    async def new():
        return {}

    site.app._app = bare
    answer = site.get("/api/new")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_application_without_a_guard_lets_nobody_in(site):
    site.app = application(site.source)
    assert site.get("/api/runs").status_code == 401
    assert site.get("/api/health").status_code == 200


@pytest.mark.parametrize(("method", "path", "needs"), NEEDING, ids=[f"{m} {p}" for m, p, _ in NEEDING])
def test_endpoint_refuses_missing_wrong_expired_revoked_and_under_privileged_tokens(site, method, path, needs):
    site.add_run(owner="bob", state=RunState.STOPPED)
    gone, ends = site.user("gone", "admin"), site.user("ends", "admin", days=1)
    site.ask("POST", "/api/users/gone/revoke", json={})
    site.clock.at += 2 * 86_400
    wrong = [None, "wrong", gone, ends, ends[:-1] + ("0" if ends[-1] != "0" else "1")]
    for token in wrong:
        answer = ask(site, method, path, token=token)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), token
    asked = list(site.control.asked)
    for role in Role:
        if not role.at_least(needs.role):
            answer = ask(site, method, path, token=site.user(f"some-{role}", role))
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            assert f"is {role}" in answer.json()["problem"]
    assert site.control.asked == asked
    enough = ask(site, method, path, token=site.user("bob", needs.role))
    assert enough.status_code not in {401, 403}


@pytest.mark.parametrize("path", ["stop", "harm", "beat"])
def test_users_act_on_their_own_runs_only_and_operators_on_all(site, path):
    site.add_run("hers-1", owner="ann")
    site.add_run("cluster-1")
    body = {"trainer": "hers-1-t0", "harm": "stop", "for_s": 1.0}
    ann, bob, ops = site.user("ann"), site.user("bob"), site.user("ops", "operator")
    for run, token in (("hers-1", bob), ("cluster-1", ann)):
        answer = site.post(f"/api/runs/{run}/{path}", token=token, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert site.control.asked == []
    for token in (ann, ops):
        assert site.post(f"/api/runs/hers-1/{path}", token=token, json=body).status_code in {200, 202}


def test_user_submits_to_the_queues_of_the_team_only(site, spec):
    site.ask("PUT", "/api/teams/research", json={"queues": ["research", "shared"]})
    ann, lone, ops = site.user("ann", team="research"), site.user("lone"), site.user("ops", "operator")

    def submit(token, queue):
        body = to_plain(dataclasses.replace(spec, queue=queue))
        return site.post("/api/runs", token=token, json=body).status_code

    assert [submit(ann, q) for q in ("research", "shared", "default", "other")] == [201, 201, 403, 403]
    assert [submit(lone, q) for q in ("default", "research")] == [201, 403]
    assert [submit(ops, q) for q in ("research", "other")] == [201, 201]


def test_submitted_spec_carries_its_owner_and_team_whatever_it_said(site, spec):
    site.ask("PUT", "/api/teams/research", json={"queues": ["default"]})
    forged = dataclasses.replace(spec, owner="admin", team="other")
    run = site.post("/api/runs", token=site.user("ann", team="research"), json=to_plain(forged)).json()["run"]
    kept = site.reader.views[run].spec
    assert (kept.owner, kept.team) == ("ann", "research")


def test_cluster_token_may_submit_for_others_and_leaves_a_spec_as_it_is(spec):
    admin = Caller(user="admin", role=Role.ADMIN, team=None, token_id="cluster", expires_at=None)
    named = dataclasses.replace(spec, owner="ann", team="research")
    assert submitted_by(admin, spec, None) == spec
    assert submitted_by(admin, named, None) == named


def test_environment_of_a_run_is_hidden_from_everybody_but_its_owner_and_operators(site, spec):
    run = site.post(
        "/api/runs", token=site.user("ann"), json=to_plain(dataclasses.replace(spec, env={"KEY": "s3cret"}))
    )
    path = f"/api/runs/{run.json()['run']}"
    site.reader.become(run.json()["run"], state=RunState.STOPPED)
    for token, shown in (
        (site.user("bob"), False),
        (site.user("eve", "viewer"), False),
        (site.user("ops", "operator"), True),
    ):
        assert ("s3cret" in site.get(path, token=token).text) is shown
        assert ("s3cret" in site.get(f"{path}/stream", token=token).text) is shown


def test_viewer_may_drain_nothing_and_see_everything(site):
    site.reader.hosts = [
        NodeView(node="node-1", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=2.0, agent=True)
    ]
    eve = site.user("eve", "viewer")
    assert site.get("/api/nodes", token=eve).json()[0]["node"] == "node-1"
    assert site.post("/api/nodes/node-1/drain", token=eve, json={}).status_code == 403


@pytest.mark.parametrize("method", ["DELETE", "QUERY", "TRACE", "OPTIONS", "HEAD", "ANYTHING"])
def test_method_that_an_endpoint_does_not_take_is_refused_with_those_it_takes(site, method):
    answer = site.ask(method, "/api/runs")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert site.ask(method, "/api/runs", token=None).status_code == 401
    assert site.ask(method, "/api/nothing").status_code == 404
    assert site.ask(method, "/metrics").headers["allow"] == "GET"


def test_unknown_method_of_a_known_path_is_refused():
    with pytest.raises(ForbiddenError, match="no row"):
        required("DELETE", "/api/runs")


def test_people_without_a_store_know_the_cluster_token_alone():
    assert [user.name for user in People("t").users()] == ["admin"]
