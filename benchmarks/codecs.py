"""`python -m benchmarks.codecs`: what each codec costs a processor, how small it makes values, and how much of them it loses.

One thread, CPU-seconds for each GB of float32 put in, since the ranks of a host share its cores. Every round measures all
codecs in an order of its own and one addition of the same arrays: the ratios to that hold on other machines too. The last
line of output is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.collectives.torch_codecs import CODECS, Bytes, Codec, Floats
from benchmarks import timing
from benchmarks.command import machine
from benchmarks.reporting import Figure, Report, last_line

# Beyond the caches that a core has to itself, as gradients are.
COUNT = 4 << 20
QUICK_COUNT = 1 << 20
# CPU-seconds a GB for encoding and adding once, and bytes for a byte.
COST_BARS = {"bf16": 0.8, "int8": 2.0}
SIZE_BARS = {"int8": 0.26}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A codec and its way of rounding, with memory of its own."""

    codec: Codec
    seed: int | None
    values: Floats
    code: Bytes
    decoded: Floats
    encode_s: list[float] = field(default_factory=list)
    add_s: list[float] = field(default_factory=list)

    def measure(self, total: Floats) -> None:
        """Once."""
        begun = time.thread_time()
        self.codec.encode(self.values, self.code, self.decoded, seed=self.seed)
        between = time.thread_time()
        self.codec.decode_add(self.code, total)
        self.add_s.append(time.thread_time() - between)
        self.encode_s.append(between - begun)

    @property
    def both_s(self) -> list[float]:
        """Encoding and adding once, each time."""
        return [encode + add for encode, add in zip(self.encode_s, self.add_s, strict=True)]


def contestants(values: Floats) -> dict[str, Contestant]:
    """Each codec as it rounds for residuals, and ternary by chance too."""
    found = {}
    for name, codec in CODECS.items():
        for label, seed in ((name, None), (f"{name}_by_chance", 1)):
            if seed is None or name == "ternary":
                code = np.zeros(codec.encoded_bytes(values.size), np.uint8)
                found[label] = Contestant(codec, seed, values, code, np.zeros_like(values))
    return found


def figures(name: str, one: Contestant, plain_s: Sequence[float]) -> list[Figure]:
    """Cost, size and loss of one."""
    gigabytes = one.values.nbytes / 1e9
    cost = timing.spread(one.both_s).median / gigabytes
    off, here = np.abs(one.decoded.astype(np.float64) - one.values), one.values.astype(np.float64)
    loss = float(np.sqrt((off**2).sum() / (here**2).sum()))
    bound = one.codec.error_bound(one.values)
    return [
        Figure(
            name=f"{name}_cpu_s_per_gb",
            value=cost,
            bar=COST_BARS.get(name),
            floor=False,
            note="encode once, add once; median",
        ),
        Figure(
            name=f"{name}_vs_add", value=timing.ratio(one.both_s, plain_s), note="the same, in additions of float32"
        ),
        Figure(
            name=f"{name}_size",
            value=one.code.nbytes / one.values.nbytes,
            bar=SIZE_BARS.get(name),
            floor=False,
            note="bytes for a byte",
        ),
        Figure(name=f"{name}_loss", value=loss, note="root mean square, of that of normal values"),
        Figure(
            name=f"{name}_off_by_bound", value=float((off / bound).max()), bar=1.0, floor=False, note="the worst value"
        ),
    ]


def measured(*, quick: bool) -> Report:
    """All codecs in rounds."""
    values = np.random.default_rng(0).standard_normal(QUICK_COUNT if quick else COUNT).astype(np.float32)
    total, plain_s, found = np.zeros_like(values), [], contestants(values)
    for name in timing.rounds([*found, "add"], 7 if quick else 31, seed=1):
        if name == "add":
            begun = time.thread_time()
            np.add(total, values, out=total)
            plain_s.append(time.thread_time() - begun)
        else:
            found[name].measure(total)
    gigabytes = values.nbytes / 1e9
    details: dict[str, Any] = {"values": values.size, "add": _per_gb(plain_s, gigabytes)}
    for name, one in found.items():
        details[name] = {"encode": _per_gb(one.encode_s, gigabytes), "decode_add": _per_gb(one.add_s, gigabytes)}
    return Report(figures=tuple(f for name, one in found.items() for f in figures(name, one, plain_s)), details=details)


def _per_gb(seconds: Sequence[float], gigabytes: float) -> dict[str, float | int]:
    return timing.spread([s / gigabytes for s in seconds]).plain(3)


def main(arguments: Sequence[str] | None = None) -> int:
    """A bar that is missed is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds over less: figures for orientation only")
    asked = parser.parse_args(arguments)
    report = measured(quick=asked.quick)
    print(f"CPU-seconds a GB on one thread of {machine()}")
    for name, spreads in report.details.items():
        print(f"{name}: {json.dumps(spreads)}")
    print(last_line({"parts": {"codecs": report.plain()}, "quick": asked.quick, "machine": machine()}, []))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
