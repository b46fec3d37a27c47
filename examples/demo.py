"""What `make demo` runs: train on four workers, lose one by SIGKILL, go on, account for every sample, serve the result.

Everything here goes through the doors that any user has: the Python client, the run's own files, and one signal. The last
line printed is one JSON object with the figures.
"""

import dataclasses
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gpt import GPT
from rich.console import Console
from rich.live import Live
from rich.table import Table
from train_gpt import corpus, train

import atoll
from atoll import config, launch, launch_spec
from atoll.checkpoint.fs_inspect import verify
from atoll.cli_progress import Progress
from atoll.clock import SystemClock
from atoll.schema.spec import JobKind
from atoll.workers.account import merge

STEPS = 300
PROMPT = "def __init__(self"
NAN = float("nan")
console = Console(highlight=False, soft_wrap=True)


@dataclasses.dataclass
class Story:
    """What the demo saw of the run."""

    points: list = dataclasses.field(default_factory=list)
    killed_at: float | None = None
    killed_in: int = 0

    def metric(self, name):
        """The newest value of a metric that not every step reports."""
        return next((p.metrics[name] for p in reversed(self.points) if name in p.metrics), NAN)


def screen(progress, url):
    """One look at a living run."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in [*progress.facts(), ("dashboard", url)]:
        table.add_row(f"[bold]{name}[/]", f"{value} of {STEPS}" if name == "step" else value)
    return table


def follow(client, run):
    """Watch the run to its end; half-way, end one worker without warning."""
    story, progress, printed, url = Story(), Progress(), 0.0, f"{client.url}/runs/{run}"
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            view, points = client.run(run), client.metrics(run, after_step=progress.after_step)
            story.points += points
            for item in [*client.events(run, after=progress.after), *points, view]:
                line = progress.take(item)
                if line:
                    console.print(f"[cyan]{line}[/]")
            if view.state.ended:
                return view, story
            look = screen(progress, url)
            live.update(look)
            if not console.is_terminal and points and time.monotonic() - printed > 10:
                printed = time.monotonic()
                console.print(look)
            if story.killed_at is None and view.step >= STEPS // 2:
                kill_one(view, story)
            time.sleep(0.2)


def kill_one(view, story):
    """SIGKILL the worker of rank 1."""
    victim = next(t for t in view.trainers if t.role == "worker" and t.rank == 1)
    console.print(f"[bold red]kill -9 {victim.pid}[/] is {victim.trainer}, rank 1; step {view.step} was committed last")
    story.killed_at, story.killed_in = SystemClock().now(), view.epoch
    os.kill(victim.pid, signal.SIGKILL)


def resume_seconds(story):
    """(first commit of the new membership - fault) - one undisturbed step of it."""
    after = [p for p in story.points if p.epoch > story.killed_in]
    return after[0].at - story.killed_at - statistics.median(p.step_s for p in after[1:11])


def bigram_loss():
    """Nats a byte, on the held-out files, of a table of byte pairs fitted on the training files."""
    text, held = (np.frombuffer(corpus(held_out=h), dtype=np.uint8).astype(np.int32) for h in (False, True))
    counts = np.bincount(text[:-1] * 256 + text[1:], minlength=65536).reshape(256, 256) + 0.1
    table = np.log(counts / counts.sum(1, keepdims=True))
    return float(-table[held[:-1], held[1:]].mean())


def serve(client, spec, checkpoint):
    """Serve a checkpoint and stream one completion of PROMPT."""
    run = client.submit(
        dataclasses.replace(spec, name="gpt", kind=JobKind.SERVE, workers=1, spares=0, resume=checkpoint, detach=True)
    )
    deadline = time.monotonic() + 60
    while not client.run(run).endpoint:
        if time.monotonic() > deadline or client.run(run).state.ended:
            sys.exit(f"demo: the replica did not come up: {client.run(run).reason}; see `atoll logs {run}`")
        time.sleep(0.2)
    console.print(f"\n[bold]{client.url}/v1/completions[/] goes on from {PROMPT!r}:")
    print(PROMPT, end="", flush=True)
    pieces = []
    for piece in client.complete(PROMPT, model="gpt", max_tokens=100, temperature=0.8, seed=3, stream=True):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print("\n")
    client.stop(run, reason="the demo is over")
    return "".join(pieces)


def figures(home, run, view, story):
    """The account of the run, from what the loaders really fed and from what lies on the disk."""
    files = (home / "runs" / run / "account").glob("*.jsonl")
    account = merge(line for file in files for line in file.read_text().splitlines())
    reports = verify(Path(view.checkpoint.path).parent)
    return {
        "steps": account.steps,
        "loss_first": round(story.points[0].metrics["loss"], 4),
        "loss_last": round(story.points[-1].metrics["loss"], 4),
        "heldout_loss": round(story.metric("heldout_loss"), 4),
        "bigram_loss": round(bigram_loss(), 4),
        "workers_killed": int(story.killed_at is not None),
        "steps_lost": STEPS - account.steps + len(account.gaps),
        "samples_lost": account.lost,
        "samples_repeated": account.repeated,
        "resume_s": round(resume_seconds(story), 3),
        "checkpoints": [{"step": r.step, "verified": r.ok} for r in reports],
    }


def main():
    """The whole demo, on a cluster of its own that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="atoll-demo-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        settings = dataclasses.replace(config.load({}), home=home)
        info = launch.up(settings, None, None, lambda text: console.print(f"[dim]{text}[/]"))
        try:
            with atoll.Client(info.rest_url, info.token) as client:
                result = tell(client, home)
        finally:
            launch.down(settings, lambda text: console.print(f"[dim]{text}[/]"))
    print(json.dumps(result))


def tell(client, home):
    """Train, strike, account, serve."""
    options = {"workers": 4, "model": GPT, "checkpoint_every": 25, "config": {"steps": STEPS}, "detach": True}
    spec = launch_spec.build(train, options, cwd=Path(__file__).parent)
    run = client.submit(spec)
    view, story = follow(client, run)
    if view.state != "succeeded":
        sys.exit(f"demo: the run {view.state}: {view.reason}")
    result = figures(home, run, view, story)
    return result | {"completion": serve(client, spec, view.checkpoint.path)}


if __name__ == "__main__":
    main()
