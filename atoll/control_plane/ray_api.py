"""The one module that touches what Ray does not promise: its Node class, its environment variables, its listings.

Written for Ray 2.60; `tests/integration` fails when another version behaves otherwise. Why not `ray start`: it turns
127.0.0.1 into the host's outer address, starts a dashboard, a client server and an autoscaler that Atoll does not use
(measured: 5.3 s and 8 processes, against 1.7 s and 4 this way), and with `--block` ends everything when its controller
dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.control_plane.fs_cluster import free_port, listens
from atoll.errors import ConnectError

NAMESPACE = "atoll"
ACTOR = "atoll"
RAY_VERSION = "2.60"
# Seats pass no objects; the store is only there because Ray insists.
_OBJECT_STORE_BYTES = 80 << 20


def prepare_environment(token_file: str, *, loopback: bool) -> None:
    """Set, before Ray is imported, what Ray reads from the environment: its token, silence, and whose address is ours.

    Ray refuses 127.0.0.1 as an address unless its cluster support is off, which is what the variable with Windows in
    its name means: this node's address is the loopback one.
    """
    env = os.environ  # noqa: TID251 - written for Ray, which has no argument for these
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    env["RAY_DEDUP_LOGS"] = "0"
    # The driver's own job settings must not become those of detached actors.
    env.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    env.pop("RAY_RUNTIME_ENV_HOOK", None)
    if loopback:
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token_file:
        env["RAY_AUTH_MODE"] = "token"
        env["RAY_AUTH_TOKEN_PATH"] = token_file
        env.pop("RAY_AUTH_TOKEN", None)


def is_loopback(address: str) -> bool:
    """True where the controller at `address` listens on the loopback interface itself."""
    host, _, port = address.rpartition(":")
    return host in {"127.0.0.1", "localhost"} and port.isdecimal() and listens("127.0.0.1", int(port))


def connect(address: str, token_file: str = "") -> Any:
    """Connect this process to the Ray cluster at `address`; returns the ray module. Raises `ConnectError`."""
    prepare_environment(token_file, loopback=is_loopback(address))
    _probe(address)
    import ray  # noqa: PLC0415 - reads the environment prepared above

    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConnectError(f"cannot connect to Ray at {address}: {error}") from None
    if not ray.__version__.startswith(RAY_VERSION):
        raise ConnectError(f"Ray {ray.__version__} at {address}; this Atoll works with Ray {RAY_VERSION}")
    return ray


def _probe(address: str) -> None:
    """Fail within seconds where Ray's own client would try for half a minute. Raises `ConnectError`."""
    from ray._private.services import canonicalize_bootstrap_address  # noqa: PLC0415 - reads the environment

    try:
        resolved = canonicalize_bootstrap_address(address) or ""
    except (ValueError, ConnectionError) as error:
        raise ConnectError(f"{address!r} is no address of a Ray cluster: {error}; use HOST:PORT or auto") from None
    host, _, port = resolved.rpartition(":")
    if port.isdecimal() and not listens(host, int(port), 3.0):
        raise ConnectError(f"no Ray controller answers at {resolved}; start one with `ray start --head`")


def seat_names(ray: Any) -> list[str]:
    """The names of Atoll's living actors."""
    listed = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in listed if a["namespace"] == NAMESPACE]


def kill_named(ray: Any, name: str) -> None:
    """End a named actor for good, if it exists."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def keep_package(uri: str, keep_s: int) -> None:
    """Keep the packed working directory of a job for so long. Ray deletes it when the job ends and no actor uses it."""
    from ray._private.runtime_env.packaging import pin_runtime_env_uri  # noqa: PLC0415 - after `connect`

    pin_runtime_env_uri(uri, expiration_s=keep_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """An embedded Ray."""

    port: int
    temp_dir: str
    token_file: str
    cpus: int | None = None


class HeadNode:
    """Ray's processes of one machine, on the loopback interface, reduced to what Atoll uses."""

    def __init__(self, config: HeadConfig) -> None:
        prepare_environment(config.token_file, loopback=True)
        env = os.environ  # noqa: TID251 - as in prepare_environment
        # Seats and the control plane are started when wanted; idle workers would each cost 80 MB and a start.
        env["RAY_enable_worker_prestart"] = "0"
        env["RAY_enable_metrics_collection"] = "0"
        env["RAY_SCHEDULER_EVENTS"] = "0"
        Path(config.temp_dir).mkdir(mode=0o700, exist_ok=True)
        self._node: Any = _node_class()(_parameters(config), head=True, shutdown_at_exit=False, spawn_reaper=False)

    @property
    def address(self) -> str:
        """The controller's."""
        return str(self._node.gcs_address)

    def dead(self) -> list[str]:
        """Which of Ray's own processes ended."""
        return [str(kind) for kind, _ in self._node.dead_processes()]

    def kill(self) -> None:
        """End them all."""
        self._node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)


