"""Signed calls to the control plane, for the web process and for starting and stopping a cluster.

Each has a deadline. While the control plane is away (it is back within seconds of a crash) a call is tried again until
then; one that was refused, or answered with a problem, raises that problem's own error.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from atoll.clock import Clock, SystemClock
from atoll.control_plane.grpc_signing import make_nonce, sign_answer, sign_call
from atoll.errors import ConnectError, HandshakeError, by_code
from atoll.schema.agent_pb2 import Answer, Call
from atoll.schema.agent_pb2_grpc import ControlPlaneStub

DEADLINE_S = 10.0
_RETRY_S = 0.2
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class ControlClient:
    """Calls to the control plane at `target` (host:port). Use within one event loop; `close` it there."""

    def __init__(
        self, target: str, secret: bytes, *, deadline_s: float = DEADLINE_S, clock: Clock | None = None
    ) -> None:
        self._target = target
        self._secret = secret
        self._deadline_s = deadline_s
        self._clock = clock or SystemClock()
        self._channel: grpc.aio.Channel | None = None

    async def invoke(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `method`. Raises the control plane's error, or `ConnectError` where none answers in time."""
        payload = json.dumps(dict(body)).encode()
        deadline = self._clock.monotonic() + self._deadline_s
        while True:
            left = deadline - self._clock.monotonic()
            try:
                return await self._once(method, payload, max(left, 0.05))
            except grpc.RpcError as error:
                away = error.code() is grpc.StatusCode.UNAVAILABLE
                if not away or self._clock.monotonic() + _RETRY_S >= deadline:
                    raise ConnectError(
                        f"the control plane at {self._target} did not answer {method!r} in {self._deadline_s:g} s "
                        f"({error.code().name.lower()}); training goes on without it; try again, or see `atoll doctor`"
                    ) from None
            await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def _once(self, method: str, body: bytes, limit_s: float) -> dict[str, Any]:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        nonce = make_nonce(self._clock.now(), os.urandom(16))
        call = Call(nonce=nonce, mac=sign_call(self._secret, method, nonce, body), method=method, body=body)
        stub = ControlPlaneStub(self._channel)  # type: ignore[no-untyped-call]
        answer: Answer = await stub.Invoke(call, timeout=limit_s)
        if answer.mac != sign_answer(self._secret, nonce, answer.body, ok=answer.ok):
            raise HandshakeError(f"what answers at {self._target} does not know the cluster's secret")
        result: dict[str, Any] = json.loads(answer.body)
        if not answer.ok:
            raise by_code(str(result.get("code")))(str(result.get("problem")))
        return result


def invoke_once(
    target: str, secret: bytes, method: str, body: Mapping[str, Any], *, deadline_s: float
) -> dict[str, Any]:
    """One call from code without an event loop."""

    async def call() -> dict[str, Any]:
        client = ControlClient(target, secret, deadline_s=deadline_s)
        try:
            return await client.invoke(method, body)
        finally:
            await client.close()

    return asyncio.run(call())
