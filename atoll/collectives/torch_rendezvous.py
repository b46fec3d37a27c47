"""Ranks that know each other only by a store become the members of an epoch.

Each rank claims its place, publishes the address of its listener and reads those of the others; rank 0 makes the secret
that connections prove. Who can read the store can join: the trust is that of torch's own groups. A place that is claimed
twice is an error that names both processes, as is a member that does not come or cannot be reached.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from atoll import config
from atoll.collectives.tcp_communicator import Communicator, connect
from atoll.collectives.tcp_transport import Listener
from atoll.errors import ConnectError, PeerError
from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
from atoll.schema.messages import Member, Membership
from atoll.schema.topology import Door, Topology

_LOCAL = "127.0.0.1"
# The other claimant of a rank publishes its address a moment after its claim.
_OTHER = timedelta(seconds=2)
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this rank is in a network that is known: the name of its node, its other NICs (name, host), the topology.

    By default a node is named after its host name and address, and nothing more is known.
    """

    node: str | None = None
    nics: tuple[tuple[str, str], ...] = ()
    topology: Topology | None = None


NOWHERE = Place()


def meet(store: Store, rank: int, names: Sequence[int], timeout: timedelta, place: Place) -> Communicator:
    """The communicator of the group whose ranks are known as `names`. Raises `DistBackendError` naming who is missing."""
    try:
        return _Meeting(store, rank, names, timeout, place).connect()
    except PeerError as error:
        raise dist.DistBackendError(f"rank {names[rank]} cannot join its group of {len(names)}: {error}") from error


class _Meeting:
    """One rank's part in a group that is forming."""

    def __init__(self, store: Store, rank: int, names: Sequence[int], timeout: timedelta, place: Place) -> None:
        self._rank, self._names, self._timeout, self._place = rank, names, timeout, place
        self._deadline = time.monotonic() + timeout.total_seconds()
        self._host = own_host(store)
        # A store may serve several groups of one name, one after the other: each time counts.
        self._time = store.add(f"atoll/claims/{rank}", 1)
        self._store = PrefixStore(f"atoll/{self._time}", store)
        self._before = PrefixStore(f"atoll/{self._time - 1}", store)
        self._check_left()

    def connect(self) -> Communicator:
        """Meet all others."""
        secret = self._secret()
        run = RunId("torch-distributed")
        listener = Listener(self._host, secret, run, self._place.nics)
        try:
            self._store.set(f"member/{self._rank}", self._address(listener))
            membership = Membership(
                run=run, epoch=Epoch(self._time), members=self._members(), topology=self._place.topology
            )
            communicator = connect(
                membership,
                self._name(self._rank),
                listener,
                deadline_s=max(self._deadline - time.monotonic(), 0.0),
                cancelled=lambda: False,
            )
        finally:
            listener.close()  # everyone who dials this rank has been met
        communicator.on_poison(lambda _: self._leave())
        return communicator

    def _leave(self) -> None:
        """Free the place for a later group of this name. The store's server may have ended before us."""
        try:
            self._store.set(f"left/{self._rank}", "")
        except (RuntimeError, ValueError):
            return

    def _check_left(self) -> None:
        if self._time == 1 or self._before.check([f"left/{self._rank}"]):
            return
        other = {"pid": "?", "host": "an address not yet told"}
        with suppress(RuntimeError):
            self._before.wait([f"member/{self._rank}"], _OTHER)
            other = json.loads(self._before.get(f"member/{self._rank}"))
        raise dist.DistBackendError(
            f"rank {self._names[self._rank]} is taken twice: by process {other['pid']} at {other['host']} and by process "
            f"{os.getpid()} at {self._host}; give every process its own rank, or a fresh store"
        )

    def _secret(self) -> bytes:
        if self._rank == 0:
            self._store.set("secret", secrets.token_hex(32))
        return bytes.fromhex(self._get("secret", 0).decode())

    def _members(self) -> tuple[Member, ...]:
        found = []
        for rank in range(len(self._names)):
            said = json.loads(self._get(f"member/{rank}", rank))
            found.append(
                Member(
                    trainer=self._name(rank),
                    rank=Rank(rank),
                    node=NodeId(said["node"]),
                    host=said["host"],
                    port=said["port"],
                    doors=tuple(Door(**door) for door in said["doors"]),
                )
            )
        return tuple(found)

    def _get(self, key: str, rank: int) -> bytes:
        left = timedelta(seconds=max(self._deadline - time.monotonic(), 0.001))
        try:
            self._store.wait([key], left)
        except RuntimeError as error:
            raise dist.DistBackendError(
                f"rank {self._names[rank]} did not come to its group of {len(self._names)} within "
                f"{self._timeout.total_seconds():g} s; rank {self._names[self._rank]} waited: {error}"
            ) from error
        return bytes(self._store.get(key))

    def _address(self, listener: Listener) -> str:
        # Hosts in namespaces of one machine share its name but not its address.
        node = self._place.node or f"{socket.gethostname()}@{self._host}"
        said = {"host": listener.host, "port": listener.port, "node": node, "pid": os.getpid()}
        said["doors"] = [dataclasses.asdict(door) for door in listener.doors]
        return json.dumps(said)

    def _name(self, rank: int) -> TrainerId:
        return TrainerId(f"rank-{self._names[rank]}")


def own_host(store: Store) -> str:
    """Where peers reach this process: as the environment says, else by the way that leads to the store's host."""
    settings = config.load()
    if settings.host:
        return settings.host
    if settings.nic:
        return _address_of(settings.nic.split(",")[0])
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return _way_to(store.host, store.port) if isinstance(store, TCPStore) else _of_this_machine()


def _way_to(host: str, port: int) -> str:
    """The own address on the way to `host`; nothing is sent."""
    try:
        [(_, _, _, _, address), *_] = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConnectError(f"no way to the store at {host}:{port}: {error.strerror}; set ATOLL_HOST") from error


def _of_this_machine() -> str:
    """A store of files or of one process says nothing of a network: the name's address if it is ours."""
    try:
        host = socket.gethostbyname(socket.gethostname())
        with socket.create_server((host, 0)):
            return host
    except OSError:
        return _LOCAL


def _address_of(nic: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", nic.encode()[:15]))
        except OSError as error:
            raise ConnectError(
                f"GLOO_SOCKET_IFNAME names {nic}, which has no IPv4 address here: {error.strerror}; set ATOLL_HOST"
            ) from error
    return socket.inet_ntoa(found[20:24])
