"""Ending the agents of this machine when a cluster goes down, by what they wrote down about themselves.

Asked by the control plane they leave by themselves. One that was not reached, because the control plane is away, is
ended here together with its trainers and the web process: each by pid and start time, so nobody else can be hit.
"""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

from atoll.errors import SchemaError
from atoll.schema.codec import decode_as
from atoll.workers.agent_files_runtime import AgentRecord, read_record
from atoll.workers.proc_runtime import fence, lives, send_signal
from atoll.workers.supervisor_runtime import Child, Children

_LOOK_S = 0.05


def end_agents(home: Path, key: str, timeout_s: float) -> None:
    """Wait until every agent of cluster `key` on this machine is gone; end those that are not in time."""
    folders = list(home.glob(f"nodes/*/{key}"))
    agents = [(folder, record) for folder in folders if (record := read_record(folder)) is not None]
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and any(lives(r.pid, r.start_ticks) for _, r in agents):
        time.sleep(_LOOK_S)
    for folder, record in agents:
        if lives(record.pid, record.start_ticks):
            _end(record)
        for child in _children(folder):
            send_signal(child.pid, child.start_ticks, signal.SIGKILL)


def _end(record: AgentRecord) -> None:
    # The agent first: it would report, and be told to replace, each trainer that ends before it.
    fence(record.pid, record.start_ticks)
    for trainer in record.saved.trainers:
        fence(trainer.found.pid, trainer.found.start_ticks)


def _children(folder: Path) -> list[Child]:
    with contextlib.suppress(OSError, SchemaError):
        return list(decode_as(Children, (folder / "children.json").read_bytes()).children.values())
    return []
