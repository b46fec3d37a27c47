"""The agent's stream to the control plane: a mutual handshake, then facts up and commands down, for ever again.

Handshake: the control plane's first frame is a `Challenge`; the agent answers with a `Proof` over the cluster secret
and its node name (which it says in the call's metadata under `atoll-node`), and a nonce of its own, whose proof the
control plane owes in return. Only then is a word of it believed. The secret itself never travels. A frame with an empty
body is a beat: it says that the control plane's loop turns. Facts that are queued at the same time share a frame, a line
each: a frame costs both sides half a millisecond of a processor, a line a hundredth of that.

A broken stream is opened again with pauses of at most 0.5 s, each on a new channel, so that no back-off of the old one
delays finding a control plane that is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from atoll.clock import Clock
from atoll.errors import AtollError, HandshakeError, VersionMismatch
from atoll.schema.agent_pb2 import Frame
from atoll.schema.agent_pb2_grpc import ControlPlaneStub
from atoll.schema.codec import Registry, encode
from atoll.schema.handshake import Challenge, Proof, check, proof
from atoll.schema.ids import Incarnation, NodeId
from atoll.schema.messages import AGENT_COMMANDS, PROTOCOL, AgentFact
from atoll.workers.agent_messages import Attached, CommandCame, Detached
from atoll.workers.silence import Backoff

HANDSHAKE_S = 2.0
# More facts waiting in one stream than this means that the other side does not read.
BACKLOG = 20_000
# Facts that share a frame: even if each were a piece of a log, gRPC takes it. The hello, which is first, has its own.
_TOGETHER = 16
OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)
_COMMANDS = Registry(AGENT_COMMANDS)
_HANDSHAKE = Registry((Challenge, Proof))
_EOF: Any = vars(grpc.aio)["EOF"]  # missing in the stubs
# InvalidStateError: a write or read that met the end of its stream. ValueError: a nonce or proof that is not hex.
_EXPECTED = (grpc.RpcError, AtollError, TimeoutError, EOFError, ValueError, asyncio.InvalidStateError)
Stream = Any  # grpc.aio.StreamStreamCall; the stubs give its type no parameters


class ControlLink:
    """The line. `emit` gets `Attached`, `CommandCame` and `Detached`; `send` queues a fact on the present stream."""

    def __init__(
        self,
        target: str,
        node: NodeId,
        secret: bytes,
        emit: Callable[[Attached | Detached | CommandCame], None],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._target = target
        self._node = node
        self._secret = secret
        self._emit = emit
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._stream: Stream | None = None
        self._finishing = False
        self._logged = ""
        self._over = asyncio.Event()
        self.peer: Challenge | None = None
        self.attached = False
        self.beating = False
        self.streams = 0
        self.sent_at = 0.0
        self.frames = 0

    async def run(self) -> None:
        """Keep a stream until cancelled."""
        backoff = Backoff(first_s=0.05, last_s=0.5)
        while not self._finishing:
            before = self.streams
            try:
                await self._once()
            except _EXPECTED as error:
                self._log_once(_story(error))
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise  # the agent ends; else it was `drop`: gRPC says so in the same words
            if self.streams != before:
                backoff.reset()
            await asyncio.sleep(backoff.next())

    def send(self, fact: AgentFact) -> None:
        """Queue `fact`. What a dying stream still holds is lost; the core says again what matters."""
        if not self.attached:
            return
        if self._queue.qsize() >= BACKLOG:
            self.drop()
            return
        self.sent_at = self._clock.monotonic()
        self._queue.put_nowait(encode(fact))

    def drop(self) -> None:
        """End the present stream; another is opened."""
        if self._stream is not None:
            self._stream.cancel()

    async def finish(self, timeout_s: float) -> None:
        """Say what is queued, and that nothing follows; wait until the other side has read it. No stream comes after."""
        self._finishing = True
        if self._stream is None or not self.attached:
            return
        with contextlib.suppress(TimeoutError, grpc.RpcError):
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
                await self._stream.done_writing()
                await self._over.wait()  # cancelling now would take back what is on its way

    def _log_once(self, story: str) -> None:
        if story and story != self._logged:
            print(f"atoll: {self._target}: {story}", file=sys.stderr, flush=True)  # noqa: T201 - the agent's log
            self._logged = story

    async def _once(self) -> None:
        async with grpc.aio.insecure_channel(self._target, options=OPTIONS) as channel:
            stub = ControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
            stream: Stream = stub.Attach(metadata=(("atoll-node", self._node),))
            self._stream = stream
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    self.peer = await self._handshake(stream)
                await self._converse(stream)
            finally:
                self._stream = None
                stream.cancel()

    async def _handshake(self, stream: Stream) -> Challenge:
        challenge: Challenge = await _read_one(stream, Challenge)
        if challenge.versions.protocol != PROTOCOL:
            raise VersionMismatch(
                f"the control plane at {self._target} speaks protocol {challenge.versions.protocol}, this agent "
                f"{PROTOCOL}; install the same atoll on every node (control plane: {challenge.versions.atoll})"
            )
        nonce, context = os.urandom(32), self._node.encode()
        mac = proof(self._secret, "agent", bytes.fromhex(challenge.nonce), context)
        await stream.write(Frame(body=encode(Proof(nonce=nonce.hex(), mac=mac.hex()))))
        answer: Proof = await _read_one(stream, Proof)
        if not check(self._secret, "control", nonce, context, bytes.fromhex(answer.mac)):
            raise HandshakeError(f"{self._target} does not know the cluster secret; its commands are not taken")
        return challenge

    async def _converse(self, stream: Stream) -> None:
        self._queue = asyncio.Queue()
        self._over.clear()
        self.streams += 1
        self.attached, self.beating = True, False
        writer = asyncio.create_task(self._write(stream), name="atoll-control-writer")
        try:
            self._emit(Attached())
            await self._read(stream)
        finally:
            self.attached = False
            self._over.set()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._emit(Detached())

    async def _read(self, stream: Stream) -> None:
        while (frame := await stream.read()) is not _EOF:
            self.frames += 1
            if not frame.body:
                self.beating = True
                continue
            command = _COMMANDS.decode(frame.body)
            self._emit(CommandCame(incarnation=Incarnation(frame.incarnation), command=command))

    async def _write(self, stream: Stream) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            most = 1
            while True:
                facts = [await self._queue.get()]
                while len(facts) < most and not self._queue.empty():
                    facts.append(self._queue.get_nowait())
                await stream.write(Frame(body=b"\n".join(facts)))
                most = _TOGETHER
                for _ in facts:
                    self._queue.task_done()


async def _read_one(stream: Stream, kind: type[Any]) -> Any:
    frame = await stream.read()
    if frame is _EOF:
        raise EOFError("the control plane ended the stream during the handshake")
    message = _HANDSHAKE.decode(frame.body)
    if not isinstance(message, kind):
        raise HandshakeError(f"expected {kind.__name__}, got {type(message).__name__}")
    return message


def _story(error: BaseException) -> str:
    """What is worth a line in the log: not that a control plane is away, but that it and we do not agree."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.details()}" if error.code() is grpc.StatusCode.UNAUTHENTICATED else ""
    return "" if isinstance(error, TimeoutError | EOFError | grpc.RpcError) else str(error)
