"""The control plane as Ray sees it: a named, detached actor that Ray restarts when its process dies.

The actor itself only holds a thread with the event loop of `ControlRuntime`. If that loop fails - a bug, a journal that
cannot be written - the process ends, because state and journal may disagree; Ray starts the next incarnation, which
replays. So it does where the loop could not begin, as on a full disk or beside a predecessor that has not died: not
before whoever asked `ready` was told why.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import atoll
from atoll.clock import SystemClock
from atoll.control_plane.control_runtime import ControlConfig, ControlRuntime
from atoll.control_plane.fs_cluster import ClusterRecord, load, secret_file
from atoll.control_plane.ray_seats import RaySeats
from atoll.errors import ConnectError
from atoll.schema.ids import NodeId
from atoll.schema.messages import PROTOCOL, Versions
from atoll.workers.proc_runtime import my_start_ticks
from atoll.workers.proc_turns import usual_niceness

READY_S = 30.0
_FAILED = 70
# How long one that could not begin stays to tell why; it is also how often that is tried again.
TOLD_S = 5.0


class ControlPlane:
    """The actor `atoll`. `cluster_dir` and `home` lie on its node."""

    def __init__(self, cluster_dir: str, home: str) -> None:
        usual_niceness()
        self._cluster_dir = Path(cluster_dir)
        self._home = Path(home)
        self._ready = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._serve, name="atoll-control", daemon=True)
        self._thread.start()

    def ready(self) -> int:
        """This process's pid, once agents and calls are answered. Raises `ConnectError` with the problem."""
        if not self._ready.wait(READY_S) or self._problem:
            raise ConnectError(self._problem or f"the control plane is not ready after {READY_S:.0f} s")
        return os.getpid()

    def _serve(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001 - the outer edge: said in the log, then a new incarnation
            traceback.print_exc(file=sys.stderr)
            self._problem = f"{type(error).__name__}: {error}"
        else:
            self._problem = "the control plane was closed"
        was_ready = self._ready.is_set()
        self._ready.set()
        if not was_ready:
            time.sleep(TOLD_S)
        os._exit(_FAILED)

    async def _run(self) -> None:
        import ray  # noqa: PLC0415 - this process is connected already

        record = load(self._cluster_dir)
        if record is None:
            raise ConnectError(f"{self._cluster_dir}/cluster.json is missing or damaged; run `atoll up` again")
        secret = secret_file(self._cluster_dir / "secret")
        host, _, port = record.control.rpartition(":")
        seats = RaySeats(ray=ray, home_address=host, agent_config=self._agent_config_maker(record, secret))
        config = ControlConfig(
            cluster_dir=self._cluster_dir,
            home=self._home,
            ray_address=record.ray_address,
            host=host,
            port=int(port),
            secret=bytes.fromhex(secret),
            pid=os.getpid(),
            start_ticks=my_start_ticks(),
            versions=Versions(atoll=atoll.__version__, protocol=PROTOCOL, python=platform.python_version()),
        )
        await ControlRuntime(config, seats, SystemClock()).run(self._ready.set)

    def _agent_config_maker(self, record: ClusterRecord, secret: str) -> Any:
        def make(node: NodeId, address: str) -> dict[str, Any]:
            head = node == record.node
            web = {"host": record.web_host, "port": record.web_port, "cluster_dir": str(self._cluster_dir)}
            return {
                "node": node,
                "address": address,
                "state_dir": str(self._home / "nodes" / node / self._cluster_dir.name),
                "home": str(self._home),
                "control": record.control,
                "secret": secret,
                "head": head,
                "web": web if head else None,
                "ray_address": record.ray_address,
            }

        return make
