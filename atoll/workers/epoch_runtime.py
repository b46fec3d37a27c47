"""The session's place among its peers: waits for memberships, connects, and ends an epoch when a newer one is named.

Memberships come on the link thread. A newer one aborts the communicator in hand at once, so that whatever the main
thread waits for returns within milliseconds (law 1: who knows e+1 never votes in e). The main thread then calls `join`,
which returns once it is connected with all members of the newest epoch that names it. An epoch that ended through a peer
is told as evidence (`PeerDown`), and so is every long wait for others (`Waiting`): for members that do not come to the
new epoch, and in each of its operations. What follows from it is not decided here.

One thing is: where the ranks called different operations no other membership can help, and the program is told so.
"""

from __future__ import annotations

import functools
import threading

from atoll.errors import CallsDiffer, PeerError
from atoll.schema.ids import Epoch, TrainerId
from atoll.schema.messages import Membership, PeerDown, TrainerReady, Waiting
from atoll.workers.host import Host
from atoll.workers.peers import Comm, Connect, PoisonLike, WaitLike

# Peers of a new epoch arrive within a second or so of each other; past this one is likely gone, and saying so again
# is cheap. The control plane answers with a newer epoch, or the next try succeeds.
_CONNECT_S = 10.0
_SLICE_S = 0.2


class StoppedWaiting(BaseException):
    """The run stops while this trainer has no part in it yet. Passes through user code, so no `Exception`."""


class EpochLink:
    """The communicator of the epoch in hand, and the way to the next."""

    def __init__(self, host: Host, connect: Connect) -> None:
        self._host = host
        self._connect = connect
        self._changed = threading.Condition()
        self._newest: Membership | None = None
        self._comm: Comm | None = None
        self._ready = False
        self.epoch = Epoch(0)
        host.mailbox.subscribe(self._arrived)
        latest = host.mailbox.latest()
        if latest is not None:
            self._arrived(latest)

    @property
    def comm(self) -> Comm:
        """The communicator in hand; only asked for after `join`."""
        if self._comm is None:
            raise RuntimeError("no epoch was joined yet")
        return self._comm

    @property
    def joined(self) -> bool:
        """True while an epoch is in hand that has not ended."""
        return self._comm is not None and self._comm.poisoned is None

    def join(self) -> Comm:
        """Connect with the newest epoch above the last one that names this trainer.

        Raises `CallsDiffer` where the last one ended because its members did not call the same.
        """
        self._refuse_differences()
        self.leave()
        self._say_ready()
        while True:
            membership = self._await_newer()
            comm = self._try(membership)
            if comm is None:
                continue
            comm.on_poison(functools.partial(self._poisoned, membership.epoch))
            with self._changed:
                self._comm, self.epoch = comm, membership.epoch
                overtaken = self._newest is not None and self._newest.epoch > membership.epoch
            if not overtaken:
                return comm
            self.leave()

    def leave(self) -> None:
        """Let go of the epoch in hand."""
        with self._changed:
            comm, self._comm = self._comm, None
        if comm is not None:
            comm.close()

    def close(self) -> None:
        """No further epoch is joined."""
        self.leave()

    def _refuse_differences(self) -> None:
        poison = self._comm.poisoned if self._comm is not None else None
        if poison is not None and poison.differ:
            raise CallsDiffer(
                f"epoch {self.epoch}: {poison.reason}. Build the same model on all workers, and let no branch around a "
                "step depend on ctx.rank"
            )

    def _say_ready(self) -> None:
        if not self._ready:
            self._ready = True
            listener = self._host.listener
            ready = TrainerReady(
                trainer=self._host.identity.trainer, host=listener.host, port=listener.port, doors=listener.doors
            )
            self._host.tell(ready)

    def _arrived(self, membership: Membership) -> None:
        """A membership came (link thread)."""
        with self._changed:
            if self._newest is not None and membership.epoch <= self._newest.epoch:
                return
            self._newest = membership
            comm = self._comm
            self._changed.notify_all()
        if comm is not None and comm.epoch < membership.epoch:
            comm.abort(f"epoch {membership.epoch}: {membership.reason}")

    def _await_newer(self) -> Membership:
        """The newest membership above the last epoch with a rank for this trainer.

        Waits without an end of its own: without a newer epoch there is nothing right to do (law 1), and the host ends
        the process when neither agent nor peers are heard of.
        """
        while True:
            with self._changed:
                if self._changed.wait_for(self._is_invited, _SLICE_S) and self._newest is not None:
                    return self._newest
            if self._host.mailbox.stop is not None and self.epoch == 0:
                raise StoppedWaiting

    def _is_invited(self) -> bool:
        newest = self._newest
        me = self._host.identity.trainer
        return newest is not None and newest.epoch > self.epoch and any(m.trainer == me for m in newest.members)

    def _try(self, membership: Membership) -> Comm | None:
        def cancelled() -> bool:
            newest = self._newest
            return newest is not None and newest.epoch > membership.epoch

        try:
            return self._connect(
                membership,
                self._host.identity.trainer,
                self._host.listener,
                deadline_s=_CONNECT_S,
                cancelled=cancelled,
                on_wait=functools.partial(self._tell_wait, membership),
            )
        except PeerError as error:
            if not cancelled():
                self._tell_down(membership.epoch, TrainerId(error.culprit) if error.culprit else None, str(error))
            return None

    def _poisoned(self, epoch: Epoch, poison: PoisonLike) -> None:
        self._tell_down(epoch, poison.culprit, poison.reason)

    def _tell_wait(self, membership: Membership, wait: WaitLike) -> None:
        """Whom an operation waits for, or that it waits no longer (any thread)."""
        names: dict[int, TrainerId] = {m.rank: m.trainer for m in membership.members}
        fact = Waiting(
            trainer=self._host.identity.trainer,
            epoch=membership.epoch,
            operation=wait.operation,
            sequence=wait.sequence,
            for_s=wait.for_s,
            missing=tuple(names[r] for r in wait.missing),
            silent=tuple(names[r] for r in wait.silent),
        )
        self._host.tell(fact)

    def _tell_down(self, epoch: Epoch, peer: TrainerId | None, evidence: str) -> None:
        me = self._host.identity.trainer
        if peer is not None and peer != me:
            self._host.tell(PeerDown(trainer=me, epoch=epoch, peer=peer, evidence=evidence))
