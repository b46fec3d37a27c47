"""`atoll chaos run` and `atoll chaos table`: faults on purpose, on a run that was submitted with chaos=True.

A plan is data (`atoll.fault.chaos`); this command looks what is due and asks the cluster to do it, so a plan survives
the control plane and ends with this command. The table measures on the run's own steps what each kind costs: seconds
from the order to the next commit of new members, less one of their steps, by the clocks of the nodes.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import ClusterError, ScriptNotFound, SpecError
from atoll.fault import chaos, chaos_table
from atoll.fault.costs import Commit, cost, longest_gap
from atoll.schema.harm import HarmWish
from atoll.schema.ids import TrainerId
from atoll.schema.views import RunState, RunView

if TYPE_CHECKING:
    from atoll.client import Client

LOOK_S = 0.1
# What has not recovered by then has not recovered.
LIMIT_S = 60.0
# Steps of the same members before the next fault, so that an undisturbed one is known.
STEADY_STEPS = 6
# The story reaches the web process within a tenth of a second.
_TOLD_S = 0.3
_PAUSE_S = 5.0

chaos_app = typer.Typer(help="Hurt a run on purpose, and see what it costs.", no_args_is_help=True)
RunId = Annotated[str, typer.Argument(help="A run that was submitted with chaos=True.")]


@chaos_app.command("run")
def run_plan(
    plan: Annotated[Path, typer.Argument(help="The plan, in TOML; docs/chaos.md has its words.")], run: RunId
) -> None:
    """Carry out a plan of faults on a run, until all of it is done or the run has ended."""
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    try:
        text = plan.read_text(encoding="utf-8")
    except OSError as error:
        raise ScriptNotFound(f"cannot read the plan {plan}: {error.strerror}; give the path of a TOML file") from None
    parsed = chaos.parse(text, str(plan))
    with Client() as client:
        view = _steady(client, _allowed(client, run).run, 0)
        typer.echo(f"seed {parsed.seed}, {len(parsed.faults)} faults on {view.run}")
        _carry_out(client, view.run, chaos.Course(parsed))


def _carry_out(client: Client, run: str, course: chaos.Course) -> None:
    chance = random.Random(course.plan.seed)  # noqa: S311 - a plan, no secret
    begun = time.monotonic()
    while not course.over:
        view = client.run(run)
        if view.state.ended:
            typer.echo(f"{run} ended as {view.state} before the plan did: {view.reason}")
            return
        since = time.monotonic() - begun
        for fault in course.due(since_s=since, step=view.step):
            hurt = chaos.victims(fault, view.trainers, chance)
            for trainer in hurt:
                client.harm(run, _wish(fault, trainer))
            typer.echo(f"{since:7.1f} s step {view.step}: {fault.what} {', '.join(hurt) or f'nobody ({fault.whom})'}")
        time.sleep(LOOK_S)


@chaos_app.command()
def table(
    run: RunId,
    trials: Annotated[int, typer.Option(min=1, help="How often each kind.")] = 5,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; may be given again.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses whom.")] = 0,
) -> None:
    """Make each kind of failure on a run, and print what it cost. The run must have steps enough left."""
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - likewise

    from atoll.client import Client  # noqa: PLC0415 - likewise

    kinds = _kinds(kind)
    shown = Table("failure", "trials", "recovered", "median s", "worst s", "right verdicts", "wrongly condemned")
    chance = random.Random(seed)  # noqa: S311 - as above
    with Client() as client:
        workers = _allowed(client, run).workers_wanted
        for one in kinds:
            if workers < one.workers:
                typer.echo(f"{one.name}: left out, a run of {workers} would not outlive it; it takes {one.workers}")
                continue
            found = chaos_table.row(one, [_tried(client, run, one, chance) for _ in range(trials)])
            numbers = [_shown(found.median), _shown(found.worst), str(found.right), str(found.wrong)]
            shown.add_row(found.kind, str(found.trials), str(len(found.seconds)), *numbers)
            typer.echo(f"{found.kind}: {_shown(found.median)} s")
    Console().print(shown)


def _kinds(names: list[str] | None) -> list[chaos_table.Kind]:
    known = {k.name: k for k in chaos_table.KINDS}
    unknown = [n for n in names or () if n not in known]
    if unknown:
        raise SpecError(f"no kind {unknown[0]!r}; there are {', '.join(known)}")
    return [known[n] for n in names or known]


def _tried(client: Client, run: str, kind: chaos_table.Kind, chance: random.Random) -> chaos_table.Trial:
    """One trial: wait for calm, strike, wait for new members' steps, and read what was said."""
    view = _steady(client, run, STEADY_STEPS)
    after = max((e.seq for e in client.events(run)), default=0)
    course = chaos.Course(chaos.Plan(faults=kind.faults))
    begun, hurt, moment = time.monotonic(), set[str](), 0.0
    until = begun + (LIMIT_S if kind.loses else _PAUSE_S)
    found = None
    while found is None and time.monotonic() < until:
        for fault in course.due(since_s=time.monotonic() - begun, step=view.step):
            for trainer in chaos.victims(fault, view.trainers, chance):
                moment = client.harm(run, _wish(fault, trainer))
                hurt.add(trainer)
        commits = _commits(client, run, view.step)
        found = cost(commits, moment, epoch=view.epoch) if kind.loses else None
        time.sleep(LOOK_S)
    time.sleep(_TOLD_S)
    right, wrong = chaos_table.judged(kind, hurt, client.events(run, after))
    commits = _commits(client, run, view.step)
    end = max((c.at for c in commits), default=moment)
    return chaos_table.Trial(cost=found, pause_s=longest_gap(commits, moment, end), right=right, wrong=wrong)


def _commits(client: Client, run: str, after: int) -> list[Commit]:
    points = client.metrics(run, after)
    return [Commit(step=p.step, at=p.at, epoch=p.epoch, members=p.members) for p in points]


def _allowed(client: Client, run: str) -> RunView:
    view = client.run(run)
    if view.spec is None or not view.spec.chaos:
        raise SpecError(f"run {run} does not allow chaos: submit it with chaos=True, and not where it matters")
    return view


def _steady(client: Client, run: str, steps: int) -> RunView:
    """The run, once all its members have committed so many steps together. Raises `ClusterError`."""
    until = time.monotonic() + LIMIT_S
    first: RunView | None = None
    while time.monotonic() < until:
        view = client.run(run)
        if view.state.ended:
            raise ClusterError(f"run {run} ended as {view.state}: {view.reason}")
        whole = view.state is RunState.RUNNING and view.members == view.workers_wanted
        if not whole or first is None or first.epoch != view.epoch:
            first = view if whole else None
        elif view.step >= first.step + steps:
            return view
        time.sleep(LOOK_S)
    raise ClusterError(f"run {run} did not have all its members training within {LIMIT_S:g} s; see `atoll story {run}`")


def _wish(fault: chaos.Fault, trainer: str) -> HarmWish:
    return HarmWish(trainer=TrainerId(trainer), harm=fault.what, for_s=fault.for_s, place=fault.at)


def _shown(seconds: float | None) -> str:
    return "not in time" if seconds is None else f"{seconds:.2f}"
