"""`python -m benchmarks.collectives`: all-reduce on networks that the lab shapes, beside Gloo on the same networks.

Needs Linux and root (see `atoll lab`). Each part raises its own network and takes it down. `--resume FILE` keeps each
part's results as they come and skips those already there; those that are published are made by

    python -m benchmarks.collectives --resume benchmarks/results/collectives.json --table benchmarks/results/collectives.md

The last line of output is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from atoll.errors import LabError
from benchmarks import collectives_parts_abort as ended
from benchmarks import collectives_parts_flat as flat
from benchmarks import collectives_parts_plans as plans
from benchmarks import collectives_parts_shaped as shaped
from benchmarks.reporting import Report, last_line, table

Part = Callable[..., Report]

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
    asked = _parser().parse_args(arguments)
    # Ends like an interrupt: labs are taken down and ranks end on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for file in filter(None, (asked.resume, asked.table)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    kept = _resumed(asked.resume, quick=asked.quick)
    failed = []
    for name in asked.part or PARTS:
        if name in kept["parts"]:
            print(f"{name}: kept from {asked.resume}", flush=True)
            continue
        begun = time.monotonic()
        try:
            report = PARTS[name](quick=asked.quick)
        except LabError as error:
            if not kept["parts"]:
                raise SystemExit(f"no lab can be raised here: {error}") from None
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        except Exception:  # noqa: BLE001 - one part's failure is told, and the others run
            traceback.print_exc()
            failed.append(name)
            continue
        kept["parts"][name] = report.plain() | {"took_s": round(time.monotonic() - begun, 1)}
        _told(name, report, time.monotonic() - begun)
        if asked.resume:
            _keep(asked.resume, kept)
    if asked.table:
        Path(asked.table).write_text(table(kept), encoding="utf-8")
    print(last_line(kept, failed))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collectives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: shows that it works, not how fast")
    parser.add_argument("--part", action="append", choices=PARTS, metavar="NAME", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--resume", metavar="FILE", help="keep finished parts here, and skip those that are")
    parser.add_argument("--table", metavar="FILE", help="write the figures as a table in Markdown")
    return parser


def _resumed(file: str | None, *, quick: bool) -> dict[str, Any]:
    if file is None or not Path(file).exists():
        return {"machine": machine(), "quick": quick, "parts": {}}
    kept: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    if kept["quick"] != quick:
        was, now = ("quick", "full") if kept["quick"] else ("full", "quick")
        raise SystemExit(f"{file} holds a {was} run and this is a {now} one; name another file or remove it")
    return kept


def _keep(file: str, kept: dict[str, Any]) -> None:
    fresh = Path(f"{file}.new")
    fresh.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    fresh.replace(file)


def _told(name: str, report: Report, took_s: float) -> None:
    print(f"{name} ({took_s:.0f} s)", flush=True)
    for figure in report.figures:
        value = "not measurable here" if figure.value is None else f"{figure.value:.3g}"
        verdict = {True: "met", False: "MISSED", None: "no bar"}[figure.met]
        print(f"  {figure.name} = {value}: {verdict} ({figure.plain()['bar']}); {figure.note}", flush=True)


def machine() -> str:
    """What it was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    build = "CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
    release = torch.__version__.split("+")[0]
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {kernel}, torch {release} {build}"


if __name__ == "__main__":
    sys.exit(main())
