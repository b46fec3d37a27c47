"""Machines by Ray's own autoscaler, with Ray's calls replaced; and our providers as one of Ray's."""

import pytest

from atoll.control_plane import ray_api
from atoll.control_plane.autoscaling.facts import Machine
from atoll.control_plane.autoscaling.provider import Order, ProviderFailed, SoldOut
from atoll.control_plane.autoscaling.ray_provider import NODE_ID, RayProvider
from atoll.control_plane.autoscaling.spec_toml import parse
from atoll.errors import ConnectError

FILE = """
cluster = "c"
[types.big]
cpus = 8
gpus = 1
max = 2
[types.small]
cpus = 0.5
max = 2
"""


@pytest.fixture
def ray(monkeypatch):
    """What Ray was last asked for, which nodes it has, what it could not start, what it was told to end."""

    class Ray:
        asked, nodes, failures, ended, wrong = [], {}, [], [], None

    def request(_, bundles, selectors):
        if Ray.wrong:
            raise Ray.wrong
        Ray.asked = list(zip(bundles, selectors, strict=True))

    def nodes(_):
        if Ray.wrong:
            raise Ray.wrong
        return [(node, {"atoll-node-type": kind} if kind else {}) for node, kind in Ray.nodes.items()]

    Ray.asked, Ray.nodes, Ray.failures, Ray.ended = [], {"head": ""}, [], []
    monkeypatch.setattr(ray_api, "request_machines", request)
    monkeypatch.setattr(ray_api, "ray_nodes", nodes)
    monkeypatch.setattr(ray_api, "failed_launches", lambda _: Ray.failures)
    monkeypatch.setattr(ray_api, "end_idle", lambda _, node, __: Ray.ended.append(node))
    return Ray


@pytest.fixture
def provider(ray):
    return RayProvider("h:6379", parse(FILE, "f"), lambda: 100.0)


BIG = ({"CPU": 8.0, "GPU": 1.0}, {"atoll-node-type": "big"})
SMALL = ({"CPU": 0.5}, {"atoll-node-type": "small"})


def test_each_request_says_all_that_is_to_stand(ray, provider):
    provider.launch(Order(instance="b1", kind="big"))
    provider.launch(Order(instance="s1", kind="small"))
    assert ray.asked == [BIG, SMALL]
    provider.terminate("b1")
    assert ray.asked == [SMALL]
    assert ray.ended == []


def test_new_node_of_a_type_is_its_oldest_order_and_that_very_node_is_ended(ray, provider):
    provider.launch(Order(instance="b1", kind="big"))
    provider.launch(Order(instance="b2", kind="big"))
    ray.nodes["n7"] = "big"
    assert provider.machines() == (
        Machine(instance="b1", kind="big", label=(NODE_ID, "n7")),
        Machine(instance="b2", kind="big"),
    )
    provider.terminate("b1")
    assert (ray.asked, ray.ended) == ([BIG], ["n7"])


def test_nodes_of_an_earlier_owner_are_found_and_kept_in_the_request(ray, provider):
    ray.nodes["abcdef0123"] = "small"
    assert provider.machines() == (Machine(instance="small-abcdef01", kind="small", label=(NODE_ID, "abcdef0123")),)
    provider.launch(Order(instance="b1", kind="big"))
    assert ray.asked == [SMALL, BIG]


def test_node_that_is_gone_is_listed_no_more(ray, provider):
    provider.launch(Order(instance="b1", kind="big"))
    ray.nodes["n7"] = "big"
    provider.machines()
    del ray.nodes["n7"]
    assert provider.machines() == ()


def test_fresh_failure_of_a_type_is_sold_out_and_an_old_one_is_not(ray, provider):
    ray.failures = [("big", 10.0, "long ago"), ("small", 100.0, "another type")]
    provider.launch(Order(instance="b1", kind="big"))
    ray.failures.append(("big", 100.0, "no capacity"))
    with pytest.raises(SoldOut, match="big: no capacity"):
        provider.launch(Order(instance="b2", kind="big"))
    assert ray.asked == [BIG]


def test_ray_that_does_not_answer_is_a_failure(ray, provider):
    ray.wrong = ConnectError("away")
    with pytest.raises(ProviderFailed):
        provider.machines()
    with pytest.raises(ProviderFailed):
        provider.launch(Order(instance="b1", kind="big"))


# -- one of Ray's ------------------------------------------------------------------------------------------------------


class Rack:
    def __init__(self):
        self.orders = {}

    def machines(self):
        return tuple(Machine(instance=o.instance, kind=o.kind) for o in self.orders.values())

    def launch(self, order):
        self.orders[order.instance] = order

    def terminate(self, instance):
        self.orders.pop(instance, None)


def test_seam_is_a_node_provider_as_rays_autoscaler_v2_uses_it():
    from ray.autoscaler import tags
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
    from ray.core.generated.instance_manager_pb2 import NodeKind

    from atoll.control_plane.autoscaling.ray_external import SeamNodeProvider

    rack = Rack()
    ours = SeamNodeProvider({"type": "external"}, "c", rack)
    told = {tags.TAG_RAY_NODE_KIND: "worker", tags.TAG_RAY_USER_NODE_TYPE: "big", tags.TAG_RAY_LAUNCH_REQUEST: "q1"}
    ours.create_node_with_resources_and_labels({}, told, 2, {"CPU": 8}, {"pool": "x"})
    adapter = NodeProviderAdapter(ours, config_reader=None)
    found = adapter.get_non_terminated()
    assert {(i.node_type, i.node_kind, i.is_running, i.request_id) for i in found.values()} == {
        ("head", NodeKind.HEAD, True, ""),
        ("big", NodeKind.WORKER, True, "q1"),
    }
    first, second = rack.orders.values()
    assert first.labels == {"pool": "x", "atoll-instance": first.instance}
    assert (first.resources, first.instance != second.instance) == ({"CPU": 8}, True)
    assert ours.non_terminated_nodes({tags.TAG_RAY_NODE_KIND: "head"}) == ["head"]
    ours.terminate_nodes(["head", first.instance])
    assert set(adapter.get_non_terminated()) == {"head", second.instance}
