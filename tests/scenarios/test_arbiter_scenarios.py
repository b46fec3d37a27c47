"""Each `arbiter/*.txt` plays who gets which nodes: what is said above `----` happens, what is below was decided, and why.

The first block builds the cluster. Seconds are counted from the beginning of the block; a tick each second. Holds are told
as they stand at the end of a block; its last line says who has what then.

island a: a1 a2 gpus=8 device=A across=1e8     nodes of one island
flavor fast device=A | queue ours weight=2 cohort=c fast=8+4-2     own 8 GPUs, borrows up to 4, lends up to 2 (either may lack)
delay 3                          what a run is told to give up is free after so many seconds
settings calm_s=10
ask r1 workers=2..8 priority=80 queue=ours lasts=60 spares=1 speed=A:10,B:3 rigid     one GPU for each worker
   or fast islands=1 | or any workers=4     its alternatives, in order, on lines of their own below the ask
end r1 | lose a1 | drain a1 | back a1 | go 10
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from imagined_arbiter import Flavor, Shell, amount, ask, node

from atoll.control_plane.arbiter import events as ev
from atoll.control_plane.arbiter.model import IslandState, Option, QueueSpec, Quota, Settings

HERE = Path(__file__).parent / "arbiter"
VERBS = {
    "starts": "start",
    "grows": "grow",
    "shrinks": "shrink",
    "suspends": "suspend",
    "moves": "move",
    "refusals": "refuse",
}


def pairs(words):
    return dict(word.split("=", 1) for word in words if "=" in word)


def bounds(text):
    least, _, most = text.partition("..")
    return {"least": int(least), "most": int(most or least)}


def option(words):
    given = pairs(words)
    named = [w for w in words if "=" not in w and w != "any"]
    sizes = bounds(given["workers"]) if "workers" in given else {}
    return Option(name=" ".join(words), flavors=tuple(named), islands=int(given.get("islands", 0)), **sizes)


def quota(flavor, text):
    rest, _, lend = text.partition("-")
    own, _, borrow = rest.partition("+")
    bound = {k: amount(float(v), float(v)) for k, v in (("borrow", borrow), ("lend", lend)) if v}
    return Quota(flavor=flavor, own=amount(float(own), float(own)), **bound)


class Stage:
    """One transcript being played."""

    def __init__(self):
        self.nodes, self.islands, self.flavors, self.queues = [], [], [], []
        self.settings, self.delay = {}, 0.0
        self.shell = None
        self.pending = None

    def build(self):
        queues = self.queues or [QueueSpec(name="default")]
        settings = Settings(**self.settings)
        self.shell = Shell(self.nodes, queues=queues, flavors=self.flavors, settings=settings, delay_s=self.delay)
        for island in self.islands:
            self.shell.do(ev.IslandMeasured(island=island))

    def declare(self, word, words):
        given = pairs(words)
        match word:
            case "island":
                name = words[0].rstrip(":")
                gpus, device = int(given.pop("gpus", 8)), given.pop("device", "A")
                links = {k: float(v) for k, v in given.items() if k in {"inside", "across"}}
                self.islands.append(IslandState(name=name, **links))
                for one in words[1:]:
                    if "=" not in one:
                        self.nodes.append(node(one, island=name, gpus=gpus, device=device))
            case "flavor":
                self.flavors.append(Flavor(name=words[0], selector={k: tuple(v.split(",")) for k, v in given.items()}))
            case "queue":
                weight, cohort = float(given.pop("weight", 1)), given.pop("cohort", "")
                quotas = tuple(quota(k, v) for k, v in given.items())
                self.queues.append(QueueSpec(name=words[0], weight=weight, cohort=cohort, quotas=quotas))
            case "settings":
                self.settings |= {k: float(v) if "." in v or k.endswith("_s") else int(v) for k, v in given.items()}
            case "delay":
                self.delay = float(words[0])
            case _:
                return False
        return True

    def ask(self, words):
        given = pairs(words)
        speeds = [pair.split(":") for pair in given.get("speed", "").split(",") if pair]
        sizes = tuple(int(n) for n in given.get("sizes", "").split(",") if n)
        self.pending = ask(
            words[0],
            at=self.shell.now,
            queue=given.get("queue", "default"),
            user=given.get("user", ""),
            priority=int(given.get("priority", 50)),
            spares=int(given.get("spares", 0)),
            expected_s=float(given["lasts"]) if "lasts" in given else None,
            declared={device: float(v) for device, v in speeds},
            sizes=sizes,
            batch=float(given.get("batch", 0)),
            sync_bytes=float(given.get("sync", 0)),
            preemptible="rigid" not in words,
            ordered="scored" not in words,
            **bounds(given.get("workers", "1")),
        )

    def submit(self):
        if self.pending is not None:
            self.shell.submit(self.pending)
            self.pending = None

    def line(self, text):
        word, *words = text.split()
        shell = self.shell
        if word == "or":
            options = [o for o in self.pending.options if o.name]
            self.pending = replace(self.pending, options=(*options, option(words)))
            return
        self.submit()
        match word:
            case "ask":
                self.ask(words)
            case "end":
                shell.end(words[0])
            case "lose":
                shell.lose(words[0])
            case "drain" | "back":
                old = next(n for n in self.nodes if n.node == words[0])
                shell.put(replace(old, drained=word == "drain"))
            case "speed":
                shell.do(ev.MeasuredSpeed(run=words[0], device=words[1], samples_per_s=float(words[2])))
            case "go":
                self.go(int(words[0]))
            case _:
                pytest.fail(f"unknown line {text!r}")

    def go(self, seconds):
        for _ in range(seconds):
            self.tick()
            self.shell.now += 1.0

    def tick(self):
        self.last = self.shell.tick()
        at = self.shell.now - self.began
        for kind, word in VERBS.items():
            for one in getattr(self.last, kind):
                self.out.append(f"  {at:4.1f} {word} {one.run}{moved(one)}: {one.reason.words()}")

    def block(self, lines):
        self.out, self.last = [], None
        rest = [text for text in lines if not self.declare(text.split()[0], text.split()[1:])]
        if self.shell is None:
            self.build()
        self.began = self.shell.now
        for text in rest:
            self.line(text)
        self.submit()
        self.go(1)
        for hold in self.last.holds:
            self.out.append(f"       hold {hold.run}: {hold.reason.words()}")
        held = [f"{run} {listed([*g.nodes])}{spares(g)}" for run, g in sorted(self.shell.grants.items())]
        return [*self.out, f"= {'; '.join(held) or 'all free'}"]


def listed(names):
    counts = Counter(names)
    return " ".join(f"{name}*{n}" if n > 1 else name for name, n in counts.items())


def spares(grant):
    return f" (spares {listed(grant.spares)})" if grant.spares else ""


def moved(one):
    parts = []
    for field, sign in (("nodes", ""), ("adds", "+"), ("takes", "+"), ("gives", "-"), ("spares", "spares ")):
        if names := getattr(one, field, ()):
            parts.append(sign + listed(names))
    return f" {' '.join(parts)}" if parts else ""


def play(text):
    stage, out = Stage(), []
    for block in text.strip().split("\n\n"):
        said = block.split("\n----")[0].splitlines()
        lines = [s.strip() for s in said if s.strip() and not s.startswith("#")]
        out.append("\n".join([*said, "----", *stage.block(lines)]))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript_reads_as_kept(path, reads_as_kept):
    reads_as_kept(path, play)


def test_transcripts_exist():
    assert {p.stem for p in HERE.glob("*.txt")} >= {
        "preemption",
        "fallback",
        "borrowing",
        "backfill",
        "shrink-and-grow",
    }
