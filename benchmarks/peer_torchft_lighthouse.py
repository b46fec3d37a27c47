"""torchft's lighthouse: its own command, for an installation whose scripts are not beside its interpreter.

`--api` first drops that command's defaults for those of the class that a Python program would start it with.
"""

from __future__ import annotations

import argparse
import signal
import sys

from torchft._torchft import lighthouse_main
from torchft.coordination import LighthouseServer


def main():
    if "--api" not in sys.argv:
        lighthouse_main()
        return
    add = (parser := argparse.ArgumentParser()).add_argument
    add("--api", action="store_true")
    add("--bind", required=True)
    add("--min_replicas", type=int, required=True)
    asked = parser.parse_args()
    server = LighthouseServer(bind=asked.bind, min_replicas=asked.min_replicas)
    print(server.address(), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
