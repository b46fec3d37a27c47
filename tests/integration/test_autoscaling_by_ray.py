"""Ray's own autoscaler v2, asked by label, starts machines by the user's commands and ends the very ones that were given up.

Holds `ray_api` to this version of Ray: the request with its labels, the failures, and the end of one named node.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray_by_hand import RAY, HandStarted

from atoll.cli_cluster import rendered

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]
SCRIPTS = Path(__file__).parent / "scripts"
FILE = """
cluster = "rack"
provider = "ray"
[types.small]
cpus = 1
max = 2
labels = {{ pool = "s" }}
[types.big]
cpus = 2
max = 2
labels = {{ pool = "b" }}
[settings.command]
launch = ["{python}", "{rack}", "start", "{{kind}}", "{{instance}}", "{{labels}}", "{{resources}}"]
terminate = ["{python}", "{rack}", "end", "{{instance}}"]
list = ["{python}", "{rack}", "list"]
[settings.external]
idle_timeout_minutes = 100
"""


@pytest.fixture
def rack():
    ray = HandStarted.fresh()
    ray.env |= {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": "head",
        "RAY_NODE_TYPE_NAME": "head",
        "PYTHONPATH": str(SCRIPTS.parents[2]),
    }
    folder = ray.home / "rack"
    folder.mkdir()
    file = folder / "autoscaler.toml"
    file.write_text(FILE.format(python=sys.executable, rack=SCRIPTS / "rack.py"))
    text = rendered(file, "external").replace("  type: external\n", f"  type: external\n  folder: {folder}\n")
    (folder / "autoscaling.yaml").write_text(text)
    address = f"127.0.0.1:{ray.port}"
    (folder / "rack.json").write_text(json.dumps({"address": address, "temp_dir": str(ray.home / "r")}))
    words = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={ray.port}", "--num-cpus=0"]
    words += [f"--dashboard-port={ray.dashboard}", f"--dashboard-agent-listen-port={ray.job_agent}"]
    words += [f"--temp-dir={ray.home / 'r'}", "--disable-usage-stats", "--object-store-memory=104857600"]
    words += [f"--autoscaling-config={folder / 'autoscaling.yaml'}"]
    done = subprocess.run(words, env=ray.env, capture_output=True, text=True, timeout=90, check=False)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield ray, file, address
    finally:
        ray.down()


def test_machine_is_asked_for_by_label_joins_is_found_again_and_is_ended(rack):
    ray, file, address = rack
    words = [sys.executable, str(SCRIPTS / "ray_machines.py"), address, str(file)]
    done = subprocess.run(words, env=ray.env, capture_output=True, text=True, timeout=300, check=False)
    logs = "\n".join(
        p.read_text(errors="replace")[-1500:] for p in (ray.home / "r").glob("session_latest/logs/monitor*")
    )
    assert done.returncode == 0, done.stdout + done.stderr + logs
    asked, joined, found, less, gone = (json.loads(line) for line in done.stdout.splitlines())
    assert asked["requested"] == [[{"CPU": 2.0}, {"atoll-node-type": "big"}, 1]]
    assert joined["kind"] == "big"
    assert joined["labels"]["pool"] == "b"
    assert joined["labels"]["atoll-instance"].startswith("big-")
    assert found["same"]
    assert less["requested"] == []
    assert gone["gone"]
