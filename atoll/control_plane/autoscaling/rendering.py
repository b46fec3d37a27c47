"""`autoscaler.toml` as files of others: `ray up` (aws, gcp, local), KubeRay, and Ray's autoscaler with external machines.

All of them are Ray's own words for the same promise: machines of these types, with these labels, at most so many. How
many stand when is decided by Atoll; so Ray's own minimum is the file's, and its idle time is longer than that of any type,
as a last resort. Ray's autoscaler v2 wants every key of setup and files to be there, even if there is nothing to do.
What only one target understands stands in the file under `settings.ray-up`, `settings.kuberay` and
`types.NAME.settings.ray-up`, `types.NAME.settings.kuberay`, and is copied as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from atoll.control_plane.autoscaling.spec import NodeType, Scaling, labels_of
from atoll.errors import SpecError

RAY_UP, KUBERAY, EXTERNAL = "ray-up", "kuberay", "external"
TARGETS = (RAY_UP, KUBERAY, EXTERNAL)
HEAD = "head"
PORT = 6379
# Ray ends what is idle for so many times the longest `idle_s` of all types: only where Atoll is away for long.
_LAST_RESORT = 10
_LEAST_IDLE_S = 600.0
CLOUDS = ("aws", "gcp", "local")
EXTERNAL_MODULE = "atoll.control_plane.autoscaling.ray_external.CommandNodeProvider"
_IMAGE = "ghcr.io/atoll/atoll:latest"
Plain = dict[str, Any]


def render(scaling: Scaling, target: str, where: str) -> Plain:
    """The file as plain data. `where` is the name of `autoscaler.toml`, for messages. Raises `SpecError`."""
    match target:
        case "ray-up":
            return _ray_up(scaling, where)
        case "kuberay":
            return _kuberay(scaling)
        case "external":
            return _external(scaling, where)
        case _:
            raise SpecError(f"--to {target}: it is one of {', '.join(TARGETS)}")


def idle_last_s(scaling: Scaling) -> float:
    """After how many idle seconds Ray itself ends a machine."""
    return max(_LEAST_IDLE_S, _LAST_RESORT * max(kind.idle_s for kind in scaling.types))


def _setting(settings: Mapping[str, Mapping[str, Any]], target: str) -> Plain:
    return dict(settings.get(target, {}))


# -- ray up ----------------------------------------------------------------------------------------------------------


def _ray_up(scaling: Scaling, where: str) -> Plain:
    own = _setting(scaling.settings, RAY_UP)
    provider = own.pop("provider", None)
    if not isinstance(provider, Mapping) or provider.get("type") not in CLOUDS:
        raise SpecError(
            f"{where}: [settings.ray-up.provider] type is missing or not one of {', '.join(CLOUDS)}; "
            "`ray up` has to know whose machines these are"
        )
    if provider["type"] == "local":
        return _local(scaling, own, dict(provider), where)
    return _clustered(scaling, dict(provider), own, RAY_UP)


def _clustered(scaling: Scaling, provider: Plain, own: Plain, target: str) -> Plain:
    head = own.pop("head", {})
    types = {HEAD: _head_type(head), **{kind.name: _ray_type(kind, target) for kind in scaling.types}}
    return {
        "cluster_name": scaling.cluster,
        "max_workers": sum(kind.most for kind in scaling.types),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_last_s(scaling) / 60,
        "provider": provider,
        "auth": own.pop("auth", {"ssh_user": "ubuntu"}),
        "docker": own.pop("docker", {}),
        "available_node_types": types,
        "head_node_type": HEAD,
        **_commands(own),
        **own,
    }


def _head_type(head: Mapping[str, Any]) -> Plain:
    """No CPUs, so that nothing is placed there unasked."""
    return {
        "resources": {"CPU": 0},
        "labels": {"role": HEAD},
        "node_config": dict(head.get("node_config", {})),
        "min_workers": 0,
        "max_workers": 0,
    }


def _ray_type(kind: NodeType, target: str) -> Plain:
    own = _setting(kind.settings, target)
    return {
        "resources": _whole_resources(kind),
        "labels": labels_of(kind),
        "node_config": own.pop("node_config", {}),
        "min_workers": kind.least,
        "max_workers": kind.most,
        "idle_timeout_s": max(_LEAST_IDLE_S, _LAST_RESORT * kind.idle_s),
        **own,
    }


def _whole_resources(kind: NodeType) -> dict[str, int]:
    """Ray's schema wants whole numbers; half a CPU that is promised too much would be taken for room."""
    found = {"CPU": math.floor(kind.cpus), "GPU": math.floor(kind.gpus), "memory": math.floor(kind.memory_gib * 2**30)}
    return {name: value for name, value in found.items() if value or name == "CPU"}


