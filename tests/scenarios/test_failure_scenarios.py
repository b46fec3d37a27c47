"""Each `failures/*.txt` plays what befalls a run of four workers on two islands of two hosts, and a spare on `c1`.

What is said above `----` is done to the cluster, what is below is what the core concluded and did, with seconds since
the block began; its last line says where the run stands and how long it went without a commit.

cluster rollback=1               a run with corrupt="rollback"
cluster h a1 a2 workers=2        other nodes; the first is the control plane's own, `h` has no room for trainers
kill t3 | freeze t3 | thaw t3 | hold t3 (its GIL) | sleep t3 | compute t3 | busy t3 60 | works t3
off b2 | on b2                   power of a host
cut b1 b2 from a1 a2 | deafen b2 from a1 (a1 hears it still) | heal
agent b2                         the agent's process is killed and started anew
stall 3 | restart 3              the control plane is stopped for so long, or dies and is back after it
flip t3                          a bit of its weights; replicas are compared each 10 steps
overload | save                  both from now on: everything late; a durable checkpoint
go 3                             seconds pass
cluster h a1 a2 nics=2           every host has a fast NIC and a slow one
cutfast a1 a2 | healfast         the fast network between two hosts
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from imagined_failures import Cluster
from imagined_faults import TICK_S
from imagined_nics import TwoNics

HERE = Path(__file__).parent / "failures"
# What does not concern the fault, or follows from the lines shown.
HIDDEN = {"assigned", "started", "ready", "joined", "seat-taken", "seat-freed", "peer-down", "islands", "checkpoint"}
WARM_UP_S = 5.0
DOES = {
    "freeze": "stopped",
    "hold": "gil",
    "sleep": "sleeps",
    "compute": "evaluates",
    "works": "works",
    "thaw": "works",
}


class Stage:
    """One transcript being played."""

    def __init__(self, cluster):
        self.cluster = cluster
        cluster.go(WARM_UP_S)

    def line(self, text):
        word, *rest = text.split()
        cluster = self.cluster
        match word:
            case "kill" | "flip" | "off" | "on" | "agent":
                acts = {
                    "kill": cluster.kill,
                    "flip": cluster.flip,
                    "off": cluster.power_off,
                    "on": cluster.power_on,
                    "agent": cluster.end_agent,
                }
                for name in rest:
                    acts[word](name)
            case "busy":
                cluster.busy(rest[0], float(rest[1]))
            case "cut" | "deafen":
                at = rest.index("from")
                ones, others = rest[:at], rest[at + 1 :]
                cluster.cut(*((ones, others) if word == "cut" else (others, ones)), both=word == "cut")
            case "heal" | "save" | "cutfast" | "healfast":
                getattr(cluster, word)(*rest)
            case "overload":
                cluster.overloaded = True
            case "go" | "stall" | "restart":
                getattr(cluster, word)(float(rest[0]))
            case _:
                for name in rest:
                    cluster.does(name, DOES[word])

    def block(self, lines):
        cluster = self.cluster
        began, notes, commits = cluster.now, len(cluster.notes), len(cluster.commit_times)
        for line in lines:
            self.line(line)
        run = cluster.run
        assert {t.seat for t in run.active()} <= run.seats.keys(), "a seat was given away while its trainer may live"
        for at, note in cluster.notes[notes:]:
            if note.split()[1].rstrip(":") not in HIDDEN:
                yield f"  {(at - began) * TICK_S:4.1f} {note}"
        times = cluster.commit_times[max(commits - 1, 0) :]
        pause = max((b - a for a, b in itertools.pairwise(times)), default=0) * TICK_S
        going = f"longest pause {pause:.1f} s" if len(times) > 1 else "no step"
        yield f"= {cluster.state}; {going}"


def play(text):
    options = {}
    blocks = text.strip().split("\n\n")
    out, stage = [], None
    for block in blocks:
        said = block.split("\n----")[0].splitlines()
        lines = [s for s in said if s and not s.startswith("#")]
        if stage is None:
            if lines[0].startswith("cluster"):
                _, *words = lines.pop(0).split()
                options = {k: int(v) for k, v in (w.split("=") for w in words if "=" in w)}
                if nodes := tuple(w for w in words if "=" not in w):
                    options["nodes"] = nodes
            kind = TwoNics if options.pop("nics", 1) == 2 else Cluster
            stage = Stage(kind(**options))
        out.append("\n".join([*said, "----", *stage.block(lines)]))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript_reads_as_kept(path, reads_as_kept):
    reads_as_kept(path, play)


def test_transcripts_exist():
    assert len(list(HERE.glob("*.txt"))) >= 18
