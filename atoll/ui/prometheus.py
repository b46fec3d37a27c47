"""The cluster in Prometheus text format, from the same views that the dashboard shows.

One sample a run or node and nothing per step or per trainer, so that the number of series stays bounded by the number of
runs. A run's own reports appear as `atoll_run_metric{metric="loss"}`. Text out of facts in: no client library, hence no
global registry to keep in step with the journal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from atoll.schema.sharing_views import USES, QueueView, TopView
from atoll.schema.views import NodeView, RunState, RunView

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line: labels and a value."""

    labels: Mapping[str, str]
    value: float


def render(runs: Sequence[RunView], nodes: Sequence[NodeView], top: TopView | None = None) -> str:
    """The whole exposition, ending in a newline. `top`: None while the control plane is away."""
    shared = _queue_families(top) if top is not None else []
    return "".join([*_run_families(runs), *_node_families(nodes), *shared])


def family(name: str, text: str, samples: Iterable[Sample], kind: str = "gauge") -> str:
    """One metric with its help line. A family without samples is left out."""
    lines = [_line(name, sample) for sample in samples]
    if not lines:
        return ""
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(lines)


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sample.labels.items())
    return f"{name}{{{labels}}} {_value(sample.value)}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def _labels(run: RunView) -> dict[str, str]:
    return {"run": run.run, "name": run.name, "kind": run.kind.value}


def _run_families(runs: Sequence[RunView]) -> list[str]:
    states = [Sample(labels={"state": s.value}, value=sum(r.state is s for r in runs)) for s in RunState]
    live = [run for run in runs if not run.state.ended]
    steps = [(run, run.last) for run in runs if run.last is not None]
    saved = [(run, run.checkpoint) for run in runs if run.checkpoint is not None]

    def of(pairs: Iterable[tuple[RunView, float]]) -> list[Sample]:
        return [Sample(labels=_labels(run), value=value) for run, value in pairs]

    return [
        family("atoll_runs", "Runs by state.", states),
        family("atoll_run_members", "Trainers in the run's present epoch.", of((r, r.members) for r in live)),
        family("atoll_run_workers_wanted", "Trainers the run asked for.", of((r, r.workers_wanted) for r in live)),
        family("atoll_run_spares", "Warm trainers without a rank.", of((r, r.spares) for r in live)),
        family("atoll_run_epoch", "Membership generation.", of((r, r.epoch) for r in runs)),
        family("atoll_run_step", "Last committed step.", of((r, r.step) for r in runs)),
        family("atoll_run_step_seconds", "Seconds of the last committed step.", of((r, p.step_s) for r, p in steps)),
        family("atoll_run_step_samples", "Samples of the last committed step.", of((r, p.samples) for r, p in steps)),
        family("atoll_run_metric", "What the training function reported with the last committed step.", _metrics(runs)),
        family("atoll_run_checkpoint_step", "Step of the last durable checkpoint.", of((r, c.step) for r, c in saved)),
        family(
            "atoll_run_checkpoint_timestamp_seconds",
            "Unix time at which the last checkpoint became durable.",
            of((r, c.at) for r, c in saved),
        ),
        family(
            "atoll_run_checkpoints_failed_total",
            "Checkpoints that did not become durable, since the control plane began.",
            of((r, r.failed_saves) for r in runs),
            "counter",
        ),
    ]


def _metrics(runs: Sequence[RunView]) -> list[Sample]:
    return [
        Sample(labels={**_labels(run), "metric": name}, value=value)
        for run in runs
        if run.last is not None
        for name, value in sorted(run.last.metrics.items())
    ]


def _node_families(nodes: Sequence[NodeView]) -> list[str]:
    def of(pairs: Iterable[tuple[NodeView, float]]) -> list[Sample]:
        return [Sample(labels={"node": node.node}, value=value) for node, value in pairs]

    return [
        family("atoll_node_up", "1 while the host is part of the cluster.", of((n, n.alive) for n in nodes)),
        family("atoll_node_agent", "1 while the host's agent is attached.", of((n, n.agent) for n in nodes)),
        family("atoll_node_cpus", "CPU resources of the host.", of((n, n.cpus) for n in nodes)),
        family("atoll_node_cpus_free", "CPU resources that no seat holds.", of((n, n.cpus_free) for n in nodes)),
        family("atoll_node_gpus", "GPU resources of the host.", of((n, n.gpus) for n in nodes)),
    ]


def _queue_families(top: TopView) -> list[str]:
    def of(pairs: Iterable[tuple[QueueView, float]]) -> list[Sample]:
        return [Sample(labels={"queue": queue.name}, value=value) for queue, value in pairs]

    spent = [
        Sample(labels={"by": row.by, "name": row.name, "use": use}, value=getattr(row, use))
        for row in top.goodput
        for use in USES
        if getattr(row, use)
    ]
    queues = top.queues
    return [
        family("atoll_queue_share", "Part of the cluster that the queue uses now.", of((q, q.share) for q in queues)),
        family("atoll_queue_share_lately", "Part that it used on average lately.", of((q, q.lately) for q in queues)),
        family("atoll_queue_share_fair", "Part that is its by weight.", of((q, q.fair_share) for q in queues)),
        family("atoll_queue_running", "Runs that hold seats.", of((q, q.running) for q in queues)),
        family("atoll_queue_waiting", "Runs that wait.", of((q, q.waiting) for q in queues)),
        family("atoll_device_seconds", "Where the time of devices went, since the control plane's start.", spent),
    ]
