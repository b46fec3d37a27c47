"""The process that holds an embedded Ray: `python -m atoll.control_plane.ray_head`, configuration on standard input.

When Ray's controller or raylet dies, so do the control plane's actor and the seats; training goes on without them. This
process then ends what is left of that Ray and starts it anew at the same address, where the head's agent creates the
control plane again. SIGTERM ends Ray and this process.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading

import psutil

from atoll.control_plane.fs_cluster import listens
from atoll.control_plane.ray_api import HeadConfig, HeadNode
from atoll.schema.codec import decode_as

LOOK_S = 0.5
# A machine too full to keep Ray up is not helped by starting it for ever.
TRIES = 20
PAUSE_S = 2.0


def main() -> int:
    """Hold Ray until told to end."""
    config = decode_as(HeadConfig, sys.stdin.readline())
    leave = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave.set())
    for _ in range(TRIES):
        _hold(config, leave)
        if leave.wait(PAUSE_S):
            return 0
        _log("a process of Ray died; it is started anew")
    return 1


def _hold(config: HeadConfig, leave: threading.Event) -> None:
    try:
        node = HeadNode(config)
    except Exception as error:  # noqa: BLE001 - the outer edge: said in the log, tried again
        _log(f"Ray did not start: {error!r}")
        end(psutil.Process().children(recursive=True))
        return
    _log(f"Ray is up at {node.address}")
    host, _, port = node.address.rpartition(":")
    while not leave.wait(LOOK_S):
        if node.dead() or not listens(host, int(port), 5.0):
            break
    # Gathered while parents live: Ray's helpers are children of the raylet, and nobody's once it is gone.
    family = psutil.Process().children(recursive=True)
    with contextlib.suppress(Exception):  # ends what it can; the rest is ended below
        node.kill()
    end(family)


def end(family: list[psutil.Process]) -> None:
    """SIGKILL these processes. Agents are not among them: they were forked twice."""
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(family, timeout=3)


def _log(text: str) -> None:
    print(f"atoll: {text}", file=sys.stderr, flush=True)  # noqa: T201 - this process's log


if __name__ == "__main__":
    sys.exit(main())
