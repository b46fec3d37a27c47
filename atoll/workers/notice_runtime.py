"""A notice that this node will go, left for its agent as a file: `ATOLL_HOME/nodes/NODE/notice`, one line, e.g. `120s`.

Whoever knows first that a machine will be taken writes it: `atoll drain --here --within 120s`, or any hook of a provider
or service manager with `echo 120s > ...`. The rights of the folder are the proof. Time counts from when the file was
written, and that moment names the notice: it may be told any number of times. Removing the file takes nothing back
(`atoll undrain` does), but a notice written later is a new one. A machine that still stands long after its time was not
taken: its notice is void.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from atoll.errors import SpecError
from atoll.schema.durations import seconds
from atoll.schema.ids import NodeId
from atoll.schema.messages import NodeLeaving

# What a provider that names no time leaves at least.
_UNSAID_S = 30.0
_LONGEST_TEXT = 100
VOID_S = 600.0


def read_notice(file: Path, node: NodeId, now: float) -> NodeLeaving | None:
    """The notice that lies there, if any. `now`: Unix seconds by this machine's clock, as the file's."""
    try:
        written = file.stat().st_mtime
        text = file.read_text(encoding="utf-8", errors="replace")[:_LONGEST_TEXT].strip()
    except OSError:
        return None
    try:
        span = seconds(text) if text else _UNSAID_S
    except SpecError:
        # Something wants this node to go: better a span of ours than none.
        span = _UNSAID_S
    if now > written + span + VOID_S:
        return None
    moment = dt.datetime.fromtimestamp(written, dt.UTC).isoformat(timespec="milliseconds")
    return NodeLeaving(node=node, notice=f"given {moment}", left_s=max(written + span - now, 0.0))
