"""Asks Ray's autoscaler v2 for machines by label, waits for them, and gives them up: a process of its own, with its environment.

Arguments: the address of Ray's controller, and the file. Prints one JSON object a line, one for each thing that was seen.
"""

import json
import sys
import time
from pathlib import Path

from atoll.clock import SystemClock
from atoll.control_plane import ray_api
from atoll.control_plane.autoscaling.provider import Order
from atoll.control_plane.autoscaling.ray_provider import RayProvider
from atoll.control_plane.autoscaling.spec_toml import parse


def until(what, seconds):
    end = time.monotonic() + seconds
    while not (value := what()):
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds} s; requested: {ray_api.requested_machines(sys.argv[1])}")
        time.sleep(0.3)
    return value


def tell(**said):
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main():
    address, file = sys.argv[1], sys.argv[2]
    provider = RayProvider(address, parse(Path(file).read_text("utf-8"), file), SystemClock().now)
    provider.launch(Order(instance="big-1", kind="big"))
    tell(requested=ray_api.requested_machines(address))

    def joined():
        return [m for m in provider.machines() if m.instance == "big-1" and m.label is not None]

    (machine,) = until(joined, 120)
    labels = dict(dict(ray_api.ray_nodes(address))[machine.label[1]])
    tell(kind=machine.kind, labels=labels)
    # A new owner knows nothing, and finds it under a name of its own.
    after = RayProvider(address, parse(Path(file).read_text("utf-8"), file), SystemClock().now)
    (found,) = [m for m in after.machines() if m.kind == "big"]
    tell(found=found.instance, same=found.label == machine.label)
    provider.terminate("big-1")
    tell(requested=ray_api.requested_machines(address))
    until(lambda: not [m for m in provider.machines() if m.kind == "big"], 120)
    tell(gone=True)


main()
