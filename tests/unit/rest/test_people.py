import asyncio
import sqlite3
import threading

import pytest

from atoll.control_plane.rest_people import People
from atoll.control_plane.sql_identity import IdentityStore
from atoll.errors import AlreadyThere, AuthError, ClusterError, KeyReused
from atoll.schema.people import AuditLine, RevokeWish, RotateWish, UserWish

SECRET = b"s" * 32


class StillClock:
    def __init__(self):
        self.at = 1_000_000.0

    def now(self):
        return self.at


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
def reopened(tmp_path, clock):
    """People over one file, opened anew at each call, as after a restart of the web process."""
    opened = []

    def make(secret=SECRET):
        if opened:
            opened.pop().close()
        opened.append(People("own", secret=secret, store=IdentityStore(tmp_path / "identity.sqlite"), clock=clock))
        return opened[0]

    yield make
    opened.pop().close()


def run(work):
    return asyncio.run(work)


def test_users_teams_and_sign_outs_survive_a_restart(reopened):
    people = reopened()
    run(people.set_team("research", ("b", "a", "a")))
    given = run(people.add(UserWish(name="ann", team="research")))
    _, session = people.sign_in(given.token, "here")
    caller = people.by_session(session)
    people = reopened()
    assert people.by_token(given.token, "here").team == "research"
    assert people.queues_of(people.by_session(session)) == ("a", "b")
    run(people.sign_out(caller))
    with pytest.raises(AuthError, match="ended"):
        reopened().by_session(session)


def test_no_token_stands_in_the_file(reopened, tmp_path):
    given = run(reopened().add(UserWish(name="ann")))
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert given.token_id.encode() in kept
    assert given.token[-64:].encode() not in kept
    assert bytes.fromhex(given.token[-64:]) not in kept
    assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}


def test_tokens_are_of_no_use_with_another_clusters_secret(reopened):
    given = run(reopened().add(UserWish(name="ann")))
    with pytest.raises(AuthError, match="unknown"):
        reopened(b"t" * 32).by_token(given.token, "here")


def test_rotated_token_replaces_the_old_one_at_once_or_after_a_grace(reopened, clock):
    people = reopened()
    first = run(people.add(UserWish(name="ann")))
    second = run(people.rotate("ann", RotateWish(grace_s=60)))
    assert people.by_token(first.token, "here").expires_at == clock.at + 60
    third = run(people.rotate("ann", RotateWish()))
    for old in (first, second):
        with pytest.raises(AuthError, match="revoked"):
            people.by_token(old.token, "here")
    assert reopened().by_token(third.token, "here").user == "ann"


def test_revoked_token_stays_revoked_and_a_removed_user_has_none(reopened):
    people = reopened()
    given = run(people.add(UserWish(name="ann")))
    run(people.revoke("ann", RevokeWish(token=given.token_id)))
    people = reopened()
    with pytest.raises(AuthError, match="revoked"):
        people.by_token(given.token, "here")
    run(people.revoke("ann", RevokeWish()))
    assert [u.name for u in reopened().users()] == ["admin"]


def test_revocation_during_a_slow_rotation_stands(reopened):
    people = reopened()
    store, put = people._store, people._store.put
    given = run(people.add(UserWish(name="ann")))
    writing, go_on = threading.Event(), threading.Event()

    def slow(user, tokens):
        writing.set()
        assert go_on.wait(10)
        put(user, tokens)

    async def both():
        store.put = slow
        rotation = asyncio.create_task(people.rotate("ann", RotateWish(grace_s=3600)))
        assert await asyncio.to_thread(writing.wait, 10)
        store.put = put
        revocation = asyncio.create_task(people.revoke("ann", RevokeWish(token=given.token_id)))
        await asyncio.wait({revocation}, timeout=0.05)
        go_on.set()
        await asyncio.gather(rotation, revocation)

    run(both())
    for known in (people, reopened()):
        with pytest.raises(AuthError):
            known.by_token(given.token, "here")


