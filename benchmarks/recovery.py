"""`python -m benchmarks.recovery`: what each kind of failure costs, on a lab of two islands of two hosts, and peers there.

Needs Linux and root (see `atoll lab`). Seconds are (next commit - fault) - one undisturbed step of the new membership;
compute is emulated where seconds are measured and real where exactness is. `--resume FILE` keeps each part's results (of
`classes` and `peers` each trial's) as they come and skips those already there; `--kind NAME` measures one kind of
`classes`. The peers are those of this interpreter (`python -m pip install --group peers -c constraints.txt`) or of
`--peers-python`, which has to have the same Ray. The published ones are by

    python -m benchmarks.recovery --resume benchmarks/results/recovery.json --table benchmarks/results/recovery.md

The last line of output is one JSON object with every figure.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    recovery_alarms,
    recovery_classes,
    recovery_exact,
    recovery_overhead,
    recovery_peers,
    recovery_soak,
)
from benchmarks.command import Command, Part
from benchmarks.recovery_kinds import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a part failed; a bar that is missed is a result, not a failure."""
    command = Command(prog="python -m benchmarks.recovery", title="Recovery, measured", text=__doc__ or "")
    command.parser.add_argument("--kind", action="append", choices=[k.name for k in KINDS], metavar="NAME")
    what = "the interpreter that has the peers (torchft, Ray Train), not below /tmp, which is each lab host's own; default: this one"
    command.parser.add_argument("--peers-python", metavar="FILE", default=sys.executable, help=what)
    asked = command.asked(arguments, parts=PARTS)
    notes = Path(f"{asked.resume}.{'quick' if asked.quick else 'full'}") if asked.resume else None
    classes = functools.partial(PARTS["classes"], only=tuple(asked.kind or ()), notes=notes)
    kept = notes.with_name(f"{notes.name}.peers") if notes else None
    peers = functools.partial(PARTS["peers"], python=asked.peers_python, notes=kept)
    return command.run(PARTS | {"classes": classes, "peers": peers})


PARTS: dict[str, Part] = {
    "classes": recovery_classes.classes,
    "exact": recovery_exact.exact,
    "peers": recovery_peers.peers,
    "false-alarms": recovery_alarms.false_alarms,
    "soak": recovery_soak.soak,
    "overhead": recovery_overhead.overhead,
}

if __name__ == "__main__":
    sys.exit(main())
