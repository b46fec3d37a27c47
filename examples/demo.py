"""What `make demo` runs: train on four workers, lose one by SIGKILL, go on, check every sample, serve the result.

Everything here goes through the doors that any user has: the Python client, the files of the run, and one signal.
The last line printed is one JSON object with the figures.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from train_gpt import corpus

import atoll
from atoll.checkpoint.fs_inspect import verify
from atoll.launch import cluster, job_spec
from atoll.schema.spec import JobKind
from atoll.workers.account import merge

STEPS = 150
PROMPT = "def __init__(self"
console = Console(highlight=False)


@dataclass
class Story:
    """What the demo saw of the run."""

    points: list = field(default_factory=list)
    events: int = 0
    killed_at: float | None = None
    killed_step: int = -1


def show(view, story, url):
    """One screen of a living run."""
    last = view.last
    metrics = {k: v for p in story.points for k, v in p.metrics.items()}
    recent = story.points[-10:]
    speed = sum(p.samples for p in recent) * 128 / max(1e-9, sum(p.step_s for p in recent)) if recent else 0.0
    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = {
        "step": f"{view.step + 1 if last else 0} of {STEPS}",
        "loss": f"{metrics.get('loss', float('nan')):.3f}",
        "held-out loss": f"{metrics.get('heldout_loss', float('nan')):.3f}",
        "tokens/s": f"{speed:,.0f}",
        "members": f"{view.members} of {view.workers_wanted}, {view.spares} spare",
        "epoch": str(view.epoch),
        "last durable checkpoint": f"step {view.checkpoint.step}" if view.checkpoint else "none yet",
        "dashboard": url,
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def follow(client, run, url):
    """Watch the run to its end; half-way, end one worker without warning."""
    story, printed = Story(), 0.0
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            view = client.run(run)
            after = story.points[-1].step if story.points else -1
            story.points += client.metrics(run, after_step=after)
            for event in client.events(run, after=story.events):
                story.events = event.seq
                console.print(f"[cyan]{event.subject}[/] {event.text}")
            if view.state.ended:
                return view, story
            live.update(show(view, story, url))
            if not console.is_terminal and view.last and time.monotonic() - printed > 10:
                printed = time.monotonic()
                console.print(show(view, story, url))
            if story.killed_at is None and view.step >= STEPS // 2:
                kill_one(view, story)
            time.sleep(0.25)


def kill_one(view, story):
    """SIGKILL the worker of rank 1."""
    victim = next(t for t in view.trainers if t.role == "worker" and t.rank == 1)
    console.print(f"[bold red]kill -9 {victim.pid}[/] ({victim.trainer}, rank 1, after step {view.step})")
    os.kill(victim.pid, signal.SIGKILL)
    story.killed_at, story.killed_step = time.time(), view.step


def resume_seconds(story):
    """(next commit - fault) - one undisturbed step of the new membership."""
    after = [p for p in story.points if p.at >= story.killed_at]
    undisturbed = statistics.median(p.step_s for p in after[2:12])
    return max(0.0, after[0].at - story.killed_at - undisturbed)


def bigram_loss():
    """Nats a byte on the held-out files of a table of byte pairs fitted on the training files."""
    text, held = (np.frombuffer(corpus(held_out=h), dtype=np.uint8).astype(np.int32) for h in (False, True))
    counts = np.bincount(text[:-1] * 256 + text[1:], minlength=65536).reshape(256, 256) + 0.1
    table = np.log(counts / counts.sum(1, keepdims=True))
    return float(-table[held[:-1], held[1:]].mean())


def serve(client, spec, checkpoints):
    """Serve the run's last checkpoint and stream one completion."""
    run = client.submit(job_spec(spec, name="demo-serve", kind=JobKind.SERVE, workers=1, spares=0, resume=checkpoints))
    deadline = time.monotonic() + 60
    while not client.run(run).endpoint:
        if time.monotonic() > deadline or client.run(run).state.ended:
            sys.exit(f"demo: the replica did not come up: {client.run(run).reason}")
        time.sleep(0.2)
    console.print(f"[bold]completion of[/] {PROMPT!r}:")
    print(PROMPT, end="", flush=True)
    pieces = []
    for piece in client.complete(PROMPT, max_tokens=80, temperature=0.0, stream=True):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    client.stop(run, reason="the demo is over")
    return "".join(pieces)
