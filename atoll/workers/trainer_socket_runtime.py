"""The agent's Unix socket, where its trainers connect.

The socket lies in a directory of mode 0700; beyond that the kernel tells who is at the other end (SO_PEERCRED): another
user is turned away, and a hello must name the very process that opened the connection. Every few seconds each trainer
gets an empty line, so that it knows its agent alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from atoll.errors import SchemaError
from atoll.schema.codec import Registry, encode
from atoll.schema.ids import TrainerId
from atoll.schema.messages import TRAINER_FACTS, TrainerCommand, TrainerHello
from atoll.workers.agent_messages import Connected, Said
from atoll.workers.proc_runtime import start_ticks
from atoll.workers.trainer_link_runtime import SOCKET, socket_address

# A traceback or a metric line is far below; a longer line is not a trainer's.
LINE_BYTES = 1 << 22
HELLO_S = 5.0
_FACTS = Registry(TRAINER_FACTS)
_CREDENTIALS = struct.Struct("3i")


class TrainerSocket:
    """The server. `emit` gets `Connected` and `Said`; `tell` reaches a connected trainer."""

    def __init__(self, state_dir: Path, emit: Callable[[Connected | Said], None]) -> None:
        self._state_dir = state_dir
        self._emit = emit
        self._server: asyncio.Server | None = None
        self._writers: dict[TrainerId, asyncio.StreamWriter] = {}
        self._tasks: dict[TrainerId, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Listen. A socket left by an earlier agent is replaced: the caller holds the lock."""
        (self._state_dir / SOCKET).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(self._state_dir) as address:
            listener.bind(address)
        (self._state_dir / SOCKET).chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_BYTES, backlog=256)

    def tell(self, trainer: TrainerId, command: TrainerCommand) -> None:
        """Write a command to the trainer, if it is connected."""
        writer = self._writers.get(trainer)
        if writer is not None and not writer.is_closing():
            writer.write(encode(command) + b"\n")

    def greet(self) -> None:
        """Let every trainer hear that the agent lives."""
        for writer in self._writers.values():
            if not writer.is_closing():
                writer.write(b"\n")

    async def settle(self, trainer: TrainerId, timeout_s: float) -> None:
        """After a trainer's end: wait until what it wrote last was read."""
        task = self._tasks.get(trainer)
        if task is not None:
            await asyncio.wait({task}, timeout=timeout_s)

    async def close(self) -> None:
        """Close every connection and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        (self._state_dir / SOCKET).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trainer: TrainerId | None = None
        task = asyncio.current_task()
        try:
            hello = await asyncio.wait_for(_read_hello(reader, writer), HELLO_S)
            if hello is not None and task is not None:
                trainer = hello.trainer
                self._writers[trainer], self._tasks[trainer] = writer, task
                self._emit(Connected(hello=hello))
                await self._listen(trainer, reader)
        except (OSError, ValueError, SchemaError, TimeoutError) as error:
            print(f"atoll: a trainer's connection ended: {error!r}", file=sys.stderr)  # noqa: T201 - the agent's log
        finally:
            if trainer is not None and self._writers.get(trainer) is writer:
                del self._writers[trainer], self._tasks[trainer]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _listen(self, trainer: TrainerId, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if not line.endswith(b"\n"):
                return  # killed in the middle of a word
            fact = _FACTS.decode(line)
            if fact.trainer != trainer:
                raise SchemaError(f"{trainer} spoke in the name of {fact.trainer}")
            self._emit(Said(trainer=trainer, fact=fact))


async def _read_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> TrainerHello | None:
    peer: socket.socket = writer.get_extra_info("socket")
    pid, uid, _gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid():
        raise SchemaError(f"process {pid} of user {uid} is not this agent's")
    line = await reader.readline()
    if not line:
        return None
    hello = _FACTS.decode(line)
    if not isinstance(hello, TrainerHello):
        raise SchemaError(f"process {pid} began with {type(hello).__name__} instead of TrainerHello")
    if hello.pid != pid or start_ticks(pid) != hello.start_ticks:
        raise SchemaError(f"process {pid} says it is {hello.pid} started at {hello.start_ticks}")
    return hello
