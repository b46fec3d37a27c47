"""How calls of the web process to the control plane are signed, so that only holders of the cluster secret are heard.

A call's MAC covers method, nonce and body, each with its length; the answer's covers the call's nonce, so that an
answer cannot be moved to another call. A nonce carries its time: old ones are refused, and those of the last minute are
remembered, so that a recorded call cannot be played again.
"""

from __future__ import annotations

import hashlib
import hmac

from atoll.errors import AuthError

WINDOW_S = 60.0


def _mac(secret: bytes, *parts: bytes) -> bytes:
    digest = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def sign_call(secret: bytes, method: str, nonce: str, body: bytes) -> bytes:
    """The MAC of a call."""
    return _mac(secret, b"call", method.encode(), nonce.encode(), body)


def sign_answer(secret: bytes, nonce: str, body: bytes, *, ok: bool) -> bytes:
    """The MAC of an answer to the call with that nonce."""
    return _mac(secret, b"answer", nonce.encode(), b"ok" if ok else b"problem", body)


def make_nonce(now: float, random: bytes) -> str:
    """A nonce of time and chance."""
    return f"{int(now * 1000)}-{random.hex()}"


class NonceWindow:
    """The nonces of the last minute."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def admit(self, nonce: str, now: float) -> None:
        """Take a nonce once. Raises `AuthError` for one that is old, from the future, or was seen."""
        stamp = nonce.partition("-")[0]
        if not stamp.isdecimal() or abs(now - int(stamp) / 1000) > WINDOW_S:
            raise AuthError("a call whose nonce is not of this minute; set the clocks of the hosts")
        self._seen = {n: at for n, at in self._seen.items() if now - at <= 2 * WINDOW_S}
        if nonce in self._seen:
            raise AuthError("a call that was made before")
        self._seen[nonce] = now
