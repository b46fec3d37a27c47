"""`atoll lab` as people use it: from command to command, without the right to raise one, and with Ray."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lab_specs
import pytest

from atoll.errors import LabError
from atoll.lab import fs_cgroups, lab_runtime
from atoll.lab.fs_state import Labs
from atoll.lab.proc_members import mark, members

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(lab_specs.REFUSED), reason=lab_specs.REFUSED)]

ATOLL = [sys.executable, "-c", "from atoll.cli import main; main()"]
FILE = """
[networks.lan]
rate = "100 Mbit/s"
[[hosts]]
names = ["a", "b"]
nics = { net = "lan" }
cpus = 1.0
"""


@pytest.fixture
def atoll(tmp_path, monkeypatch):
    """`atoll(*words)` runs a command of the command line; what it left standing is taken down."""
    (tmp_path / "t.toml").write_text(FILE)
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))

    def run(*words, code=0):
        command = [*ATOLL, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run
    run("lab", "down", "--all")


def traces(lab_id):
    """What there is of a lab on this machine, wherever it may be."""
    places = fs_cgroups.find()
    groups = [
        p for place in (places.cpu, places.freezer) if place for p in Path(place.base).glob(f"{mark(lab_id, '')}*")
    ]
    return [*members(lab_id), *groups]


def test_a_lab_stands_from_command_to_command(atoll, tmp_path):
    before = lab_specs.links_here()
    atoll("lab", "up", "t.toml", "--no-ray")
    lab_id = Labs(tmp_path / "home").read("t").id
    assert "stands already" in atoll("lab", "up", "t.toml", "--no-ray", code=3)
    assert atoll("lab", "exec", "a", "hostname") == "a\n"
    atoll("lab", "exec", "a", "sh", "-c", "exit 7", code=7)
    atoll("lab", "cut", "a")
    atoll("lab", "freeze", "b")
    (status,) = json.loads(atoll("lab", "ls", "--json"))
    assert [(h["host"], h["state"], h["nics"][0]["cut"]) for h in status["hosts"]] == [
        ("a", "up", True),
        ("b", "frozen", False),
        ("head", "up", False),
    ]
    atoll("lab", "thaw", "b")
    atoll("lab", "heal")
    atoll("lab", "slow", "a", "b", "20mbit")
    rows = json.loads(atoll("lab", "bench", "--json"))
    assert [(r["way"]["source"], r["way"]["target"]) for r in rows] == [("a", "b"), ("b", "a")]
    assert [r["bandwidth"] for r in rows] == pytest.approx([20e6 / 8 * 0.956] * 2, rel=0.15)
    assert "down" in atoll("lab", "down")
    assert not traces(lab_id)
    assert lab_specs.links_here() == before


def test_who_may_not_raise_a_lab_is_told_what_to_do(tmp_path, monkeypatch):
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root, to take rights away from itself")
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    (tmp_path / "t.toml").write_text(FILE)
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *ATOLL, "lab", "up", "t.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == LabError.exit_code
    assert "run as root" in done.stderr
    assert not Labs(tmp_path / "home").names()


@pytest.mark.ray
@pytest.mark.slow
def test_hosts_are_ray_nodes_with_their_labels_and_come_back_as_such(tmp_path):
    with lab_runtime.raised(lab_specs.islands(hosts=1), ray=True, home=tmp_path) as lab:
        lab_id, nodes = lab.record.id, ray_nodes_of(lab)
        assert {(address, island, cpus) for _, address, island, cpus in nodes} == {
            (lab.address("e0", "slow"), "east", 1.0),
            (lab.address("w0", "slow"), "west", 1.0),
            (lab.address("head", "mgmt"), None, 0),
        }
        lab.kill("w0")
        lab.heal("w0")
        assert {n[1] for n in ray_nodes_of(lab) if n not in nodes} == {lab.address("w0", "slow")}
    assert not traces(lab_id)


def ray_nodes_of(lab):
    """[id, address, island, CPUs] of each node, as a program in the head sees them."""
    program = (
        "import json, ray\n"
        "ray.init(log_to_driver=False)\n"
        "print(json.dumps([[n['NodeID'], n['NodeManagerAddress'], n['Labels'].get('island'),"
        " n['Resources'].get('CPU', 0)] for n in ray.nodes()]))\n"
    )
    child = lab.popen("head", [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    return json.loads(child.communicate(timeout=60)[0].splitlines()[-1])
