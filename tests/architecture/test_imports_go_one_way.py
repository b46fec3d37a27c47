"""The part of the import rule that depends on names; the layers themselves are import-linter's, in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys

# Naming a process by pid and start time, and having turns on a processor: shells of every component need these skills.
FOR_ALL_SHELLS = ("atoll.workers.proc_runtime", "atoll.workers.proc_turns")
OTHERS = ("atoll.workers.", "atoll.collectives.", "atoll.checkpoint.", "atoll.fault.")
# (who, what) with the reason that makes it right.
BRIDGES = {
    ("atoll.control_plane.ray_seats", "atoll.workers.agent_launch_runtime"): "Ray's actor on a node starts its agent",
    ("atoll.control_plane.fs_leftovers", "atoll.workers.agent_files_runtime"): "reads what a dead agent left behind",
    ("atoll.control_plane.fs_leftovers", "atoll.workers.supervisor_runtime"): "likewise what it supervised",
}

_LOADED = """
import sys, time
before, start = set(sys.modules), time.perf_counter()
import atoll
took = time.perf_counter() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(f"{took * 1000:.1f}", *sorted(new - sys.stdlib_module_names))
"""


def test_control_plane_imports_only_pure_modules_of_other_components(modules, module_names, shell_named):
    wrong = [
        f"{m.name}:{line} imports {name}"
        for m in modules
        if m.component == "control_plane"
        for name, line in m.imports()
        if name in module_names and name.startswith(OTHERS) and shell_named(name) and (m.name, name) not in BRIDGES
        if not (m.shell and name.startswith(FOR_ALL_SHELLS))
    ]
    assert not wrong, "; ".join(wrong)


def test_only_the_web_server_mounts_the_dashboard(modules):
    wrong = [
        f"{m.name}:{line} imports {name}"
        for m in modules
        if m.component != "ui" and not re.search(r"\.(web|rest)_", m.name)
        for name, line in m.imports()
        if name.startswith("atoll.ui.")
    ]
    assert not wrong, "; ".join(wrong)


def test_import_atoll_loads_nothing_but_the_standard_library(capsys):
    command = [sys.executable, "-c", _LOADED]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    with capsys.disabled():
        sys.stdout.write(f" [import atoll: {said[0]} ms] ")
    assert said[1:] == ["atoll"]
