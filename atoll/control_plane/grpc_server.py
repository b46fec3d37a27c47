"""The control plane's port: streams of agents, and signed calls of the web process.

An agent's stream begins with a mutual challenge over the cluster secret and a comparison of versions; then its
`AgentHello` and facts go to the decision loop, which runs in the same event loop, and commands come back through a
queue for each stream. An empty frame twice a second says that the loop turns: the head's agent kills a control plane
whose beats stop. A node that opens a second stream replaces its first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from atoll.clock import Clock
from atoll.control_plane.grpc_signing import NonceWindow, sign_answer, sign_call
from atoll.errors import AtollError, AuthError, HandshakeError, InternalError, PortInUse, SchemaError, VersionMismatch
from atoll.schema.agent_pb2 import Answer, Call, Frame
from atoll.schema.agent_pb2_grpc import ControlPlaneServicer, add_ControlPlaneServicer_to_server
from atoll.schema.codec import Registry, decode_as, encode, to_plain
from atoll.schema.handshake import Challenge, Proof, check, proof
from atoll.schema.ids import Incarnation, NodeId
from atoll.schema.messages import AGENT_FACTS, AgentCommand, AgentFact, AgentHello, Versions
from atoll.schema.views import ProblemView

HANDSHAKE_S = 5.0
BEAT_S = 0.5
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
)
_FACTS = Registry(AGENT_FACTS)
Call_ = Any  # grpc.aio.ServicerContext; the stubs give its type no parameters


class Mind(Protocol):
    """Who the port speaks to: the decision loop."""

    def attached(self, hello: AgentHello) -> None:
        """An agent passed the handshake."""
        ...

    def detached(self, node: NodeId, evidence: str) -> None:
        """Its stream ended, and no newer one replaced it."""
        ...

    def said(self, node: NodeId, fact: AgentFact) -> None:
        """It reports a fact."""
        ...

    async def called(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """The web process, or whoever else holds the secret, wants something. May raise `AtollError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the control plane says of itself in each handshake."""

    secret: bytes
    incarnation: Incarnation
    pid: int
    start_ticks: int
    versions: Versions


@dataclass(slots=True, eq=False)
class _Stream:
    queue: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[Any] | None = None
    reader: asyncio.Task[None] | None = None
    hung_up: bool = False


class Port(ControlPlaneServicer):
    """The gRPC service. `send` queues a command for a node's agent; `start` and `stop` it in one event loop."""

    def __init__(self, me: Identity, mind: Mind, clock: Clock) -> None:
        self._me = me
        self._mind = mind
        self._clock = clock
        self._streams: dict[NodeId, _Stream] = {}
        self._nonces = NonceWindow()
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises `PortInUse`."""
        server = grpc.aio.server(options=_OPTIONS)
        add_ControlPlaneServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise PortInUse(f"port {port} on {host} is taken; the control plane needs it to be found again") from None
        await server.start()
        self._server = server
        return bound

    async def stop(self) -> None:
        """Stop listening and end all streams."""
        if self._server is not None:
            await self._server.stop(grace=0.2)

    def send(self, node: NodeId, command: AgentCommand) -> None:
        """Queue a command; dropped where the node has no stream."""
        stream = self._streams.get(node)
        if stream is not None:
            stream.queue.put_nowait(encode(command))

    def hang_up(self, node: NodeId) -> None:
        """End the node's stream, whether or not anybody is still there; its agent will open another."""
        stream = self._streams.get(node)
        if stream is not None and stream.reader is not None:
            stream.hung_up = True
            stream.reader.cancel()

    def beat(self) -> None:
        """Tell every agent that the loop turns."""
        for stream in self._streams.values():
            stream.queue.put_nowait(b"")

    # -- agents ------------------------------------------------------------------------------------------------------

    async def Attach(self, request_iterator: Any, context: Call_) -> None:  # noqa: ARG002, N802 - gRPC's name and form
        """One agent's stream, from handshake to end."""
        node = NodeId(dict(context.invocation_metadata() or ()).get("atoll-node", ""))
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                hello = await self._handshake(node, context)
        except (AtollError, TimeoutError, ValueError) as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{error or 'no handshake in time'}")
        stream = _Stream(task=asyncio.current_task())
        old, self._streams[node] = self._streams.get(node), stream
        if old is not None and old.task is not None:
            old.task.cancel()
        writer = asyncio.create_task(self._write(stream, context), name="atoll-agent-writer")
        evidence = "its stream ended"
        try:
            self._mind.attached(hello)
            stream.reader = asyncio.create_task(self._read(node, context), name="atoll-agent-reader")
            await stream.reader
        except (grpc.RpcError, SchemaError) as error:
            evidence = f"its stream broke: {error}"
        except asyncio.CancelledError:
            if not stream.hung_up:
                raise
            evidence = "it was taken for lost"
        finally:
            if stream.reader is not None:
                stream.reader.cancel()
            writer.cancel()
            if self._streams.get(node) is stream:
                del self._streams[node]
                self._mind.detached(node, evidence)
        if stream.hung_up:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{node} {evidence}; say anew what you hold")

    async def _handshake(self, node: NodeId, context: Call_) -> AgentHello:
        me, nonce, binding = self._me, os.urandom(32), node.encode()
        challenge = Challenge(
            nonce=nonce.hex(),
            pid=me.pid,
            start_ticks=me.start_ticks,
            incarnation=me.incarnation,
            versions=me.versions,
        )
        await self._say(context, challenge)
        answer = decode_as(Proof, await _body(context))
        if not check(me.secret, "agent", nonce, binding, bytes.fromhex(answer.mac)):
            raise HandshakeError(f"{node or 'an unnamed node'} does not know the cluster's secret")
        mac = proof(me.secret, "control", bytes.fromhex(answer.nonce), binding)
        await self._say(context, Proof(nonce="", mac=mac.hex()))
        hello = _FACTS.decode(await _body(context))
        if not isinstance(hello, AgentHello) or hello.node != node:
            raise HandshakeError(f"{node} must say AgentHello with its own name first")
        if (hello.versions.protocol, hello.versions.atoll) != (me.versions.protocol, me.versions.atoll):
            raise VersionMismatch(f"{node} runs {hello.versions}, the control plane {me.versions}; install the same")
        return hello

    async def _say(self, context: Call_, message: object) -> None:
        await context.write(Frame(incarnation=self._me.incarnation, body=encode(message)))

    async def _read(self, node: NodeId, context: Call_) -> None:
        while (frame := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            for line in frame.body.split(b"\n"):
                self._mind.said(node, _FACTS.decode(line))

    async def _write(self, stream: _Stream, context: Call_) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            while True:
                body = await stream.queue.get()
                await context.write(Frame(incarnation=self._me.incarnation, body=body))

    # -- calls -------------------------------------------------------------------------------------------------------

    async def Invoke(self, request: Call, context: Call_) -> Answer:  # noqa: N802 - gRPC's name
        """One signed call. Whoever cannot sign learns nothing."""
        try:
            self._admit(request)
        except AuthError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        ok, body = await _outcome(self._mind.called, request)
        return Answer(ok=ok, body=body, mac=sign_answer(self._me.secret, request.nonce, body, ok=ok))

    def _admit(self, call: Call) -> None:
        if not hmac.compare_digest(call.mac, sign_call(self._me.secret, call.method, call.nonce, call.body)):
            raise AuthError("a call that was not signed with the cluster's secret")
        self._nonces.admit(call.nonce, self._clock.now())


async def _body(context: Call_) -> bytes:
    frame = await context.read()
    if frame is grpc.aio.EOF:  # type: ignore[attr-defined]
        raise HandshakeError("the stream ended during the handshake")
    return bytes(frame.body)


async def _outcome(
    called: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]], call: Call
) -> tuple[bool, bytes]:
    try:
        return True, json.dumps(to_plain(await called(call.method, json.loads(call.body)))).encode()
    except AtollError as error:
        problem = ProblemView(code=error.code, problem=str(error))
    except Exception as error:  # noqa: BLE001 - the outer edge: a bug becomes an answer, and the loop goes on
        problem = ProblemView(code=InternalError.code, problem=f"{call.method} failed: {error!r}")
    return False, encode(problem)