def _commands(own: Plain) -> Plain:
    """Every key of files, setup and start, the user's where there are any."""
    head = f"ray start --head --port={PORT} --num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml"
    defaults: Plain = {
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"ulimit -n 65536; RAY_enable_autoscaler_v2=1 {head} --dashboard-host=127.0.0.1",
            f"atoll up --address $(hostname -I | cut -d' ' -f1):{PORT}",
        ],
        "worker_start_ray_commands": ["ray stop", f"ulimit -n 65536; ray start --address=$RAY_HEAD_IP:{PORT}"],
    }
    return {key: own.pop(key, value) for key, value in defaults.items()}


def _local(scaling: Scaling, own: Plain, provider: Plain, where: str) -> Plain:
    """Machines that stand anyway: Ray knows one type of them, and starts Ray on each over ssh."""
    for key, words in (("head_ip", "head_ip = '10.0.0.1'"), ("worker_ips", "worker_ips = ['10.0.0.2']")):
        if key not in provider:
            raise SpecError(f"{where}: [settings.ray-up.provider] {key} is missing; write {words}")
    count = len(provider["worker_ips"])
    commands = _commands(own)
    (kind, *more) = scaling.types
    if more:
        names = ", ".join(k.name for k in scaling.types)
        raise SpecError(f"{where}: local machines are of one type for `ray up`, and the file has {names}")
    labels = ",".join(f"{key}={value}" for key, value in labels_of(kind).items())
    commands["worker_start_ray_commands"] = [
        f"{c} --labels={labels}" if "ray start" in c else c for c in commands["worker_start_ray_commands"]
    ]
    return {
        "cluster_name": scaling.cluster,
        "min_workers": min(kind.least, count),
        "max_workers": min(kind.most, count),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_last_s(scaling) / 60,
        "provider": provider,
        "auth": own.pop("auth", {"ssh_user": "ubuntu"}),
        "docker": own.pop("docker", {}),
        **commands,
        **own,
    }


# -- external --------------------------------------------------------------------------------------------------------


def _external(scaling: Scaling, where: str) -> Plain:
    """For `ray start --head --autoscaling-config`: Ray's autoscaler asks the commands of the file for machines."""
    own = _setting(scaling.settings, EXTERNAL)
    command = scaling.settings.get("command")
    if command is None:
        raise SpecError(
            f"{where}: [settings.command] is missing; with `launch`, `terminate` and `list` Ray gets machines"
        )
    provider = {
        "type": "external",
        "module": own.pop("module", EXTERNAL_MODULE),
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "foreground_node_launch": True,
        "command": dict(command),
    }
    plain = _clustered(scaling, provider, {"auth": {}, **own}, EXTERNAL)
    # Machines start Ray themselves: their commands are run by whoever starts them.
    return {**plain, "head_start_ray_commands": [], "worker_start_ray_commands": []}


# -- KubeRay ---------------------------------------------------------------------------------------------------------


def _kuberay(scaling: Scaling) -> Plain:
    own = _setting(scaling.settings, KUBERAY)
    image = own.get("image", _IMAGE)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": scaling.cluster, "namespace": own.get("namespace", "default")},
        "spec": {
            "rayVersion": own.get("ray_version", "2.60.0"),
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "upscalingMode": "Default",
                "idleTimeoutSeconds": round(idle_last_s(scaling)),
                "resources": {
                    "requests": {"cpu": "500m", "memory": "512Mi"},
                    "limits": {"cpu": "500m", "memory": "512Mi"},
                },
            },
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "127.0.0.1"},
                "labels": {"role": HEAD},
                "template": _pod(f"ray-{HEAD}", image, {"cpu": "2", "memory": "8Gi"}, own.get("head_pod", {})),
            },
            "workerGroupSpecs": [_group(kind, image) for kind in scaling.types],
        },
    }


def _group(kind: NodeType, image: str) -> Plain:
    own = _setting(kind.settings, KUBERAY)
    amounts: Plain = {"cpu": f"{kind.cpus:g}"}
    if kind.memory_gib:
        amounts["memory"] = f"{kind.memory_gib:g}Gi"
    if kind.gpus:
        amounts[own.get("gpu_resource", "nvidia.com/gpu")] = f"{math.floor(kind.gpus)}"
    return {
        "groupName": kind.name,
        "replicas": kind.least,
        "minReplicas": kind.least,
        "maxReplicas": kind.most,
        "idleTimeoutSeconds": round(max(_LEAST_IDLE_S, _LAST_RESORT * kind.idle_s)),
        "labels": labels_of(kind),
        "rayStartParams": {"num-cpus": f"{math.floor(kind.cpus)}"},
        "template": _pod("ray-worker", own.get("image", image), amounts, own.get("pod", {})),
    }


def _pod(name: str, image: str, amounts: Plain, more: Mapping[str, Any]) -> Plain:
    """A pod whose Ray container is the first, as Ray's autoscaler reads it. `more`: further fields of the pod's spec."""
    container = {
        "name": name,
        "image": image,
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "securityContext": {"runAsNonRoot": True, "allowPrivilegeEscalation": False},
    }
    return {"spec": {"containers": [container], **more}}
