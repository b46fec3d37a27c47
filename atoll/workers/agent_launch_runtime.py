"""Starts a node's agent outside the process tree of whoever asks.

Measured: a dead GCS or a healed network cut kills a raylet and all its descendants after 60-105 s, also those in
sessions of their own; only a process forked twice survives. So `launch`, called in an actor of Ray, runs this module in
a process that starts the agent and exits at once: the agent's parent is then the machine's init. The one in between is
a fresh interpreter because forking an actor's many threads is not safe; no descriptor of the actor's passes through it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from atoll.clock import SystemClock
from atoll.errors import ConnectError, InternalError
from atoll.schema.codec import from_plain
from atoll.workers.agent_files_runtime import AgentConfig, log_tail, private_dir, read_record
from atoll.workers.proc_runtime import lives, spawn_module

MODULE = "atoll.workers.agent_runtime"
# An interpreter and gRPC's import; much longer only on a machine that starts many things at once.
START_S = 30.0
# What Ray sets for one worker and an agent, which outlives that worker, must not pass on to trainers.
WORKER_ONLY = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTHONBREAKPOINT",
    "RAY_CLIENT_MODE",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_JOB_ID",
    "RAY_RAYLET_PID",
)


def launch(config: dict[str, Any]) -> int:
    """Start the agent of `config` and return its pid, or the pid of the one that serves this cluster here already.

    Raises `ConnectError` with the end of its log when it does not come up.
    """
    wanted = from_plain(AgentConfig, config)
    _between(json.dumps(config).encode() + b"\n")
    clock = SystemClock()
    deadline = clock.monotonic() + START_S
    while clock.monotonic() < deadline:
        record = read_record(Path(wanted.state_dir))
        if record and record.fingerprint == wanted.fingerprint() and lives(record.pid, record.start_ticks):
            return record.pid
        time.sleep(0.02)
    tail = log_tail(Path(wanted.state_dir, "agent.log"))[-1000:]
    raise ConnectError(f"the agent of {wanted.node} did not come up in {START_S:.0f} s; the end of its log: {tail!r}")


def _between(line: bytes) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=line,
            capture_output=True,
            timeout=START_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectError(f"starting an agent took over {START_S:.0f} s: {error}") from None
    if done.returncode != 0:
        raise InternalError(f"starting an agent failed: {done.stderr.decode(errors='replace')[-1000:]}")


def main() -> None:
    """The process in between: start the agent, and exit."""
    line = sys.stdin.buffer.readline()
    config = from_plain(AgentConfig, json.loads(line))
    os.umask(0o077)
    log = private_dir(Path(config.state_dir)) / "agent.log"
    for name in WORKER_ONLY:
        os.environ.pop(name, None)  # noqa: TID251 - taken out for the agent to come, none is read
    spawn_module(MODULE, config=line, log=log)


if __name__ == "__main__":
    main()
