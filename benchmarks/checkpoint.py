"""`python -m benchmarks.checkpoint`: what checkpoints cost, beside torch.distributed.checkpoint, torch.save and safetensors.

Four ranks on this machine and the disk under `--dir`, which should be a real one. `--resume FILE` keeps each part's
results as they come and skips those already there; those that are published are made by

    python -m benchmarks.checkpoint --resume benchmarks/results/checkpoint.json --table benchmarks/results/checkpoint.md

The last line of output is one JSON object with every figure.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import checkpoint_parts_gpu as devices
from benchmarks import checkpoint_parts_read as reading
from benchmarks import checkpoint_parts_reshard as resharding
from benchmarks import checkpoint_parts_save as saving
from benchmarks import checkpoint_parts_tables as tables
from benchmarks.command import Command, Part

PARTS: dict[str, Part] = {
    "stall": saving.stall,
    "share": saving.share,
    "write": saving.write,
    "read": reading.read,
    "memory": reading.memory,
    "manifest": tables.manifest,
    "digest": tables.digest,
    "reshard": resharding.reshard,
    "gpu": devices.gpu,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a part failed; a bar that is missed is a result, not a failure."""
    command = Command(prog="python -m benchmarks.checkpoint", title="Checkpoints, measured", text=__doc__ or "")
    command.parser.add_argument(
        "--dir", metavar="FOLDER", help="where to write; the system's temporary folder if unset"
    )
    asked = command.asked(arguments, parts=PARTS)
    place = Path(asked.dir or tempfile.gettempdir())
    return command.run({name: functools.partial(part, place=place) for name, part in PARTS.items()})


if __name__ == "__main__":
    sys.exit(main())
