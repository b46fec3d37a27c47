"""Seats: detached actors that hold one trainer's resources, device ids and working directory in Ray's books.

A seat does nothing. It makes Ray's view of the cluster true, keeps the job's unpacked files alive on its node, and is
found by name after any restart. Trainers do not run inside it: they outlive it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.ray_api import NAMESPACE, keep_package, kill_named, seat_names
from atoll.errors import ClusterError
from atoll.schema.ids import NodeId, SeatId

PREFIX = "seat/"
# A worker process of Ray starts in half a second; on a loaded machine, or after unpacking files, in many.
CREATE_S = 50.0
AGENT_S = 50.0


class Seat:
    """The actor."""

    def hold(self) -> dict[str, Any]:
        """What this seat holds."""
        import ray  # noqa: PLC0415 - inside the actor

        return {"devices": [int(d) for d in ray.get_gpu_ids()], "cwd": os.getcwd()}  # noqa: PTH109 - as text


def launch_agent(config: dict[str, Any]) -> int:
    """Runs on the node: have an agent forked out of Ray's process tree."""
    from atoll.workers.agent_launch_runtime import launch  # noqa: PLC0415 - inside the task

    return launch(config)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySeats:
    """The loop's `RayPort`, on a connected Ray. `agent_config` makes a node's agent configuration from its address."""

    ray: Any
    home_address: str
    agent_config: Callable[[NodeId, str], dict[str, Any]]
    # Wrapped once: Ray publishes each class that is wrapped, and keeps it for good.
    _seat: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_seat", self.ray.remote(Seat))

    def listing(self) -> ev.ClusterListed:
        """All nodes, and the seats that live."""
        nodes = self.ray.nodes()
        names = seat_names(self.ray)
        seats = tuple(SeatId(n.removeprefix(PREFIX)) for n in names if n.startswith(PREFIX))
        return ev.ClusterListed(nodes=self._merged(nodes), seats=seats)

    def create_seat(self, wanted: fx.CreateSeat) -> ev.SeatCreated:
        """Make the seat, or find the one that lives under its name."""
        options: dict[str, Any] = {
            "name": f"{PREFIX}{wanted.seat}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_task_retries": 1,
            "num_cpus": wanted.cpus,
            "num_gpus": wanted.gpus,
            "scheduling_strategy": self._on(wanted.node),
        }
        if wanted.working_dir_uri:
            options["runtime_env"] = {"working_dir": wanted.working_dir_uri}
        actor = self._seat.options(**options).remote()
        held = self.ray.get(actor.hold.remote(), timeout=CREATE_S)
        return ev.SeatCreated(
            seat=wanted.seat,
            devices=tuple(held["devices"]),
            working_dir=held["cwd"] if wanted.working_dir_uri else "",
        )

    def kill_seat(self, seat: SeatId) -> None:
        """End the seat's actor if there is one."""
        kill_named(self.ray, f"{PREFIX}{seat}")

    def keep_package(self, uri: str, keep_s: int) -> None:
        """Keep a packed working directory for so long."""
        keep_package(uri, keep_s)

    def start_agent(self, node: NodeId) -> int:
        """Have an agent started on the node; its pid."""
        config = self.agent_config(node, self._alive(node)["NodeManagerAddress"])
        # Anew each time: a function whose publication failed once counts as published from then on.
        task = self.ray.remote(launch_agent).options(num_cpus=0, max_retries=0, scheduling_strategy=self._on(node))
        return int(self.ray.get(task.remote(config), timeout=AGENT_S))

    def _alive(self, node: NodeId) -> dict[str, Any]:
        for found in self.ray.nodes():
            if found["Alive"] and node_id(found["NodeManagerAddress"]) == node:
                return dict(found)
        raise ClusterError(f"Ray lists no living {node}")

    def _on(self, node: NodeId) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - as above

        return NodeAffinitySchedulingStrategy(node_id=self._alive(node)["NodeID"], soft=False)

    def _merged(self, nodes: list[dict[str, Any]]) -> tuple[ev.NodeSeen, ...]:
        # A host that left and came back is listed twice, dead and alive: the living one counts.
        seen: dict[NodeId, ev.NodeSeen] = {}
        for node in sorted(nodes, key=lambda n: bool(n["Alive"])):
            fact = self._seen(node)
            seen[fact.node] = fact
        return tuple(seen.values())

    def _seen(self, node: dict[str, Any]) -> ev.NodeSeen:
        address = node["NodeManagerAddress"]
        resources = node.get("Resources", {})
        return ev.NodeSeen(
            node=node_id(address),
            address=address,
            alive=bool(node["Alive"]),
            cpus=float(resources.get("CPU", 0.0)),
            gpus=float(resources.get("GPU", 0.0)),
            local=address == self.home_address,
            labels={str(k): str(v) for k, v in (node.get("Labels") or {}).items()},
        )


def node_id(address: str) -> NodeId:
    """The name of the host at `address`."""
    return NodeId("node-" + address.replace(".", "-").replace(":", "-"))
