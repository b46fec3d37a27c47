"""Which doors of Ray stand open: ports that answer whoever asks, without a token, on an address that others can reach.

Ray's Jobs API, its client port and its controller run the code of whoever reaches them (CVE-2023-48022, CVE-2025-62593), so
an open one makes tokens, roles and quotas of Atoll worth nothing. Each port is asked one harmless question without a token
on every address of this host but the loopback one, and on the controller's own: whoever answers it, or says anything but
"who are you", is open. What is found stands in `atoll doctor`, and in the story when the control plane starts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
import grpc.aio
import httpx
import psutil

from atoll.clock import Clock
from atoll.control_plane import effects as fx
from atoll.control_plane.ray_seats import node_id
from atoll.schema.messages import Finding

CHECK = "ray ports"
# Where Ray listens unless told otherwise; its controller's port is known.
JOBS_PORT, CLIENT_PORT = 8265, 10001
# On the own host a refusal comes at once; a firewall that drops makes this long.
_WITHIN_S = 1.5
_JOBS = "/api/jobs/"
_CONTROLLER = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_CLIENT = "/ray.rpc.RayletDriver/ClusterInfo"
_REMEDY = (
    "start Ray with a token (RAY_AUTH_MODE=token), or bind the port to 127.0.0.1 or behind a firewall; "
    "whoever reaches it can run any code on this cluster"
)
_CLOSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_SILENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A port of Ray on one address, and what to ask there."""

    what: str
    host: str
    port: int
    question: str


def reachable() -> tuple[str, ...]:
    """The addresses of this host that others may reach."""
    found = [
        a.address
        for nic in psutil.net_if_addrs().values()
        for a in nic
        if a.family in {socket.AF_INET, socket.AF_INET6}
    ]
    return tuple(sorted({a.partition("%")[0] for a in found if not _is_inner(a)}))


def doors(ray_address: str, hosts: Iterable[str]) -> tuple[Door, ...]:
    """What to look at, for a controller at `ray_address` on a host of these addresses."""
    host, _, port = ray_address.rpartition(":")
    own = tuple(hosts)
    found = [
        Door(what=what, host=h, port=p, question=q)
        for h in own
        for what, p, q in (("Jobs API and dashboard", JOBS_PORT, _JOBS), ("client port", CLIENT_PORT, _CLIENT))
    ]
    if port.isdecimal():
        controllers = own if _is_inner(host) else tuple(dict.fromkeys((*own, host)))
        found += [Door(what="controller", host=h, port=int(port), question=_CONTROLLER) for h in controllers]
    return tuple(found)


async def open_ones(looked_at: Iterable[Door]) -> list[Door]:
    """Those that answer without a token."""
    all_of_them = list(looked_at)
    answers = await asyncio.gather(*(_is_open(door) for door in all_of_them))
    return [door for door, is_open in zip(all_of_them, answers, strict=True) if is_open]


async def _is_open(door: Door) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(door.host, door.port), _WITHIN_S)
        writer.close()
        return await (_http_open(door) if door.question == _JOBS else _grpc_open(door))
    except (OSError, TimeoutError):
        return False


def _at(door: Door) -> str:
    return f"[{door.host}]:{door.port}" if ":" in door.host else f"{door.host}:{door.port}"


async def _http_open(door: Door) -> bool:
    try:
        async with httpx.AsyncClient(timeout=_WITHIN_S, trust_env=False) as client:
            return (await client.get(f"http://{_at(door)}{door.question}")).is_success
    except httpx.HTTPError:
        return False


async def _grpc_open(door: Door) -> bool:
    async with grpc.aio.insecure_channel(_at(door), options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            await channel.unary_unary(door.question, _as_it_is, _as_it_is)(b"", timeout=_WITHIN_S)
        except grpc.RpcError as error:
            return error.code() not in _CLOSED | _SILENT
    return True


def _as_it_is(body: bytes) -> bytes:
    return body


class RayDoors:
    """The look at the doors of one cluster, from its control plane on `host`."""

    def __init__(
        self, ray_address: str, host: str, clock: Clock, hosts: Callable[[], tuple[str, ...]] = reachable
    ) -> None:
        self._ray_address, self._node, self._clock, self._hosts = ray_address, node_id(host), clock, hosts

    async def findings(self) -> tuple[Finding, ...]:
        """For `atoll doctor`: one for each open port, or one that says that none is."""
        looked_at = doors(self._ray_address, self._hosts())
        found = await open_ones(looked_at)
        if found:
            return tuple(self._finding(ok=False, detail=_said(door)) for door in found)
        return (self._finding(ok=True, detail=f"none of {len(looked_at)} looked at answers without a token"),)

    async def run(self, put: Callable[[fx.Note], None]) -> None:
        """Look once, and tell of what is open in the story."""
        for finding in await self.findings():
            if not finding.ok:
                text = f"{finding.detail}: {finding.remedy}"
                put(
                    fx.Note(
                        run=None, subject=self._node, kind="ray-port-open", text=text, cause="", at=self._clock.now()
                    )
                )

    def _finding(self, *, ok: bool, detail: str) -> Finding:
        return Finding(node=self._node, check=CHECK, ok=ok, detail=detail, remedy="" if ok else _REMEDY)


def _said(door: Door) -> str:
    return f"Ray's {door.what} at {_at(door)} answers without a token"


def _is_inner(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    return found.is_loopback or found.is_link_local
