"""A lab's end, whatever came before: nothing of it is left, and nothing of anybody else's is gone."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lab_specs
import pytest

from atoll.errors import LabError, NotFoundError
from atoll.lab import fs_cgroups, fs_state, lab_runtime, raising_runtime
from atoll.lab.proc_members import members

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(lab_specs.REFUSED), reason=lab_specs.REFUSED)]


def groups_of(lab_id):
    return list(Path("/sys/fs/cgroup").glob(f"**/atoll-{lab_id}-*"))


@pytest.fixture
def untouched():
    """Fails where the machine's own namespaces hold an interface or a mount of a lab afterwards."""
    before = lab_specs.links_here()
    yield
    assert lab_specs.links_here() == before
    assert " atoll-" not in Path("/proc/self/mountinfo").read_text()


def assert_gone(lab_id, home):
    assert members(lab_id) == {}
    assert groups_of(lab_id) == []
    assert list((home / "labs").glob("*/*")) == []


def test_nothing_is_left_of_a_lab_that_was_cut_frozen_and_killed(tmp_path, untouched):
    with lab_runtime.raised(lab_specs.islands(cpus=0.5), home=tmp_path) as lab:
        lab_id, held = lab.record.id, {str(Path(f"/proc/{p}/ns/net").readlink()) for p in lab.record.holders.values()}
        assert len(held) == 4
        assert not held & {str(Path("/proc/self/ns/net").readlink())}
        assert set(members(lab_id).values()) == {"e0", "e1", "w0", "w1", "+switches"}
        lab.popen("e0", ["sleep", "60"])
        lab.popen("e1", ["setsid", "-f", "sleep", "60"])
        lab.cut("e0")
        lab.freeze("e1")
        lab.kill("w0")
        assert not (tmp_path / "labs" / lab.name / "lab.json.new").exists()
    assert_gone(lab_id, tmp_path)
    assert not held & lab_specs.namespaces()


def raise_and_die(home, monkeypatch, owner, name, times):
    """Raise a lab in a forked child that is killed when it calls something for the so manieth time."""
    real, calls = getattr(owner, name), []

    def counted(*words, **options):
        calls.append(words)
        if len(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **options)

    monkeypatch.setattr(owner, name, counted)
    pid = os.fork()
    if pid == 0:
        try:
            lab_runtime.up(lab_specs.islands("half", cpus=0.5), home=home)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    monkeypatch.undo()


# What the command was about to do when it was killed.
PLACES = {
    "make the first group": (fs_cgroups, "make", 1),
    "make the third group": (fs_cgroups, "make", 3),
    "tell the keeper the plan": (raising_runtime, "_say", 1),
    "hear that all is made": (raising_runtime.select, "select", 1),
    "write down the keeper": (fs_state.Labs, "write", 2),
    "write down who holds it": (fs_state.Labs, "write", 3),
    "tell the keeper to go on": (raising_runtime, "_say", 2),
}


@pytest.mark.parametrize("place", PLACES)
def test_down_cleans_up_after_a_command_killed_half_way(tmp_path, monkeypatch, untouched, place):
    with lab_runtime.raised(lab_specs.islands("other"), home=tmp_path) as other:
        raise_and_die(tmp_path, monkeypatch, *PLACES[place])
        lab = lab_runtime.attach("half", home=tmp_path)
        lab.down()
        assert members(lab.record.id) == {}
        assert groups_of(lab.record.id) == []
        assert set(members(other.record.id).values()) == {"e0", "e1", "w0", "w1", "+switches"}
    assert_gone(lab.record.id, tmp_path)


def test_a_keeper_whose_command_dies_ends_itself_and_its_hosts(tmp_path, monkeypatch, eventually):
    raise_and_die(tmp_path, monkeypatch, *PLACES["tell the keeper to go on"])
    lab = lab_runtime.attach("half", home=tmp_path)
    eventually(lambda: not members(lab.record.id), 10.0)
    lab.down()
    assert_gone(lab.record.id, tmp_path)


def test_a_killed_keeper_leaves_hosts_that_down_still_finds(tmp_path, untouched):
    lab = lab_runtime.up(lab_specs.islands("keep"), home=tmp_path)
    os.kill(lab.record.switches, signal.SIGKILL)
    os.waitpid(lab.record.switches, 0)
    with pytest.raises(LabError, match="is gone"):
        lab.cut("e0")
    lab_runtime.attach("keep", home=tmp_path).down()
    assert_gone(lab.record.id, tmp_path)


def test_a_lab_stands_until_down_and_twice_is_as_once(tmp_path):
    lab = lab_runtime.up(lab_specs.islands("stands"), home=tmp_path)
    try:
        with pytest.raises(LabError, match="stands already"):
            lab_runtime.up(lab_specs.islands("stands"), home=tmp_path)
        lab_runtime.attach("stands", home=tmp_path).cut("e0", "slow")
        assert lab_specs.silent(lab, "e0", "w0", "slow")
    finally:
        lab.down()
    lab.down()
    with pytest.raises(NotFoundError, match="known: none"):
        lab_runtime.attach("stands", home=tmp_path)


def test_missing_iproute_is_told_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LabError, match="apt-get install iproute2"):
        lab_runtime.up(lab_specs.islands("none"), home=tmp_path)
    assert not (tmp_path / "labs" / "none").exists()


UNPRIVILEGED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import lab_specs
from atoll.lab import lab_runtime
with lab_runtime.raised(lab_specs.islands(), home=Path(sys.argv[1])) as lab:
    assert lab.record.user
    assert lab_specs.answers(lab, "e0", "e1", "fast")
    lab.cut("e0", "fast")
    assert lab_specs.silent(lab, "e0", "e1", "fast")
    sleeper = lab.popen("w0", ["sleep", "60"])
    lab.freeze("w0")
    lab.thaw("w0")
    lab.kill("w0")
    assert sleeper.wait(5) == -9
    lab.heal()
    assert lab_specs.answers(lab, "e0", "e1", "fast") and lab_specs.answers(lab, "w0", "w1", "slow")
    print(lab.record.id)
"""


def test_without_the_right_to_namespaces_a_user_namespace_serves(tmp_path):
    # A user namespace may be mapped to root's own files only with `setfcap`.
    drop = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all"] if os.geteuid() == 0 else []
    support = str(Path(lab_specs.__file__).parent)
    if (
        drop
        and subprocess.run([*drop, "unshare", "--user", "--map-root-user", "--net", "true"], check=False).returncode
    ):
        pytest.skip("user namespaces are not allowed here (sysctl user.max_user_namespaces)")
    done = subprocess.run(
        [*drop, sys.executable, "-c", UNPRIVILEGED, str(tmp_path), support],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_gone(done.stdout.strip(), tmp_path)


def test_hosts_without_a_group_are_frozen_by_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(fs_cgroups, "find", lambda: fs_cgroups.Places(notice="none here"))
    with lab_runtime.raised(lab_specs.islands(cpus=0.5), home=tmp_path) as lab:
        assert lab.notices == ("none here",)
        sleeper, other = lab.popen("e0", ["sleep", "60"]), lab.popen("e1", ["sleep", "60"])
        state = lambda p: Path(f"/proc/{p.pid}/stat").read_text().split()[2]  # noqa: E731
        lab.freeze("e0")
        assert (state(sleeper), state(other) in "RSD") == ("T", True)
        lab.thaw("e0")
        assert state(sleeper) in "RSD"
