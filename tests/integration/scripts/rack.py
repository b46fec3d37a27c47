"""Machines as processes of this one: each is a `ray start` with CPUs and labels of its own. `start|end|list`, as commands.

Run in the folder that holds `rack.json`, which names Ray's address and folder; each machine is a file in `machines`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path("machines")


def start(kind, instance, labels, resources):
    rack = json.loads(Path("rack.json").read_text("utf-8"))
    inherited = os.environ  # noqa: TID251 - that of the autoscaler, which knows how Ray is to be reached
    env = {**inherited, "RAY_CLOUD_INSTANCE_ID": instance, "RAY_NODE_TYPE_NAME": kind}
    cpus = int(json.loads(resources)["CPU"])
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={rack['address']}"]
    words += [f"--num-cpus={cpus}", f"--labels={labels}", "--disable-usage-stats", f"--temp-dir={rack['temp_dir']}"]
    words += ["--object-store-memory=104857600"]
    with Path(f"{instance}.log").open("wb") as log:
        child = subprocess.Popen(
            words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (HERE / instance).write_text(json.dumps([kind, child.pid]))


def end(instance):
    file = HERE / instance
    if file.exists():
        pid = json.loads(file.read_text())[1]
        file.unlink()
        try:
            os.killpg(pid, signal.SIGTERM)
        except ProcessLookupError:
            return


def main():
    HERE.mkdir(exist_ok=True)
    match sys.argv[1:]:
        case ["start", kind, instance, labels, resources]:
            start(kind, instance, labels, resources)
        case ["end", instance]:
            end(instance)
        case ["list"]:
            for file in sorted(HERE.iterdir()):
                sys.stdout.write(f"{file.name} {json.loads(file.read_text())[0]}\n")


main()
