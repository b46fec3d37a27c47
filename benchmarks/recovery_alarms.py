"""False alarms: nothing fails, and the machine has four times as much to do as it can."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter

from benchmarks.recovery_ground import BACK_S, NotSteady, ground
from benchmarks.recovery_kinds import LOST
from benchmarks.reporting import Figure, Report

_LASTS_S, _QUICK_S = 1800.0, 300.0
_OVERLOAD = 4
# Of a story's lines those by which somebody was condemned, or a connection or a part called bad.
ALARMS = (*LOST, "node-lost", "partitioned", "epoch", "hung", "slow", "desync", "corrupt")
_SPIN = "while True: pass"


def false_alarms(*, quick: bool) -> Report:
    """A run of real compute, and four busy processes a core beside it."""
    lasts = _QUICK_S if quick else _LASTS_S
    with ground() as here:
        run = here.submit("text", config={"steps": 10**6})
        here.steady(run)
        after = max(e.seq for e in here.events(run))
        first = run.books().steps[-1]
        busy = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(_OVERLOAD * (os.cpu_count() or 1))]
        try:
            begun = time.monotonic()
            while time.monotonic() < begun + lasts and not here.client.run(run.id).state.ended:
                time.sleep(1.0)
            took = time.monotonic() - begun
        finally:
            for process in busy:
                process.kill()
                process.wait()
        try:
            here.steady(run, BACK_S)
            ended = ""
        except NotSteady as error:
            ended = str(error)[:300]
        told = [e for e in here.client.story(run.id) if e.seq > after and e.kind in ALARMS]
        told += [
            e
            for node in here.client.nodes()
            for e in here.client.story(node.node)
            if e.kind in ALARMS and e.seq > after
        ]
        steps = run.books().steps[-1] - first
        account = run.ledger.account()
    kinds = Counter(e.kind for e in told)
    note = f"in {took:.0f} s and {steps} steps with {len(busy)} busy processes on {os.cpu_count()} cores"
    figures = (
        Figure(name="false_alarms", value=len(told), bar=0, floor=False, note=note),
        Figure(name="alarms_samples_lost", value=account.lost + account.repeated, bar=0, floor=False),
    )
    details = {
        "kinds": dict(kinds),
        "said": [f"{e.subject} {e.kind} {e.text}"[:200] for e in told[:40]],
        "ended": ended,
    }
    return Report(figures=figures, details=details)
