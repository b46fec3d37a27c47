"""Makes sure that a Ray cluster has a control plane: `python -m atoll.control_plane.ray_ensure`, settings on stdin.

Run by whoever starts a cluster and, after Ray died and came back, by the head's agent. A process of its own: Ray's
client never enters the caller, and a hang of Ray ends with this process at its deadline. Its last line on standard
output is JSON, `{"cluster_dir": ...}` or a problem with its code.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.config import cluster_key, load
from atoll.control_plane import fs_cluster as files
from atoll.control_plane import fs_durable, fs_tls
from atoll.control_plane.ray_actor import ControlPlane
from atoll.control_plane.ray_api import ACTOR, NAMESPACE, connect, kill_named, seat_names
from atoll.control_plane.ray_seats import PREFIX, node_id
from atoll.errors import AtollError, ConnectError
from atoll.schema.codec import decode_as

# Longer than Ray's own patience with a controller that is just starting.
DEADLINE_S = 60.0
CREATE_S = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureConfig:
    """`cluster_dir` is known unless Ray's address has still to be found out. With `end`, actors are killed instead."""

    home: str
    ray_address: str
    cluster_dir: str = ""
    web_port: int | None = None
    end: bool = False


def ensure(config: EnsureConfig) -> Path:
    """Create or find the actor; returns the cluster's folder. Raises `AtollError`."""
    known = files.load(Path(config.cluster_dir)) if config.cluster_dir else None
    ray = connect(config.ray_address, known.token_file if known else "")
    try:
        context = ray.get_runtime_context()
        if config.end:
            _end(ray)
            return Path(config.cluster_dir)
        cluster_dir = Path(config.cluster_dir or _dir_of(config, context.gcs_address))
        fs_durable.settle(cluster_dir, load())
        _describe(cluster_dir, config, context.gcs_address, ray.util.get_node_ip_address())
        _create(ray, cluster_dir, config, context.get_node_id())
        return cluster_dir
    finally:
        ray.shutdown()


def _dir_of(config: EnsureConfig, address: str) -> Path:
    return files.private_dir(Path(config.home) / "clusters" / cluster_key(address))


def _describe(cluster_dir: Path, config: EnsureConfig, address: str, host: str) -> None:
    """Write `cluster.json` once; afterwards ports stay, so that living agents find what comes back."""
    files.secret_file(Path(config.home) / "token")
    files.secret_file(cluster_dir / "secret")
    opened, known = fs_tls.door(Path(config.home)), files.load(cluster_dir)
    if known is not None:
        # With or without TLS may have been chosen anew since the cluster was up last.
        changed = replace(known, rest_url=opened.url(known.web_port), web_host=opened.host)
        if changed != known:
            files.save(cluster_dir, changed)
        return
    web = files.web_port(opened.host, config.web_port)
    record = files.ClusterRecord(
        rest_url=opened.url(web),
        ray_address=address,
        control=f"{host}:{files.free_port(host)}",
        web_host=opened.host,
        web_port=web,
        node=node_id(host),
        embedded=False,
    )
    files.save(cluster_dir, record)


def _create(ray: Any, cluster_dir: Path, config: EnsureConfig, ray_node: str) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - after `connect`

    actor = (
        ray.remote(ControlPlane)
        .options(
            name=ACTOR,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=ray_node, soft=False),
        )
        .remote(str(cluster_dir), config.home)
    )
    try:
        ray.get(actor.ready.remote(), timeout=CREATE_S)
    except ray.exceptions.RayTaskError as error:
        raise ConnectError(f"the control plane did not start: {error.cause}") from None
    except ray.exceptions.RayError as error:
        raise ConnectError(f"the control plane did not start in {CREATE_S:.0f} s: {error}") from None


def _end(ray: Any) -> None:
    for name in seat_names(ray):
        if name.startswith(PREFIX):
            kill_named(ray, name)
    kill_named(ray, ACTOR)


def _give_up() -> None:
    _answer({"code": ConnectError.code, "problem": f"Ray did not answer in {DEADLINE_S:.0f} s"})
    os._exit(ConnectError.exit_code)


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Do as standard input says. Returns the exit code."""
    watchdog = threading.Timer(DEADLINE_S, _give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        cluster_dir = ensure(decode_as(EnsureConfig, sys.stdin.readline()))
    except AtollError as error:
        _answer({"code": error.code, "problem": str(error)})
        return error.exit_code
    _answer({"cluster_dir": str(cluster_dir)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
