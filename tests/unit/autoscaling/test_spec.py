"""`autoscaler.toml`: what it says, and what is wrong with it, by line, key, value and nearest key."""

import json
import tomllib

import jsonschema
import pytest

from atoll.control_plane.autoscaling.spec import labels_of, resources_of
from atoll.control_plane.autoscaling.spec_fields import schema
from atoll.control_plane.autoscaling.spec_toml import parse
from atoll.errors import SpecError

GOOD = """
cluster = "research"
provider = "command"
budget_per_hour = 60

[types.h200-rack-a]
cpus = 96
gpus = 8
device = "h200"
memory_gib = 1000
nics = { fast = "400 Gbit/s", slow = "25 Gbit/s" }
labels = { "team.example/pool" = "x" }
min = 1
max = 4
price_per_hour = 24.5
speed = 9
idle_s = 600
launch_s = 900
spot = true
zone = "eu-1"
domain = "rack-a"
island = "rack-a"
settings.ray-up.node_config = { InstanceType = "p5" }

[settings.command]
launch = ["./rack"]
"""
SMALL = "[types.a]\ncpus = 4\nmax = 2\n"


def faults(text):
    with pytest.raises(SpecError) as caught:
        parse(text, "autoscaler.toml")
    return str(caught.value).splitlines()


def test_file_is_read_with_units():
    scaling = parse(GOOD, "f")
    (kind,) = scaling.types
    assert (scaling.budget_per_hour, scaling.provider, kind.least, kind.most) == (60.0, "command", 1, 4)
    assert kind.nics == {"fast": 400e9, "slow": 25e9}
    assert labels_of(kind)["team.example/pool"] == "x"
    assert labels_of(kind)["market"] == "spot"
    assert resources_of(kind) == {"CPU": 96, "GPU": 8, "memory": 1000 * 2**30}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            'cluster = "c"\nbudget = 3\n' + SMALL,
            "autoscaler.toml:2: budget = 3: unknown key; did you mean 'budget_per_hour'?",
        ),
        (
            'cluster = "c"\n[types.a]\ncpus = 4\nmaxx = 2\nmax = 2\n',
            "autoscaler.toml:4: [types.a] maxx = 2: unknown key; did you mean 'max'?",
        ),
        (
            'cluster = "c"\n[types.a]\nmax = 2\n\ncpus = "four"\n',
            "autoscaler.toml:5: [types.a] cpus = 'four': it is a number",
        ),
        (
            'cluster = "c"\n[types.a]\ncpus = 4\nmax = 0\n',
            "autoscaler.toml:4: [types.a] max = 0: it is 1 or more",
        ),
        (
            'cluster = "c"\n[types.a]\ncpus = 4\nmax = 1\nnics = { fast = "quick" }\n',
            "autoscaler.toml:5: [types.a] nics = {'fast': 'quick'}: it is a table of NICs with rates like '200 Gbit/s'",
        ),
        (
            'cluster = "c"\nprovider = "cloud"\n' + SMALL,
            "autoscaler.toml:2: provider = 'cloud': it is one of ray, lab, command",
        ),
        (SMALL, "autoscaler.toml:1: cluster is missing: the cluster's name in files that are rendered."),
        ('cluster = "c"\n', "autoscaler.toml:1: no types of machines; add [types.NAME] with cpus and max"),
        (
            'cluster = "c"\n[types.a]\ncpus = 4\nmin = 3\nmax = 2\n',
            "autoscaler.toml:4: [types.a] min = 3 is more than max = 2",
        ),
        (
            'cluster = "c"\n[types.a]\ncpus = 0\nmax = 2\n',
            "autoscaler.toml:3: [types.a] cpus = 0: it offers nothing; give it cpus or gpus",
        ),
        (
            'cluster = "c"\nbudget_per_hour = 1\n[types.a]\ncpus = 4\nmin = 2\nmax = 2\nprice_per_hour = 1.0\n',
            "autoscaler.toml:2: budget_per_hour = 1: the machines that always stand cost 2 already",
        ),
        (
            'cluster = "c"\n[types.a]\ncpus = 4\nmax = 2\nlabels = { atoll-node-type = "b" }\n',
            (
                "autoscaler.toml:5: [types.a] labels = {'atoll-node-type': 'b'}: 'atoll-node-type' is no label's name, or"
                " begins with 'atoll-' or 'ray.io/', which others set"
            ),
        ),
        (
            'cluster = "c"\n[types.A_b]\ncpus = 4\nmax = 2\n',
            "autoscaler.toml:2: [types.A_b]: 'A_b' is not a name: a-z, 0-9 and '-', a letter first, at most 31",
        ),
    ],
)
def test_fault_names_line_key_value_and_remedy(text, fault):
    assert faults(text) == [fault]


def test_all_faults_are_told_at_once_in_the_order_of_their_lines():
    text = 'cluster = "c"\nspeed = 1\n[types.a]\ncpus = true\nmax = 2\nidel_s = 4\n'
    assert [line.split(":")[1] for line in faults(text)] == ["2", "4", "6"]


def test_text_that_is_no_toml_is_told_as_such():
    assert "not TOML" in faults("cluster = \n")[0]


def test_published_schema_accepts_what_is_read_and_refuses_what_is_not():
    published = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(published)
    judge = jsonschema.Draft202012Validator(published)
    assert judge.is_valid(tomllib.loads(GOOD))
    for wrong in ('cluster = "c"\nbudget = 3\n' + SMALL, SMALL, 'cluster = "c"\n[types.a]\ncpus = 4\nmax = 0\n'):
        assert not judge.is_valid(tomllib.loads(wrong))
