import pytest

from atoll.control_plane.grpc_signing import WINDOW_S, NonceWindow, make_nonce, sign_answer, sign_call
from atoll.errors import AuthError


def test_parts_cannot_be_moved_into_one_another():
    assert sign_call(b"k", "ab", "c", b"d") != sign_call(b"k", "a", "bc", b"d")


def test_answer_is_bound_to_its_call_and_outcome():
    good = sign_answer(b"k", "n1", b"{}", ok=True)
    assert good != sign_answer(b"k", "n2", b"{}", ok=True)
    assert good != sign_answer(b"k", "n1", b"{}", ok=False)


def test_nonce_is_admitted_once():
    window = NonceWindow()
    nonce = make_nonce(1000.0, b"\x01")
    window.admit(nonce, 1000.0)
    with pytest.raises(AuthError, match="made before"):
        window.admit(nonce, 1001.0)


@pytest.mark.parametrize("now", [1000.0 + WINDOW_S + 1, 1000.0 - WINDOW_S - 1])
def test_nonce_of_another_minute_is_refused(now):
    with pytest.raises(AuthError, match="not of this minute"):
        NonceWindow().admit(make_nonce(1000.0, b"\x01"), now)


def test_nonce_without_a_time_is_refused():
    with pytest.raises(AuthError):
        NonceWindow().admit("nonsense", 1.0)
