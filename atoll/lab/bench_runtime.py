"""What each link of a lab really carries: one short TCP transfer a link and direction, in rounds (see `measuring`)."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from atoll.errors import LabError
from atoll.lab import tcp_bench
from atoll.lab.fs_state import Measured
from atoll.lab.lab_runtime import Lab
from atoll.lab.measuring import Way, rounds, ways
from atoll.lab.raising_runtime import enter_words

# Beyond the transfer itself: two interpreters start, and what waits in the queues still has to arrive.
_SPARE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one way carried, in bytes of payload a second; None where nothing came through."""

    way: Way
    bandwidth: float | None

    @property
    def of_declared(self) -> float | None:
        """Its share of what was declared; None where one of the two is unknown."""
        declared = self.way.declared
        return self.bandwidth / declared if self.bandwidth is not None and declared is not None else None


def measure(lab: Lab, progress: Callable[[int, int], None] | None = None) -> list[Measurement]:
    """Measure every way and write the result down, for `lab ls`. `progress` is told the round and how many there are."""
    record = lab.record
    resting = {*record.dead, *record.frozen}
    slowed = {frozenset((s.first, s.second)): s.rate for s in record.slows}
    cut = {(c.host, c.nic) for c in record.cuts}
    planned = rounds(ways(lab.layout, [h for h in lab.hosts if h not in resting], slowed, cut))
    found = list[Measurement]()
    for index, together in enumerate(planned):
        if progress:
            progress(index, len(planned))
        found += _round(lab, together)
    measured = tuple(
        Measured(source=m.way.source, target=m.way.target, nic=m.way.mine.name, bandwidth=m.bandwidth or 0.0)
        for m in found
    )
    lab.update(lambda record: replace(record, measured=measured))
    return sorted(found, key=lambda m: (m.way.source, m.way.target, m.way.mine.name))


def _round(lab: Lab, together: list[Way]) -> list[Measurement]:
    with _ended() as children:
        sinks = [
            _start(lab, w.target, ["receive", w.other.address], children, stdout=subprocess.PIPE) for w in together
        ]
        ports = [_line(sink, w) for w, sink in zip(together, sinks, strict=True)]
        for way, port in zip(together, ports, strict=True):
            _start(lab, way.source, ["send", way.other.address, port, str(way.length_s)], children)
        longest_s = max(w.length_s for w in together)
        said = [_said(sink, longest_s + _SPARE_S) for sink in sinks]
    return [Measurement(way=way, bandwidth=_rate(text)) for way, text in zip(together, said, strict=True)]


def _start(
    lab: Lab, host: str, asked: list[str], children: list[subprocess.Popen[str]], **options: Any
) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", tcp_bench.__file__, *asked]
    # Outside of the host's CPU quota: what is measured are the wires.
    words = [*enter_words(lab.record, host, limited=False), *command]
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL, text=True, **options)
    children.append(child)
    return child


@contextlib.contextmanager
def _ended() -> Iterator[list[subprocess.Popen[str]]]:
    """A list of children that have all ended when it is left."""
    children: list[subprocess.Popen[str]] = []
    try:
        yield children
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_SPARE_S)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def _line(sink: subprocess.Popen[str], way: Way) -> str:
    if (
        sink.stdout is not None
        and select.select([sink.stdout], [], [], _SPARE_S)[0]
        and (line := sink.stdout.readline())
    ):
        return line.strip()
    raise LabError(f"host {way.target!r} does not answer within {_SPARE_S:g} s; is it frozen? `atoll lab ls` shows it")


def _said(sink: subprocess.Popen[str], within_s: float) -> str:
    try:
        return sink.communicate(timeout=within_s)[0]
    except subprocess.TimeoutExpired:
        return ""


def _rate(text: str) -> float | None:
    try:
        plain = json.loads(text)
    except ValueError:
        return None
    return plain["bytes"] / plain["seconds"] if plain["seconds"] > 0 else None
