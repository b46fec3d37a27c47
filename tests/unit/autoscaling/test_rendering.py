"""What `atoll cluster render` makes, judged by Ray's own code: its schema, its defaults, its reading of a RayCluster."""

import json

import pytest
import yaml

from atoll.cli_cluster import as_yaml
from atoll.control_plane.autoscaling.rendering import render
from atoll.control_plane.autoscaling.spec_toml import parse
from atoll.errors import SpecError

FILE = """
cluster = "c"
[types.gpu]
cpus = 16.5
gpus = 2
device = "a10g"
memory_gib = 60
nics = { net = "25 Gbit/s" }
min = 1
max = 3
spot = true
price_per_hour = 0.5
idle_s = 120.0
zone = "z1"
island = "rack"
labels = { team = "x" }
[types.cpu]
cpus = 8
max = 5
"""
PROVIDERS = {
    "aws": '{ type = "aws", region = "us-east-1", availability_zone = "us-east-1a" }',
    "gcp": '{ type = "gcp", region = "us-west1", availability_zone = "us-west1-a", project_id = "p" }',
}
COMMAND = '[settings.command]\nlaunch = ["l", "{instance}"]\nterminate = ["t", "{instance}"]\nlist = ["ls"]\n'
KEYS = (
    "file_mounts",
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def made(text, target):
    """Through the YAML, as Ray reads it."""
    return yaml.safe_load(as_yaml(render(parse(text, "f.toml"), target, "f.toml")))


def prepared(plain):
    from ray.autoscaler._private.util import prepare_config, validate_config

    if plain["provider"]["type"] != "local":  # where Ray itself only checks what it has prepared
        validate_config(plain)
    ready = prepare_config(plain)
    validate_config(ready)
    return ready


@pytest.mark.parametrize("provider", PROVIDERS)
def test_ray_up_file_of_a_cloud_is_what_ray_accepts(provider):
    plain = made(f"{FILE}\n[settings.ray-up]\nprovider = {PROVIDERS[provider]}\n", "ray-up")
    assert set(KEYS) <= set(plain)
    ready = prepared(plain)
    gpu = ready["available_node_types"]["gpu"]
    assert gpu["resources"] == {"CPU": 16, "GPU": 2, "memory": 60 << 30}
    assert gpu["labels"] == {
        "atoll-node-type": "gpu",
        "device": "a10g",
        "market": "spot",
        "zone": "z1",
        "island": "rack",
        "price": "0.5",
        "nic-net": "25G",
        "team": "x",
    }
    assert (gpu["min_workers"], gpu["max_workers"], ready["max_workers"]) == (1, 3, 8)
    assert ready["head_node_type"] == "head"
    assert ready["available_node_types"]["head"]["max_workers"] == 0


def test_ray_up_file_of_local_machines_is_what_ray_accepts():
    one = FILE.partition("[types.cpu]")[0]
    provider = '{ type = "local", head_ip = "192.0.2.1", worker_ips = ["192.0.2.2"] }'
    ready = prepared(made(f"{one}\n[settings.ray-up]\nprovider = {provider}\n", "ray-up"))
    assert ready["max_workers"] == 1
    assert "atoll-node-type=gpu" in ready["worker_start_ray_commands"][-1]


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("{ }", "type is missing or not one of aws, gcp, local"),
        ('{ type = "local", worker_ips = [] }', "head_ip is missing"),
        ('{ type = "local", head_ip = "a", worker_ips = [] }', "of one type for `ray up`, and the file has gpu, cpu"),
    ],
)
def test_ray_up_file_that_could_not_work_is_refused(provider, words):
    with pytest.raises(SpecError, match=words):
        made(f"{FILE}\n[settings.ray-up]\nprovider = {provider}\n", "ray-up")


def test_external_file_is_what_ray_accepts_and_its_module_exists():
    plain = made(FILE + COMMAND, "external")
    ready = prepared(plain)
    assert set(KEYS) <= set(plain)
    assert ready["provider"]["command"]["list"] == ["ls"]
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    provider = _NODE_PROVIDERS["external"](ready["provider"])(ready["provider"], "c")
    assert provider.node_tags("nobody") == {}
    with pytest.raises(SpecError, match=r"\[settings.command\] is missing"):
        made(FILE, "external")


def test_kuberay_file_is_read_by_rays_autoscaler_as_it_was_meant():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    plain = made(FILE, "kuberay")
    ready = _derive_autoscaling_config_from_ray_cr(plain)
    types = ready["available_node_types"]
    assert set(types) == {"headgroup", "gpu", "cpu"}
    assert types["gpu"]["resources"] == {"CPU": 16, "GPU": 2, "memory": 60 << 30}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (1, 3)
    assert types["gpu"]["labels"]["atoll-node-type"] == "gpu"
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["idle_timeout_s"] == 1200.0


def test_unknown_target_is_told_with_those_that_are_known():
    with pytest.raises(SpecError, match="one of ray-up, kuberay, external"):
        render(parse(FILE, "f"), "terraform", "f")


def test_yaml_is_the_plain_data_in_its_order():
    plain = {"b": 1, "a": [{"x": "1"}, {"x": "1"}]}
    assert yaml.safe_load(as_yaml(plain)) == plain
    assert json.dumps(list(yaml.safe_load(as_yaml(plain)))) == '["b", "a"]'