def test_one_of_two_adds_of_a_name_at_once_is_refused(reopened):
    people = reopened()

    async def both():
        wishes = (UserWish(name="bob"), UserWish(name="bob"))
        return await asyncio.gather(*(people.add(wish) for wish in wishes), return_exceptions=True)

    first, second = run(both())
    assert first.user == "bob"
    assert isinstance(second, AlreadyThere)


def test_same_key_gives_the_run_of_the_first_submission_and_another_job_under_it_is_refused(reopened):
    people = reopened()
    caller = people.by_token("own", "here")
    assert run(people.run_for(caller, "k", "digest", "a-1")) == "a-1"
    assert run(reopened().run_for(caller, "k", "digest", "a-2")) == "a-1"
    with pytest.raises(KeyReused, match="run a-1"):
        run(reopened().run_for(caller, "k", "other", "a-3"))


def test_audit_log_is_paged_newest_first_and_by_user(reopened):
    store = reopened()._store
    line = AuditLine(seq=0, at=1.0, user="ann", role="user", source="s", method="POST", path="/p", status=0)
    numbers = [store.begin(line) for _ in range(3)]
    store.begin(AuditLine(seq=0, at=2.0, user="bob", role="user", source="s", method="GET", path="/q", status=403))
    store.finish(numbers[1], 201, "", "run=x")
    first = store.audit(0, 2, "ann")
    assert [(a.seq, a.status, a.note) for a in first] == [(numbers[2], 0, ""), (numbers[1], 201, "run=x")]
    assert [a.seq for a in store.audit(first[-1].seq, 2, "ann")] == [numbers[0]]
    assert [a.user for a in store.audit(0, 1, None)] == ["bob"]


def test_audit_log_forgets_its_oldest_lines(reopened, monkeypatch):
    from atoll.control_plane import sql_identity

    monkeypatch.setattr(sql_identity, "AUDIT_KEPT", 5)
    monkeypatch.setattr(sql_identity, "_PRUNE_EVERY", 10)
    store = reopened()._store
    line = AuditLine(seq=0, at=1.0, user="ann", role="user", source="s", method="POST", path="/p", status=0)
    for _ in range(20):
        store.begin(line)
    assert [a.seq for a in store.audit(0, 100, None)] == [20, 19, 18, 17, 16]


def test_refusals_push_no_change_out_of_the_audit_log(reopened, monkeypatch):
    from atoll.control_plane import sql_identity

    monkeypatch.setattr(sql_identity, "TOLD_KEPT", 3)
    monkeypatch.setattr(sql_identity, "_PRUNE_EVERY", 10)
    store = reopened()._store
    line = AuditLine(seq=0, at=1.0, user="ann", role="user", source="s", method="POST", path="/p", status=0)
    store.begin(line)
    for _ in range(19):
        store.begin(line, changes=False)
    assert [a.seq for a in store.audit(0, 100, None)] == [20, 19, 18, 1]


def test_file_from_before_lines_were_told_apart_goes_on(tmp_path):
    old = sqlite3.connect(tmp_path / "identity.sqlite")
    old.execute(
        "CREATE TABLE audit (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, name TEXT, role TEXT, source TEXT,"
        " method TEXT, path TEXT, status INTEGER, code TEXT, note TEXT)"
    )
    old.execute("INSERT INTO audit VALUES (7, 1.0, 'ann', 'user', 's', 'POST', '/p', 201, '', '')")
    old.commit()
    old.close()
    for count in (1, 2):
        store = IdentityStore(tmp_path / "identity.sqlite")
        store.begin(AuditLine(seq=0, at=2.0, user="", role="", source="s", method="GET", path="/q", status=401))
        assert [a.seq for a in store.audit(0, 9, None)] == [*range(7 + count, 6, -1)]
        store.close()


def test_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "identity.sqlite").write_bytes(b"no database, but long enough to be read as the head of one" * 4)
    with pytest.raises(ClusterError, match=r"identity\.sqlite"):
        IdentityStore(tmp_path / "identity.sqlite")
