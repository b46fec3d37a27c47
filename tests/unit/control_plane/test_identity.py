import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control_plane import identity as ids
from atoll.control_plane.identity import Directory, Token, User
from atoll.control_plane.tries import BURST, KEPT, Tries
from atoll.errors import AuthError
from atoll.schema.people import Role

KEY = ids.derived_key(b"secret of a cluster")
TEXT = ids.written("0" * 12, b"\x07" * 32)
NOW = 1000.0


def a_directory(**changes):
    directory = Directory(key=KEY)
    directory.own("the cluster's own")
    directory.users["ann"] = User(name="ann", role=Role.USER, team="research", made_at=0.0)
    directory.teams["research"] = ("a", "b")
    salt = b"\x01" * 16
    token = Token(
        token_id="0" * 12,
        user="ann",
        salt=salt,
        digest=ids.token_digest(KEY, salt, TEXT),
        made_at=0.0,
        expires_at=2000.0,
    )
    directory.tokens[token.token_id] = dataclasses.replace(token, **changes)
    return directory


def test_token_names_its_user_role_and_team():
    caller = a_directory().by_token(TEXT, NOW)
    assert (caller.user, caller.role, caller.team, caller.csrf) == ("ann", Role.USER, "research", "")


def test_cluster_token_is_the_admin_of_whatever_form_it_is():
    assert a_directory().by_token("the cluster's own", NOW).role is Role.ADMIN


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"expires_at": NOW}, "has expired"), ({"ended_at": NOW}, "was revoked"), ({"user": "bob"}, "bob was removed")],
)
def test_token_that_is_good_no_more_is_refused_with_the_reason(changes, why):
    with pytest.raises(AuthError, match=why):
        a_directory(**changes).by_token(TEXT, NOW)


@given(st.one_of(st.text(max_size=100), st.from_regex(r"atoll_[0-9a-f]{12}_[0-9a-f]{64}", fullmatch=True)))
def test_nothing_else_is_a_token(text):
    if text not in {TEXT, "the cluster's own"}:
        with pytest.raises(AuthError, match="unknown"):
            a_directory().by_token(text, NOW)


def test_nothing_of_a_token_is_kept_but_its_id_and_a_salted_digest_under_the_clusters_key():
    kept = a_directory().tokens["0" * 12]
    assert TEXT[-64:] not in repr(kept)
    assert kept.digest != ids.token_digest(KEY, b"\x02" * 16, TEXT)
    assert kept.digest != ids.token_digest(ids.derived_key(b"another"), kept.salt, TEXT)


def test_session_is_good_until_it_ends_its_token_ends_or_it_is_signed_out():
    directory = a_directory()
    caller = directory.by_token(TEXT, NOW)
    session = directory.session(caller, NOW, b"n" * 16)
    shown = directory.by_session(session, NOW + 1)
    assert (shown.user, shown.session) == ("ann", session)
    assert shown.csrf
    with pytest.raises(AuthError, match="has ended"):
        directory.by_session(session, 2000.0)
    directory.sign_out(session, NOW + 2)
    with pytest.raises(AuthError, match="has ended"):
        directory.by_session(session, NOW + 3)


def test_session_ends_where_its_token_is_revoked_or_replaced():
    directory = a_directory()
    session = directory.session(directory.by_token(TEXT, NOW), NOW, b"n" * 16)
    for change in ({"ended_at": NOW}, {"digest": b"\x00" * 32}):
        with pytest.raises(AuthError):
            a_directory(**change).by_session(session, NOW + 1)


@given(st.integers(0, 10_000), st.characters(codec="ascii"))
def test_session_that_was_tampered_with_is_unknown(place, character):
    directory = a_directory()
    session = directory.session(directory.by_token(TEXT, NOW), NOW, b"n" * 16)
    at = place % len(session)
    changed = session[:at] + character + session[at + 1 :]
    if changed != session:
        with pytest.raises(AuthError):
            directory.by_session(changed, NOW + 1)


def test_csrf_of_one_session_is_not_that_of_another():
    directory = a_directory()
    caller = directory.by_token(TEXT, NOW)
    sessions = [directory.session(caller, NOW, bytes([n]) * 16) for n in range(2)]
    assert directory.csrf(sessions[0]) != directory.csrf(sessions[1])


def test_queues_are_those_of_the_team_the_default_without_one_and_all_for_operators():
    directory = a_directory()
    caller = directory.by_token(TEXT, NOW)
    assert directory.queues_of(caller, "default") == ("a", "b")
    assert directory.queues_of(dataclasses.replace(caller, team=None), "default") == ("default",)
    assert directory.queues_of(dataclasses.replace(caller, team="gone"), "default") == ()
    assert directory.queues_of(dataclasses.replace(caller, role=Role.OPERATOR), "default") is None


def test_wrong_tokens_beyond_a_few_wait_and_the_bucket_fills_again():
    tries = Tries()
    assert [tries.failed("here", NOW) for _ in range(int(BURST))] == [0.0] * int(BURST)
    assert tries.failed("here", NOW) == pytest.approx(6.0)
    assert tries.exhausted("here", NOW + 5.9)
    assert not tries.exhausted("here", NOW + 6.0)
    assert tries.failed("here", NOW + 6.0) == 0.0
    assert tries.failed("elsewhere", NOW) == 0.0


def test_addresses_that_tried_are_remembered_to_a_limit():
    tries = Tries()
    for number in range(KEPT + 10):
        tries.failed(str(number), NOW)
    assert len(tries._left) == KEPT