def _node_class() -> type[Any]:
    from ray._private.node import Node  # noqa: PLC0415 - after the environment is prepared

    class Quiet(Node):
        """A head without dashboard and log monitor: Atoll has its own, and people log in there."""

        def start_api_server(self, **_: Any) -> None:
            """Start none."""

        def start_log_monitor(self) -> None:
            """Start none."""

    return Quiet


def _parameters(config: HeadConfig) -> Any:
    from ray._private.parameter import RayParams  # noqa: PLC0415 - as above

    make: Any = RayParams  # its own annotations are wrong in places
    return make(
        node_ip_address="127.0.0.1",
        node_name="127.0.0.1",
        gcs_server_port=config.port,
        num_cpus=config.cpus,
        temp_dir=config.temp_dir,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        # Not the default port: a Ray that somebody starts by hand on this machine would find its job agent's taken.
        dashboard_agent_listen_port=free_port("127.0.0.1"),
        include_log_monitor=False,
        no_monitor=True,
    )


# -- machines by Ray's own autoscaler --------------------------------------------------------------------------------


def request_machines(address: str, bundles: list[dict[str, float]], selectors: list[dict[str, str]]) -> None:
    """Tell Ray's autoscaler v2 which machines are to stand: one bundle each, with labels that its node must have.

    There is one such request in a cluster, and each replaces the one before: whoever calls this must be its only owner.
    By way of the v2 client itself: `request_resources` drops labels unless it believes that v2 is on. Raises `ConnectError`.
    """
    from ray.autoscaler.v2.sdk import request_cluster_resources  # noqa: PLC0415 - reads the environment

    wanted = [{"resources": b, "label_selector": s} for b, s in zip(bundles, selectors, strict=True)]
    try:
        request_cluster_resources(address, wanted)
    except Exception as error:  # noqa: BLE001 - Ray's client raises its own RPC errors, which are no public names
        raise ConnectError(f"Ray at {address} did not take the request for machines: {error}") from None


def requested_machines(address: str) -> list[tuple[dict[str, float], dict[str, str], int]]:
    """What is requested now: bundles with their labels, and how many of each."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: PLC0415 - as above
    from ray.autoscaler.v2.sdk import get_cluster_resource_state  # noqa: PLC0415 - as above

    state = get_cluster_resource_state(GcsClient(address=address))
    found = []
    for constraint in state.cluster_resource_constraints:
        for row in constraint.resource_requests:
            labels = {
                c.label_key: ",".join(c.label_values)
                for selector in row.request.label_selectors
                for c in selector.label_constraints
            }
            found.append((dict(row.request.resources_bundle), labels, int(row.count)))
    return found


def failed_launches(address: str) -> list[tuple[str, float, str]]:
    """What Ray's autoscaler could not start: type, when (Unix seconds), and what its provider said."""
    from ray.autoscaler.v2.sdk import get_cluster_status  # noqa: PLC0415 - as above

    status = get_cluster_status(address)
    return [
        (str(f.ray_node_type_name), float(f.failed_ts_s or 0), str(f.details or "")) for f in status.failed_launches
    ]


def ray_nodes(address: str) -> list[tuple[str, dict[str, str]]]:
    """Id and labels of each node that Ray calls alive."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: PLC0415 - as above

    nodes = GcsClient(address=address).get_all_node_info()
    return [(key.hex(), dict(info.labels)) for key, info in nodes.items() if info.state == 0]


def end_idle(address: str, node: str, reason: str) -> None:
    """Have Ray's autoscaler end this very node, if it is still idle."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: PLC0415 - as above
    from ray.core.generated import autoscaler_pb2  # noqa: PLC0415 - as above

    reasons: Any = autoscaler_pb2
    idle = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_IDLE_TERMINATION")
    accepted, why = GcsClient(address=address).drain_node(node, idle, reason, 0)
    if not accepted:
        raise ConnectError(f"Ray does not end node {node}: {why}")
