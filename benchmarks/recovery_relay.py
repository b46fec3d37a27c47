"""Carries TCP from a socket that was opened outside of a host to an address inside it: run in the host, with the socket.

The dashboard of a lab listens on the head's own loopback interface. This is a program, so that it can be started in the
head; its argument is the inherited listening socket, and the address is the same port of 127.0.0.1 there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys


async def relay(listener: socket.socket) -> None:
    port = listener.getsockname()[1]

    async def carried(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(poured(reader, far_writer), poured(far_reader, writer))
        writer.close()

    server = await asyncio.start_server(carried, sock=listener)
    await server.serve_forever()


async def poured(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(1 << 16):
            sink.write(piece)
            await sink.drain()
    sink.close()


if __name__ == "__main__":
    asyncio.run(relay(socket.socket(fileno=int(sys.argv[1]))))
