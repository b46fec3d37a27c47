"""`atoll lab` as people use it: from command to command, after a crash, without rights, and with Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lab_specs
import pytest

from atoll.errors import LabError
from atoll.lab import fs_cgroups, lab_runtime
from atoll.lab.fs_state import Labs
from atoll.lab.proc_members import mark, members

pytestmark = pytest.mark.root

ATOLL = [sys.executable, "-c", "from atoll.cli import main; main()"]
FILE = """
[networks.lan]
rate = "100 Mbit/s"
[[hosts]]
names = ["a", "b"]
nics = { net = "lan" }
cpus = 1.0
"""
# Raises a lab and is killed at the point that its first argument names.
KILLED = """
import os, signal, sys
from pathlib import Path
from atoll.lab import fs_cgroups, fs_state, raising_runtime, spec_toml

where, home, text = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def end(*words, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def after(call, times=1):
    left = [times]
    def counted(*words, **options):
        result = call(*words, **options)
        left[0] -= 1
        if not left[0]:
            end()
        return result
    return counted

if where == "recorded":
    fs_cgroups.make = end
elif where == "half the groups":
    fs_cgroups.make = after(fs_cgroups.make)
elif where == "keeper started":
    raising_runtime._say = after(raising_runtime._say)
elif where == "keeper answered":
    raising_runtime._ask = after(raising_runtime._ask)
elif where == "pids recorded":
    fs_state.Labs.write = after(fs_state.Labs.write, 2)
elif where == "told to go on":
    raising_runtime._say = after(raising_runtime._say, 2)
raising_runtime.put_up(fs_state.Labs(home), spec_toml.parse(text, "t.toml", "t"))
"""
# What a user without rights does from Python.
PLAIN_USER = """
import subprocess, sys
from pathlib import Path
from atoll.lab import lab_runtime, spec_toml

spec = spec_toml.parse(sys.argv[2], "t.toml", "t")
with lab_runtime.raised(spec, home=Path(sys.argv[1])) as lab:
    said = lambda *argv: lab.popen("a", argv, stdout=subprocess.PIPE, text=True).communicate(timeout=20)[0].strip()
    print(lab.record.user, said("hostname"), said("sh", "-c", "echo x > /tmp/f; ls /tmp").split())
    sleeper = lab.popen("b", ["sleep", "60"])
    lab.freeze("b")
    lab.thaw("b")
    lab.cut("a", "net")
    lab.slow("a", "b", "10 Mbit/s")
    lab.heal()
    lab.kill("b")
    print(sleeper.wait(5))
    lab.heal("b")
"""


def as_plain_user():
    """Words before a command that take every right from it, if we have any; None where that cannot be done."""
    if os.getuid() != 0:
        return []
    # A user namespace may be mapped to root's own files only with this one.
    return ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all"] if shutil.which("setpriv") else None


@pytest.fixture(scope="module", autouse=True)
def allowed(tmp_path_factory):
    """Skips where no lab can be raised at all."""
    try:
        with lab_runtime.raised(lab_specs.islands(), home=tmp_path_factory.mktemp("try")):
            pass
    except LabError as refused:
        pytest.skip(f"no lab here: {refused}")


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


@pytest.mark.parametrize(
    "where", ["recorded", "half the groups", "keeper started", "keeper answered", "pids recorded", "told to go on"]
)
def test_down_after_a_kill_half_way_up_leaves_nothing(where, tmp_path, eventually):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(tmp_path), FILE], timeout=30, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lab_id = Labs(tmp_path).read("t").id
    with lab_runtime.raised(lab_specs.islands("other"), home=tmp_path) as other:
        lab_runtime.attach("t", home=tmp_path).down()
        assert Labs(tmp_path).names() == [other.name]
        assert lab_specs.said(other, "e0", "hostname") == "e0\n"
    # A keeper that nobody told to go on ends by itself.
    eventually(lambda: not traces(lab_id), 5)


def test_who_has_no_rights_raises_a_lab_in_a_user_namespace(tmp_path):
    before = as_plain_user()
    if before is None:
        pytest.skip("setpriv is not installed")
    done = subprocess.run(
        [*before, sys.executable, "-c", PLAIN_USER, str(tmp_path), FILE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "allow user namespaces" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr[-200:]}")
    assert done.stdout.splitlines() == ["True a ['f', 'home']", "-9"], done.stderr
    assert not Labs(tmp_path).names()


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
