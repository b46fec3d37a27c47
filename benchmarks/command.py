"""What every benchmark's command does: parts by name, results kept between runs, a table, one JSON object at the end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atoll.errors import LabError
from benchmarks.reporting import Report, last_line, table

Part = Callable[..., Report]


class Command:
    """One benchmark's command line. More arguments may be added to `parser` before `asked`."""

    def __init__(self, *, prog: str, title: str, text: str) -> None:
        self._title = title
        self.parser = argparse.ArgumentParser(
            prog=prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._asked = argparse.Namespace()

    def asked(self, arguments: Sequence[str] | None, *, parts: Mapping[str, Part]) -> argparse.Namespace:
        """What the command line says."""
        add = self.parser.add_argument
        add("--quick", action="store_true", help="fewer repetitions: shows that it works, not how fast")
        add("--part", action="append", choices=parts, metavar="NAME", help=f"one of {', '.join(parts)}")
        add("--resume", metavar="FILE", help="keep finished parts here, and skip those that are")
        add("--table", metavar="FILE", help="write the figures as a table in Markdown")
        self._asked = self.parser.parse_args(arguments)
        return self._asked

    def run(self, parts: Mapping[str, Part]) -> int:
        """Measure the parts that were asked for. Returns 1 if one failed."""
        asked = self._asked
        # Ends like an interrupt: labs are taken down and ranks end on the way out.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        for file in filter(None, (asked.resume, asked.table)):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        kept = resumed(asked.resume, quick=asked.quick)
        failed = []
        for name in asked.part or parts:
            if name in kept["parts"]:
                print(f"{name}: kept from {asked.resume}", flush=True)
                continue
            if not _measured(name, parts[name], kept, quick=asked.quick):
                failed.append(name)
            elif asked.resume:
                _keep(asked.resume, kept)
        if asked.table:
            Path(asked.table).write_text(table(kept, self._title), encoding="utf-8")
        print(last_line(kept, failed))
        return 1 if failed else 0


def _measured(name: str, part: Part, kept: dict[str, Any], *, quick: bool) -> bool:
    begun = time.monotonic()
    try:
        report = part(quick=quick)
    except LabError as error:
        if not kept["parts"]:
            raise SystemExit(f"no lab can be raised here: {error}") from None
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return False
    except Exception:  # noqa: BLE001 - one part's failure is told, and the others run
        traceback.print_exc()
        return False
    kept["parts"][name] = report.plain() | {"took_s": round(time.monotonic() - begun, 1)}
    _told(name, report, time.monotonic() - begun)
    return True


def resumed(file: str | None, *, quick: bool) -> dict[str, Any]:
    """What an earlier run kept. Ends the program where that was measured otherwise."""
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
