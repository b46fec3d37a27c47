"""Beats between agents: how one is written and believed, and what an agent tells of those it listens for.

A beat is a datagram: who sent it, a number that only grows, and a keyed hash (BLAKE2b, RFC 7693) under the key that the
control plane gave to all of the ring. One that was heard before, or is older than one heard, is refused, so a recorded beat
keeps nobody alive. Numbers begin at the microseconds of Unix time when the sender's agent began: they grow over its
restarts, too. A beat counts whichever NIC it came by.

Silence is counted over the time that this agent listened: one look adds no more than `LOOK_S`, and what came is read
before anybody is called silent. A peer is in neither list as long as it was neither heard nor silent for `SILENT_S`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Collection
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.messages import PeersWatched, SilentPeer

# Half a second, as looks each 0.1 s count it: five beats in a row did not come.
SILENT_S = 0.45
DIGEST_S = 1.0
# After that a digest goes along with what is told anyway.
ALONG_S = 0.45
LOOK_S = 0.2
LATE_S = 0.25

_HEAD = struct.Struct("!4sQ16s")
_MAGIC = b"atb1"
MAC_BYTES = 16
# A beat is far below; more than this is not one.
MOST_BYTES = 512


def write_beat(key: bytes, source: NodeId, number: int) -> bytes:
    """The datagram of beat `number` of `source`."""
    name = source.encode()
    return _HEAD.pack(_MAGIC, number, _mac(key, number, name)) + name


def read_beat(key: bytes, data: bytes) -> tuple[NodeId, int] | None:
    """Who sent it and its number; None where it is no beat under this key."""
    if not _HEAD.size < len(data) <= MOST_BYTES:
        return None
    magic, number, mac = _HEAD.unpack_from(data)
    name = data[_HEAD.size :]
    if magic != _MAGIC or not hmac.compare_digest(mac, _mac(key, number, name)):
        return None
    return NodeId(name.decode(errors="replace")), number


def _mac(key: bytes, number: int, name: bytes) -> bytes:
    # A key longer than BLAKE2b takes is cut; the control plane's has 32 bytes.
    return hashlib.blake2b(_MAGIC + number.to_bytes(8, "big") + name, digest_size=MAC_BYTES, key=key[:64]).digest()


@dataclass(slots=True, kw_only=True)
class _Peer:
    """`fresh`: since the last look it was heard, or its name was told. `heard`: it is not silent now."""

    number: int = -1
    fresh: bool = True
    heard: bool = False
    silent_s: float = 0.0


class Listening:
    """Who is heard and who is silent. All times are seconds of one monotonic clock."""

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._key = b""
        self._peers: dict[NodeId, _Peer] = {}
        self._last: float | None = None
        self._told: tuple[tuple[NodeId, ...], tuple[NodeId, ...]] = (), ()
        self._told_at = 0.0
        self._late_s = 0.0

    def listen(self, nodes: Collection[NodeId], key: bytes, anew: Collection[NodeId] = ()) -> None:
        """Listen for `nodes` from now on, instead of whomever it was before. What is known of who stays is kept.

        `anew`: their agents began anew. Their numbers may be lower than before, where somebody set the clock back.
        """
        kept = {} if key != self._key else self._peers
        self._key = key
        self._peers = {n: kept.get(n) or _Peer() for n in nodes if n != self._node}
        for node in self._peers.keys() & set(anew):
            self._peers[node].number = -1

    def came(self, data: bytes) -> bool:
        """Take in a datagram. False where it is refused."""
        beat = read_beat(self._key, data) if self._peers else None
        peer = self._peers.get(beat[0]) if beat is not None else None
        if beat is None or peer is None or beat[1] <= peer.number:
            return False
        peer.number, peer.heard, peer.fresh = beat[1], True, True
        return True

    def looked(self, *, now: float, behind_s: float = 0.0, along: bool = False) -> PeersWatched | None:
        """What to tell after all that came was taken in, at a look that came `behind_s` after it was due.

        `along`: something else is told now, and what is told along with it costs nothing. A digest then comes early.
        """
        passed = LOOK_S if self._last is None else min(max(now - self._last, 0.0), LOOK_S)
        self._last = now
        self._late_s = max(self._late_s, behind_s) if self._peers else 0.0
        for peer in self._peers.values():
            peer.silent_s = 0.0 if peer.fresh else peer.silent_s + passed
            peer.heard = peer.heard and peer.silent_s <= SILENT_S
            peer.fresh = False
        return self._fact(now=now, late=behind_s > LATE_S, within_s=ALONG_S if along else DIGEST_S)

    def _fact(self, *, now: float, late: bool, within_s: float) -> PeersWatched | None:
        silent = tuple(
            SilentPeer(node=name, for_s=peer.silent_s) for name, peer in self._peers.items() if peer.silent_s > SILENT_S
        )
        heard = tuple(n for n, peer in self._peers.items() if peer.heard)
        shown = heard, tuple(s.node for s in silent)
        due = bool(self._peers) and (late or now - self._told_at >= within_s)
        if shown == self._told and not due:
            return None
        fact = PeersWatched(node=self._node, heard=heard, silent=silent, behind_s=self._late_s)
        self._told, self._told_at, self._late_s = shown, now, 0.0
        return fact
