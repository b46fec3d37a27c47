"""`python -m benchmarks.collectives`: all-reduce on networks that the lab shapes, beside Gloo on the same networks.

Needs Linux and root (see `atoll lab`). Each part raises its own network and takes it down. `--resume FILE` keeps each
part's results as they come and skips those already there; those that are published are made by

    python -m benchmarks.collectives --resume benchmarks/results/collectives.json --table benchmarks/results/collectives.md

The last line of output is one JSON object with every figure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import collectives_parts_abort as ended
from benchmarks import collectives_parts_flat as flat
from benchmarks import collectives_parts_plans as plans
from benchmarks import collectives_parts_shaped as shaped
from benchmarks.command import Command, Part

PARTS: dict[str, Part] = {
    "2x2": shaped.two_by_two,
    "2x4": shaped.two_by_four,
    "int8": shaped.coded,
    "int8_10mbit": shaped.coded_slow,
    "trunk": shaped.trunk,
    "interleaved": shaped.interleaved,
    "flat": flat.flat,
    "ddp": flat.ddp,
    "telemetry": flat.telemetry,
    "abort": ended.abort,
    "predictions": plans.predictions,
    "unequal": plans.unequal,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a part failed; a bar that is missed is a result, not a failure."""
    command = Command(prog="python -m benchmarks.collectives", title="Collectives, measured", text=__doc__ or "")
    command.asked(arguments, parts=PARTS)
    return command.run(PARTS)


if __name__ == "__main__":
    sys.exit(main())
