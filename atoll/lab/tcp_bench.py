"""One TCP transfer between two hosts of a lab, as a script in each: `receive ADDRESS` or `send ADDRESS PORT SECONDS`.

The receiver prints its port, takes one connection and prints how many bytes came in how many seconds. The first quarter
of the time is left out: slow start, and the burst that a shaper lets through at once. Standard library only, so that it
starts in 20 ms.
"""

from __future__ import annotations

import json
import socket
import sys
import time

_CHUNK = 256 * 1024
# A cut link must not leave the script waiting.
_SILENT_S = 10.0
_WARM_SHARE = 0.25


def receive(address: str) -> dict[str, float]:
    """Take one transfer. The first eight bytes say for how many milliseconds it will be."""
    with socket.create_server((address, 0)) as server:
        server.settimeout(_SILENT_S)
        sys.stdout.write(f"{server.getsockname()[1]}\n")
        sys.stdout.flush()
        connection, _ = server.accept()
    buffer, count = bytearray(_CHUNK), 0
    with connection:
        connection.settimeout(_SILENT_S)
        length_s = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big") / 1e3
        warm = time.perf_counter() + length_s * _WARM_SHARE
        since = last = warm
        while got := connection.recv_into(buffer):
            last = time.perf_counter()
            if last < warm:
                continue
            if count == 0 and since == warm:
                since = last
            else:
                count += got
    return {"bytes": count, "seconds": last - since}


def send(address: str, port: int, length_s: float) -> None:
    """Send for so many seconds, as fast as the link takes it."""
    data = memoryview(bytes(_CHUNK))
    with socket.create_connection((address, port), timeout=_SILENT_S) as connection:
        connection.sendall(int(length_s * 1e3).to_bytes(8, "big"))
        until = time.perf_counter() + length_s
        while time.perf_counter() < until:
            # Not `sendall`: what the socket takes at once is little enough to stop in time on a slow link.
            connection.send(data)


def main(words: list[str]) -> int:
    """The script."""
    try:
        if words[0] == "receive":
            sys.stdout.write(json.dumps(receive(words[1])) + "\n")
        else:
            send(words[1], int(words[2]), float(words[3]))
    except OSError as error:
        sys.stderr.write(f"{' '.join(words)}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
