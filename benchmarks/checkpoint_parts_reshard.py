"""A live change of the number of ranks, 4 to 3 to 4, out of the members' memory; against a save and a load by torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from benchmarks import checkpoint_ranks as ranks
from benchmarks import timing
from benchmarks.checkpoint_ground import RANKS, ground, scratch
from benchmarks.checkpoint_state import FULL, QUICK, Shape
from benchmarks.checkpoint_trainers import Appointed
from benchmarks.ranks import Crew, Rank
from benchmarks.reporting import Figure, Report

_TRIALS = (3, 1)
_BAR = 5.0
_FEWER = RANKS - 1
# Steps before a change: the optimizer has its moments, and each rank's buddy has its copy.
_STEPS = 3


def reshard(*, quick: bool, place: Path) -> Report:
    """Each change from the moment at which the members are told until the last one stands in the new shape."""
    shape, trials = (QUICK if quick else FULL), _TRIALS[quick]
    with scratch(place) as folder:
        live = _live(folder, shape, trials)
    with ground(place) as field:
        field.hold(shape)
        peer: dict[str, list[float]] = {"fewer": [], "more": []}
        for trial in range(trials):
            for name, (had, has) in {"fewer": (RANKS, _FEWER), "more": (_FEWER, RANKS)}.items():
                answers = field.crew.call(
                    by_dcp,
                    folder=str(field.folder),
                    shape=shape.plain(),
                    had=had,
                    has=has,
                    trial=trial,
                    limit_s=ranks.SAVE_S,
                )
                peer[name].append(max(a["ended"] for a in answers) - answers[0]["begun"])
                field.clear()
    mine = [a + b for a, b in zip(live["fewer"], live["more"], strict=True)]
    other = [a + b for a, b in zip(peer["fewer"], peer["more"], strict=True)]
    ours, theirs = timing.spread(mine), timing.spread(other)
    size = f"{shape.state_bytes / 2**30:.2f} GiB on {RANKS} ranks, rebuilt each time, {trials} times"
    note = f"{theirs.median:.3g} s (save, rebuild, load) / {ours.median:.3g} s, {size}"
    return Report(
        figures=(
            Figure(name="live_reshard_s", value=ours.median, note=f"4 to 3 and 3 to 4 together; {size}"),
            Figure(name="reshard_vs_dcp", value=timing.ratio(other, mine), bar=_BAR, note=note),
            Figure(
                name="reshard_disk_bytes",
                value=max(live["disk_bytes"]),
                bar=_bookkeeping(),
                floor=False,
                note="the most of one change, all members, counted by the kernel; the account of samples is a page each",
            ),
        ),
        details={
            "live_4_to_3_s": timing.spread(live["fewer"]).plain(),
            "live_3_to_4_s": timing.spread(live["more"]).plain(),
            "dcp_4_to_3_s": timing.spread(peer["fewer"]).plain(),
            "dcp_3_to_4_s": timing.spread(peer["more"]).plain(),
            "disk_bytes": live["disk_bytes"],
        },
    )


def _live(folder: Path, shape: Shape, trials: int) -> dict[str, list[float]]:
    """Trials with one crew: a member is lost, and a spare comes for it."""
    names = [f"trainer-{n}" for n in range(RANKS + trials)]
    crew = Crew(names, lambda _: None)
    found: dict[str, list[float]] = {"fewer": [], "more": [], "disk_bytes": []}
    try:
        plane = Appointed(crew, folder, shape)
        try:
            plane.ready()
            plane.appoint(names[:RANKS], "the run begins")
            plane.committed(_STEPS)
            for spare in names[RANKS:]:
                *rest, leaver = plane.members
                plane.kill(leaver)
                _change(plane, rest, f"{leaver} is gone", found, "fewer")
                plane.committed(_STEPS)
                _change(plane, [*rest, spare], f"{spare} comes", found, "more")
                plane.committed(_STEPS)
        finally:
            plane.close()
    finally:
        crew.close()
    return found


def _change(plane: Appointed, members: Sequence[str], reason: str, found: dict[str, list[float]], name: str) -> None:
    pids = [plane.crew.pids[plane.number(one)] for one in members]
    before = sum(disk_bytes(pid) for pid in pids)
    begun = plane.appoint(members, reason)
    found[name].append(plane.joined() - begun)
    found["disk_bytes"].append(float(sum(disk_bytes(pid) for pid in pids) - before))
    if plane.step() <= _STEPS:
        raise RuntimeError(f"{reason}: the run began anew, at step {plane.step()}")


def disk_bytes(pid: int) -> int:
    """What a process had read from storage and written towards it."""
    told = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines())
    return int(told["read_bytes"]) + int(told["write_bytes"])


def _bookkeeping() -> float:
    """A page of the account of samples for each member: no byte of a state."""
    return float(RANKS * 4096)


def by_dcp(rank: Rank, *, folder: str, shape: dict[str, int], had: int, has: int, trial: int) -> dict[str, Any]:
    """Save on `had` ranks, form groups and build the model on `has`, load: as a job does that has no other way."""
    path = f"{folder}/saves/dcp-{trial}-{had}"
    begun = rank.gate()
    if rank.number < had:
        dcp.save(rank.things["state"], storage_writer=dcp.FileSystemWriter(path))
    for name in ("state", "model", "optimizer"):
        rank.things.pop(name, None)
    ranks.join(rank, folder=folder, size=has)
    ranks.build(rank, shape=shape, size=has, values=False)
    if rank.number < has:
        dcp.load(rank.things["state"], storage_reader=dcp.FileSystemReader(path))
    return {"begun": begun, "ended": time.monotonic()}
