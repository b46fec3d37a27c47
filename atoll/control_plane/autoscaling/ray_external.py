"""Ray's `external` node provider over the user's own commands: what `atoll cluster render --to external` names.

So Ray's autoscaler v2 starts machines by the same three commands as `atoll autoscale` with provider = "command", and
Atoll's requests by label work on machines of one's own. The commands get Ray's id as `{instance}`; what they start must run
`ray start` with `{labels}` and with RAY_CLOUD_INSTANCE_ID={instance} and RAY_NODE_TYPE_NAME={kind} in its environment,
by which Ray knows it again; the head's are `head` for both.
"""

from __future__ import annotations

import secrets
from typing import Any

from ray.autoscaler import tags as ray_tags
from ray.autoscaler.node_provider import NodeProvider

from atoll.control_plane.autoscaling.command_provider_runtime import CommandProvider, commands_of
from atoll.control_plane.autoscaling.provider import Order, Provider
from atoll.control_plane.autoscaling.rendering import HEAD
from atoll.control_plane.autoscaling.spec import INSTANCE

_ID_BYTES = 4


class SeamNodeProvider(NodeProvider):
    """Any provider of ours as one of Ray's."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str, seam: Provider) -> None:
        super().__init__(provider_config, cluster_name)
        self._seam = seam
        self._tags: dict[str, dict[str, str]] = {}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The head, which nobody here started, and all machines."""
        listed = {machine.instance: machine.kind for machine in self._seam.machines()}
        self._tags = {
            HEAD: _tags(ray_tags.NODE_KIND_HEAD, HEAD),
            **{name: self._tags.get(name) or _tags(ray_tags.NODE_KIND_WORKER, kind) for name, kind in listed.items()},
        }
        return [
            name
            for name, known in self._tags.items()
            if all(known.get(key) == value for key, value in tag_filters.items())
        ]

    def is_running(self, node_id: str) -> bool:
        """Listed is running: a machine that never joins is given up by whoever asked for it."""
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        """As above."""
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        """What Ray calls the node."""
        return self._tags.get(node_id, {})

    def external_ip(self, node_id: str) -> str:
        """Ray only asks to print it: it installs nothing there."""
        return node_id

    def internal_ip(self, node_id: str) -> str:
        """As above."""
        return node_id

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],  # noqa: ARG002 - Ray's signature
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Order machines; what fails is Ray's launch failure."""
        kind = tags[ray_tags.TAG_RAY_USER_NODE_TYPE]
        for _ in range(count):
            instance = f"{kind}-{secrets.token_hex(_ID_BYTES)}"
            named = {**labels, INSTANCE: instance}
            self._seam.launch(Order(instance=instance, kind=kind, labels=named, resources=resources))
            self._tags[instance] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        """End one; never the head."""
        if node_id != HEAD:
            self._seam.terminate(node_id)
            self._tags.pop(node_id, None)

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """End several."""
        for node_id in node_ids:
            self.terminate_node(node_id)


class CommandNodeProvider(SeamNodeProvider):
    """The commands stand in the rendered file, under `provider.command`; they are run in `provider.folder`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        commands = commands_of(provider_config.get("command", {}), "provider")
        seam = CommandProvider(commands, str(provider_config.get("folder", ".")))
        super().__init__(provider_config, cluster_name, seam)


def _tags(node_kind: str, kind: str) -> dict[str, str]:
    return {
        ray_tags.TAG_RAY_NODE_KIND: node_kind,
        ray_tags.TAG_RAY_USER_NODE_TYPE: kind,
        ray_tags.TAG_RAY_NODE_STATUS: ray_tags.STATUS_UP_TO_DATE,
        ray_tags.TAG_RAY_NODE_NAME: kind,
    }
