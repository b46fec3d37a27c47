"""Replicas that are a few lines of socket each, so that they can misbehave."""

import asyncio
import json

EVENTS = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"


def server(name, model="tiny", port=1):
    return {"run": "r", "trainer": name, "host": "127.0.0.1", "port": port, "model": model, "secret": f"secret-{name}"}


def reply(body, status="200 OK"):
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def block(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class FakeReplica:
    """Answers each request with `parts`, then ends the connection; an `asyncio.Event` among them is waited for."""

    def __init__(self, name, *parts, model="tiny"):
        self.name, self.parts, self.model = name, parts, model
        self.asked, self.left, self.came = [], asyncio.Event(), asyncio.Event()

    async def answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(next(line for line in head.lower().splitlines() if line.startswith("content-length")).split()[1])
        self.asked.append((head, await reader.readexactly(length)))
        self.came.set()
        watching = asyncio.create_task(self._watch(reader))
        try:
            for part in self.parts or (reply({"from": self.name}),):
                if isinstance(part, asyncio.Event):
                    await asyncio.wait_for(part.wait(), 5)
                else:
                    writer.write(part)
                    await writer.drain()
        finally:
            watching.cancel()
            writer.close()

    async def _watch(self, reader):
        if not await reader.read(1):
            self.left.set()
