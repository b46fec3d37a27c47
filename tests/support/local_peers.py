"""The members of an epoch in one process, without sockets: messages meet in a dictionary, works end at once.

`held` keeps messages with that tag back, as a slow link would; `let_go` delivers them.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from atoll.collectives.work import Poison, Work
from atoll.schema.ids import TrainerId


class Exchange:
    def __init__(self, size):
        self.size = size
        self.lock = threading.RLock()
        self.sent = defaultdict(deque)
        self.awaited = defaultdict(deque)
        self.gathers = defaultdict(dict)
        self.held = set()
        self.peers = [LocalPeers(self, rank) for rank in range(size)]

    def meet(self, address):
        """Deliver what has both ends."""
        while True:
            with self.lock:
                if address[2] in self.held or not (self.sent[address] and self.awaited[address]):
                    return
                (payload, sending), (buffer, receiving) = self.sent[address].popleft(), self.awaited[address].popleft()
            assert payload.numel() == buffer.numel()
            receiving.finish(buffer, write=lambda b=buffer, p=payload: b.copy_(p))
            sending.finish()

    def let_go(self):
        self.held.clear()
        for address in list(self.sent):
            self.meet(address)


class LocalPeers:
    def __init__(self, exchange, rank):
        self.exchange, self.rank = exchange, rank
        self.size = exchange.size
        self.poisoned, self.open, self.listeners = None, [], []
        self.gathered = 0

    def _start(self):
        work = Work()
        with self.exchange.lock:
            self.open = [w for w in self.open if not w.ended] + [work]
            poison = self.poisoned
        if poison:
            work.spoil(poison)
        return work

    def send(self, buffer, *, to, tag=0, in_place=False):
        work, address = self._start(), (self.rank, to, tag)
        with self.exchange.lock:
            self.exchange.sent[address].append((buffer.clone(), work))
        self.exchange.meet(address)
        return work

    def recv(self, buffer, *, source, tag=0, in_place=False):
        work, address = self._start(), (source, self.rank, tag)
        with self.exchange.lock:
            self.exchange.awaited[address].append((buffer, work))
        self.exchange.meet(address)
        return work

    def all_gather(self, payload):
        work = self._start()
        with self.exchange.lock:
            self.gathered += 1
            row = self.exchange.gathers[self.gathered]
            row[self.rank] = (payload, work)
            whole = dict(row) if len(row) == self.size else None
        if whole:
            for _, each in whole.values():
                each.finish([whole[r][0] for r in range(self.size)])
        return work

    def on_poison(self, call):
        with self.exchange.lock:
            if self.poisoned is None:
                self.listeners.append(call)
                return
        call(self.poisoned)

    def abort(self, reason, culprit=None):
        for peer in self.exchange.peers:
            peer._end(Poison(reason=reason, culprit=culprit and TrainerId(culprit), epoch=1))

    def _end(self, poison):
        with self.exchange.lock:
            if self.poisoned is not None:
                return
            self.poisoned = poison
            works, listeners = self.open, self.listeners
        for work in works:
            work.spoil(poison)
        for call in listeners:
            call(poison)
