"""Each `autoscaling/*.txt` plays who waits and what becomes of machines, on a virtual clock; seconds are since the block began.

type NAME cpus=4 most=2 price=1 island=east idle=20 joins=30 spot   a type of machine (first block only)
budget 5                         an hour (first block only)
node NAME cpus=4                 a node that nobody here started
ask RUN workers=4 least=2 cpus=1 gpus=0 islands=1 speed:DEVICE=9    a gang that waits
soldout TYPE | mute TYPE         from now on no machine is to be had, or none joins; again: they are
notice MACHINE 30                its provider takes it in so many seconds
kill MACHINE | finish RUN | restart (the autoscaler, which keeps nothing)
go 30                            seconds pass
"""

from __future__ import annotations

from pathlib import Path

import pytest
from imagined_machines import World, ask, kind, only

from atoll.control_plane.autoscaling.spec import Scaling

HERE = Path(__file__).parent / "autoscaling"
OPTIONS = {"price": "price_per_hour", "idle": "idle_s", "joins": "launch_s"}


def value(text):
    return float(text) if text.replace(".", "", 1).isdigit() else text


def options_of(words):
    return {k: value(v) for k, v in (w.split("=") for w in words if "=" in w)}


def made(words):
    options = {OPTIONS.get(k, k): v for k, v in options_of(words[1:]).items()}
    options.update({k: int(options[k]) for k in ("most", "least") if k in options})
    return kind(words[0], spot="spot" in words, **options)


class Stage:
    """One transcript being played."""

    def __init__(self, lines):
        rows = [line.split() for line in lines]
        budget = next((float(r[1]) for r in rows if r[0] == "budget"), None)
        kinds = tuple(made(r[1:]) for r in rows if r[0] == "type")
        self.world = World(Scaling(cluster="c", types=kinds, budget_per_hour=budget, room_s=60.0))

    def line(self, text):
        word, *rest = text.split()
        world = self.world
        match word:
            case "type" | "budget":
                pass
            case "node":
                world.stand(rest[0], **{k: int(v) for k, v in options_of(rest).items()})
            case "ask":
                world.submit(self.gang(rest))
            case "soldout" | "mute":
                failing = world.sold_out if word == "soldout" else world.mute
                failing.symmetric_difference_update(rest)
            case "notice":
                world.notice(rest[0], float(rest[1]))
            case "go":
                world.go(float(rest[0]))
            case _:
                getattr(world, word)(*rest)

    def gang(self, words):
        options = options_of(words[1:])
        measured = {k.removeprefix("speed:"): v for k, v in options.items() if k.startswith("speed:")}
        islands = int(options.pop("islands", 0))
        plain = {k: int(v) if k in {"workers", "least"} else v for k, v in options.items() if ":" not in k}
        return ask(words[0], measured=measured, options=(only(islands=islands),), **plain)

    def block(self, lines):
        world = self.world
        began, notes = world.now, len(world.notes)
        for line in lines:
            self.line(line)
        for at, note in world.notes[notes:]:
            yield f"  {at - began:4.0f} {note}"
        standing = " ".join(sorted(world.standing())) or "nothing"
        yield f"= {standing} stands, {world.price():g} an hour; running: {' '.join(sorted(world.running)) or 'nobody'}"


def play(text):
    out, stage = [], None
    for block in text.strip().split("\n\n"):
        said = block.split("\n----")[0].splitlines()
        lines = [s for s in said if s and not s.startswith("#")]
        stage = stage or Stage(lines)
        out.append("\n".join([*said, "----", *stage.block(lines)]))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript_reads_as_kept(path, reads_as_kept):
    reads_as_kept(path, play)


def test_transcripts_exist():
    assert len(list(HERE.glob("*.txt"))) >= 4
