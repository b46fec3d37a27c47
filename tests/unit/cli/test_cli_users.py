import json

import pytest


@pytest.fixture
def ann(atoll, cluster):
    """The token of a new user, as the command prints it."""
    code, out, err = atoll("users", "add", "ann", "--days", "10")
    assert (code, out.count("\n")) == (0, 1)
    assert "shown this once" in err
    return out.strip()


def test_added_user_is_listed_without_the_token_and_may_do_what_the_role_says(atoll, ann, monkeypatch):
    listed = atoll("users", "ls")[1]
    assert "ann" in listed
    assert "10 days left" in listed
    assert ann.rpartition("_")[2] not in listed
    monkeypatch.setenv("ATOLL_TOKEN", ann)
    assert "ann, user, team -, may submit to default" in atoll("users", "me")[1]
    code, _, err = atoll("users", "ls")
    assert (code, err) == (2, "atoll: GET /api/users needs the role admin; ann is user (forbidden)\n")


def test_rotated_token_replaces_the_old_one(atoll, ann, monkeypatch):
    new = atoll("users", "rotate", "ann")[1].strip()
    for token, code in ((ann, 2), (new, 0)):
        monkeypatch.setenv("ATOLL_TOKEN", token)
        assert atoll("users", "me")[0] == code


def test_revoked_user_is_gone(atoll, ann, monkeypatch):
    assert atoll("users", "revoke", "ann")[1] == "ann is no user any more\n"
    assert [u["name"] for u in json.loads(atoll("users", "ls", "--json")[1])] == ["admin"]
    monkeypatch.setenv("ATOLL_TOKEN", ann)
    assert atoll("ls")[0] == 2


def test_team_has_the_queues_that_were_named(atoll, cluster):
    assert atoll("users", "team", "research", "--queue", "b", "--queue", "a")[1] == "research: a, b\n"
    assert atoll("users", "teams")[1].split() == ["research", "a,", "b"]
    assert atoll("users", "team", "research")[1] == "research is no team any more\n"


def test_audit_tells_who_did_what_from_where_and_what_came_of_it(atoll, ann):
    atoll("stop", "nope")
    lines = atoll("audit", "--limit", "2")[1].splitlines()
    assert "admin (admin) from 127.0.0.1: POST /api/runs/nope/stop -> 404 not-found" in lines[0]
    assert "POST /api/users -> 201" in lines[1]
    assert json.loads(atoll("audit", "--json", "--user", "ann")[1]) == []


def test_status_of_a_run_names_its_owner_and_queue(atoll, cluster, ann, monkeypatch, tmp_path):
    (tmp_path / "train.py").write_text("def train(ctx): ...\n")
    monkeypatch.setenv("ATOLL_TOKEN", ann)
    run = atoll("submit", "train.py")[1].strip()
    assert "ann, queue default" in " ".join(atoll("status", run)[1].split())
