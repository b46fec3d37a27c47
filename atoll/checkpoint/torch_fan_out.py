"""Restoring a step on several ranks at once: each block is read by one of those that want any of it, and passed on.

Blocks are the unit that can be verified, and boxes of ranks end in the middle of them; replicas want the same ones. So
blocks that one rank wants it reads by itself, straight into place; of the others everyone computes the same division,
reads its share in rounds of a few blocks, and trades pieces after each. What is in flight is bounded by the round,
whatever the state is. Every rank passes through the same number of trades, also where its own reading failed: then it
says so in its last words, and all raise.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import cast

import numpy as np

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_read import Block, Reading, Wanted, divided
from atoll.checkpoint.fs_sources import from_words
from atoll.checkpoint.torch_read import Targets, fill, read_into
from atoll.errors import CheckpointError

# One message to each rank, one from each, in rank order.
Trade = Callable[[Sequence[bytes]], Sequence[bytes]]
# Blocks that a rank reads between two trades: 8 MiB to each that wants them, and as much in from each that reads for this
# one. Where every rank wants every block, four took up to 132 MiB beside the tensors, three 116, two 87, in no more time.
_ROUND = 2
_HEAD = struct.Struct("<I")


def restore(reading: Reading, rank: int, wants: Sequence[Sequence[Wanted]], targets: Targets, trade: Trade) -> None:
    """Fill `targets` of `rank`. `wants` are the boxes of every rank's targets, known to all. A collective.

    Raises `CheckpointError`, on all ranks, where any block is damaged.
    """
    needs = {r: reading.blocks(wanted) for r, wanted in enumerate(wants)}
    times = Counter(block for blocks in needs.values() for block in blocks)
    segments = {number: segment for listed in reading.segments.values() for number, segment in listed}

    def length(block: Block) -> int:
        segment = segments[block.segment]
        return min(segment.block_bytes, segment.bytes - block.index * segment.block_bytes)

    shares = {r: [b for b in blocks if times[b] > 1] for r, blocks in divided(needs, length).items()}
    problem = ""
    try:
        read_into(reading, targets, [b for b in needs[rank] if times[b] == 1])
    except CheckpointError as error:
        problem = str(error)
    for begin in range(0, max(map(len, shares.values())), _ROUND):
        post = _Post(wants, rank, targets)
        if not problem:
            problem = post.collect(reading, shares[rank][begin : begin + _ROUND])
        for message in trade(post.messages(problem)):
            problem = problem or post.take(message)
    # A trade of its own: the last round's readers may have failed, or there was no round.
    for message in trade([problem.encode()] * len(wants)):
        problem = problem or bytes(message).decode()
    if problem:
        raise from_words(problem)


class _Post:
    """The pieces of one round on their way."""

    def __init__(self, wants: Sequence[Sequence[Wanted]], rank: int, targets: Targets) -> None:
        self._wants, self._rank, self._targets = wants, rank, targets
        self._lock = threading.Lock()
        self._heads: list[list[tuple[int, Box]]] = [[] for _ in wants]
        self._values: list[list[bytes]] = [[] for _ in wants]

    def collect(self, reading: Reading, blocks: Sequence[Block]) -> str:
        """Read `blocks`: this rank's pieces go to their places, the others' into their messages. What went wrong."""
        keys: dict[Hashable, Wanted] = {
            (r, i): one for r, wanted in enumerate(self._wants) for i, one in enumerate(wanted) if one.box.count
        }

        def deliver(key: Hashable, box: Box, values: np.ndarray) -> None:
            to, index = cast("tuple[int, int]", key)
            if to == self._rank:
                want = self._wants[to][index]
                fill(self._targets[want.tensor, want.box], want.box, box, values)
                return
            data = values.tobytes()
            with self._lock:
                self._heads[to].append((index, box))
                self._values[to].append(data)

        try:
            if blocks:
                reading.read(keys, deliver, blocks)
        except CheckpointError as error:
            return str(error)
        return ""

    def messages(self, problem: str) -> list[bytes]:
        """To each rank: a line that says which pieces follow, and their bytes."""
        found = []
        for heads, values in zip(self._heads, self._values, strict=True):
            pieces = [[index, box.start, box.stop] for index, box in heads]
            head = json.dumps({"problem": problem, "pieces": pieces}).encode()
            found.append(b"".join((_HEAD.pack(len(head)), head, *values)))
        return found

    def take(self, message: bytes) -> str:
        """Put what came into place. What went wrong where it came from."""
        (length,) = _HEAD.unpack_from(message)
        said = json.loads(message[_HEAD.size : _HEAD.size + length])
        at = _HEAD.size + length
        for index, start, stop in said["pieces"]:
            want, box = self._wants[self._rank][index], Box(tuple(start), tuple(stop))
            target = self._targets[want.tensor, want.box]
            size = target.element_size()
            values = np.frombuffer(message, f"<u{size}", count=box.count, offset=at).reshape(box.shape)
            fill(target, want.box, box, values)
            at += values.nbytes
        return str(said["problem"])
