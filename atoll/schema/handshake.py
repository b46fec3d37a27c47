"""A mutual challenge by HMAC-SHA256: both sides prove that they hold a secret, and it never travels.

Each side sends a fresh nonce; the other answers with a proof over (role, nonce, context). The role keeps a proof from
being played back at its maker, the context (run, epoch, rank, node: whatever the channel is about) keeps it from being
used elsewhere. Nonces are handed in by shells (`os.urandom`).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from atoll.schema.ids import Incarnation
from atoll.schema.messages import Versions

NONCE_BYTES = 16
MAC_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """First frame of the control plane on an agent's stream: prove yourself, and this is who asks."""

    nonce: str
    pid: int
    start_ticks: int
    incarnation: Incarnation
    versions: Versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """`mac` answers the other side's nonce, hex; `nonce` is this side's own challenge, empty in the last message."""

    nonce: str
    mac: str


def proof(secret: bytes, role: str, nonce: bytes, context: bytes) -> bytes:
    """The 32 bytes that only a holder of `secret` can make for this role, nonce and context."""
    name = role.encode()
    text = len(name).to_bytes(2, "big") + name + len(nonce).to_bytes(2, "big") + nonce + context
    return hmac.digest(secret, text, hashlib.sha256)


def check(secret: bytes, role: str, nonce: bytes, context: bytes, mac: bytes) -> bool:
    """True where `mac` is that proof, compared in constant time."""
    return hmac.compare_digest(proof(secret, role, nonce, context), mac)
