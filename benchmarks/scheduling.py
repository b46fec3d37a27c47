"""`python -m benchmarks.scheduling`: what the arbiter decides and how fast, on virtual time and on this machine.

`tick` and `events` time the arbiter's core; `jct` simulates it against what plain Ray gives gangs, on a published law of
arrivals and sizes (docs/simulator.md); `first-step` runs the same job under Atoll and Ray Train on one Ray cluster here,
by this interpreter, which needs Ray Train for it (`python -m pip install --group peers -c constraints.txt`); `lab` raises six
hosts of unlike NICs (as root) and compares where runs are put with hosts dealt at random. `--resume
FILE` keeps each part's results as they come and skips those already there. The published ones are by

    python -m benchmarks.scheduling --resume benchmarks/results/scheduling.json --table benchmarks/results/scheduling.md

The last line of output is one JSON object with every figure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import scheduling_first_step, scheduling_jct, scheduling_lab, scheduling_times
from benchmarks.command import Command, Part


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a part failed; a bar that is missed is a result, not a failure."""
    command = Command(prog="python -m benchmarks.scheduling", title="Scheduling, measured", text=__doc__ or "")
    command.asked(arguments, parts=PARTS)
    return command.run(PARTS)


PARTS: dict[str, Part] = {
    "tick": scheduling_times.tick,
    "events": scheduling_times.events,
    "jct": scheduling_jct.jct,
    "first-step": scheduling_first_step.first_step,
    "lab": scheduling_lab.lab,
}

if __name__ == "__main__":
    sys.exit(main())
