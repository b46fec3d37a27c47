"""`atoll simulate`: the scheduler's own cores on virtual time, beside what plain Ray would do with the same jobs.

Everything but reading a record, drawing the bar and writing the report is in `atoll.simulate`. Figures go to standard
output, as a table or as JSON; `--report` also writes them with curves of utilisation, queue and completion times.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import ScriptNotFound, SpecError

if TYPE_CHECKING:
    from rich.table import Table

    from atoll.simulate.cluster import Cluster
    from atoll.simulate.jobs import Job
    from atoll.simulate.measures import Measures

_TYPES = "v100,p100,k80"


def simulate(  # noqa: PLR0913 - one option each
    *,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts of the cluster.")] = 27,
    devices: Annotated[int, typer.Option(min=1, help="Devices of each host.")] = 4,
    types: Annotated[str, typer.Option(help="Device types, in equal parts.")] = _TYPES,
    island: Annotated[int, typer.Option(min=1, help="Hosts of an island, all of one type.")] = 9,
    jobs: Annotated[int, typer.Option(min=2, help="Jobs to draw.")] = 1000,
    law: Annotated[str, typer.Option(help="Law of arrivals and sizes: gavel or helios (docs/simulator.md).")] = "gavel",
    load: Annotated[float, typer.Option(min=0.01, help="What is asked for over what there is.")] = 0.9,
    elastic: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of jobs that are elastic.")] = 0.8,
    scale: Annotated[int, typer.Option(min=1, help="So many times the workers of the law: for large clusters.")] = 1,
    burst: Annotated[float, typer.Option(min=0.1, help="Variation of the gaps between jobs: 1 is Poisson.")] = 1.0,
    workload: Annotated[Path | None, typer.Option(help="A record (.csv, or lines of JSON) in place of a law.")] = None,
    policy: Annotated[str, typer.Option(help="Who schedules, one after another.")] = "atoll,fifo,fifo-backfill",
    seed: Annotated[int, typer.Option(help="Of the law: the same seed gives the same result.")] = 0,
    report: Annotated[Path | None, typer.Option(help="A folder for figures, jobs and curves.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Simulate the scheduler on a cluster and jobs of any size, and compare it with what plain Ray does."""
    from atoll.simulate import arena, laws, measures  # noqa: PLC0415 - only where it is run
    from atoll.simulate.cluster import islands  # noqa: PLC0415 - likewise

    policies = _listed(policy, arena.POLICIES, "policy")
    known = _listed(types, laws.MODELS[0].speeds, "types")
    cluster = islands(nodes, types=known, each=devices, island_nodes=island)
    if workload is not None:
        drawn = _recorded(workload, cluster)
    else:
        chosen = laws.LAWS[_listed(law, laws.LAWS, "law")[0]]
        traffic = laws.Traffic(law=chosen, jobs=jobs, load=load, elastic=elastic, cv=burst, scale=scale)
        drawn = laws.generate(traffic, cluster, seed)
    outcomes = []
    for name in policies:
        with _bar(name, len(drawn)) as told:
            outcomes.append(arena.simulate(name, cluster, drawn, told))
    found = [measures.measured(outcome) for outcome in outcomes]
    plain = {"cluster": cluster.of_type(), "nodes": nodes, "jobs": len(drawn), "seed": seed, "load": load} | {
        "law": str(workload or law),
        "policies": [dataclasses.asdict(m) for m in found],
    }
    if report is not None:
        from atoll.simulate.pictures import pictures  # noqa: PLC0415 - likewise

        _write(report, plain, pictures(outcomes), [line for o in outcomes for line in _jobs(o.policy, o.runs)])
    if as_json:
        sys.stdout.write(json.dumps(plain) + "\n")
        return
    from rich.console import Console  # noqa: PLC0415 - rich only where it is printed

    Console().print(table(found))
    if report is not None:
        typer.echo(f"the report is in {report}")


def _listed(words: str, known: Any, option: str) -> list[str]:
    """Names with commas between, each a known one."""
    found = [word.strip() for word in words.split(",") if word.strip()]
    for word in found:
        if word not in known:
            raise SpecError(f"--{option} {word!r}: one of {', '.join(known)}")
    if not found:
        raise SpecError(f"--{option} is empty: one of {', '.join(known)}")
    return found


def _recorded(file: Path, cluster: Cluster) -> tuple[Job, ...]:
    from atoll.simulate import recorded  # noqa: PLC0415 - as above

    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return recorded.read(lines, file.name, cluster)
    except OSError as error:
        raise ScriptNotFound(f"cannot read the workload {file}: {error.strerror}; give the path of a record") from None


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Jobs that have ended, on a terminal."""
    from atoll.cli_bars import counted  # noqa: PLC0415 - as above

    with counted(what, total, "jobs") as told:
        yield told


def table(found: Sequence[Measures]) -> Table:
    """A row for each policy; as wide as 80 columns."""
    from rich.table import Table  # noqa: PLC0415 - as above

    shown = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    shown.caption = "hours, and shares of the cluster: docs/simulator.md has the words"
    shown.caption_justify = "left"
    for column in ("POLICY", "MEAN", "MEDIAN", "P95", "QUEUED", "UTILISED", "BUSY", "HELD", "SUSP.", "RESIZED"):
        shown.add_column(column, justify="left" if column == "POLICY" else "right", no_wrap=True)
    for m in found:
        shown.add_row(
            m.policy,
            *(f"{s / 3600:.2f}" for s in (m.mean_jct_s, m.median_jct_s, m.p95_jct_s, m.mean_delay_s)),
            f"{m.utilisation:.1%}",
            f"{m.busy:.1%}",
            f"{m.held:.1%}",
            str(m.preemptions),
            str(m.resizes),
        )
    return shown


def _jobs(policy: str, runs: Sequence[Any]) -> Iterator[str]:
    """A line for each job: what it asked for and what became of it."""
    for run in runs:
        job = run.job
        yield json.dumps(
            {"policy": policy, "id": job.id, "queue": job.queue, "workers": job.workers, "model": job.model.name}
            | {"submitted_s": job.submitted_s, "started_s": run.started_at, "finished_s": run.finished_at}
            | {"queued_s": run.queued_s, "device_s": run.device_s}
            | {"suspensions": run.suspensions, "resizes": run.resizes}
        )


def _write(folder: Path, plain: dict[str, Any], curves: dict[str, str], jobs: Sequence[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        (folder / "jobs.jsonl").write_text("\n".join(jobs) + "\n", encoding="utf-8")
        for name, picture in curves.items():
            (folder / name).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--report {folder}: {error.strerror}") from None
