"""Proofs: only the secret, role, nonce and context they were made of open them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.schema.handshake import MAC_BYTES, check, proof

GIVEN = st.tuples(st.binary(min_size=1), st.text(max_size=20), st.binary(max_size=40), st.binary(max_size=40))


@given(one=GIVEN)
def test_a_proof_is_checked_by_who_holds_the_secret(one):
    assert len(proof(*one)) == MAC_BYTES
    assert check(*one, proof(*one))


@given(one=GIVEN, other=GIVEN)
def test_a_proof_is_good_for_nothing_else(one, other):
    # HMAC pads keys with zeros: secrets that differ in trailing zeros alone are one secret.
    same = (one[0].rstrip(b"\0"), *one[1:]) == (other[0].rstrip(b"\0"), *other[1:])
    if max(len(one[0]), len(other[0])) <= 64:
        assert check(*other, proof(*one)) == same


def test_bytes_cannot_move_between_role_nonce_and_context():
    proofs = {
        proof(b"secret", "ab", b"cd", b"ef"),
        proof(b"secret", "abc", b"d", b"ef"),
        proof(b"secret", "ab", b"cde", b"f"),
        proof(b"secret", "a", b"bcd", b"ef"),
    }
    assert len(proofs) == 4


def test_a_listeners_proof_cannot_be_played_back_as_a_dialers():
    assert proof(b"secret", "listener", b"nonce", b"context") != proof(b"secret", "dialer", b"nonce", b"context")
