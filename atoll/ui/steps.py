"""Committed steps as people ask for them: losses, throughput, and the epochs that the steps were committed in.

An epoch's span is read from the committed steps and never from wishes: it begins with its first commit, and the gap
before it is what the change of members cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from atoll.schema.views import MetricPoint
from atoll.ui import wording

# At one point a second this is more than an hour of full detail; compacted points still draw the same line.
MAX_POINTS = 4_000
_HELD_OUT = frozenset({"heldout", "held", "val", "valid", "validation", "eval", "test"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSpan:
    """The committed steps of one epoch. `gap_s` passed between the last commit before it and its first."""

    epoch: int
    first: int
    last: int
    members: int
    began_at: float
    ended_at: float
    gap_s: float | None

    @property
    def steps(self) -> int:
        """Committed steps in the span."""
        return self.last - self.first + 1


def is_held_out(metric: str) -> bool:
    """True for a metric taken on text that is not trained on, by its name."""
    return not _HELD_OUT.isdisjoint(metric.lower().replace("-", "_").replace("/", "_").split("_"))


def loss_names(points: Iterable[MetricPoint]) -> list[str]:
    """Names of the reported losses: training first, then held-out ones."""
    found = {name for point in points for name in point.metrics if "loss" in name.lower()}
    return sorted(found, key=lambda name: (is_held_out(name), name != "loss", name))


def rate(point: MetricPoint) -> tuple[float, str]:
    """Work per second of this step and its unit: tokens where the program reports them, else samples."""
    for name, value in point.metrics.items():
        if name in {"tokens_per_s", "tokens_per_second", "tokens/s"}:
            return value, "tokens/s"
    seconds = max(point.step_s, 1e-9)
    if "tokens" in point.metrics:
        return point.metrics["tokens"] / seconds, "tokens/s"
    return point.samples / seconds, "samples/s"


def latest_value(points: Sequence[MetricPoint], name: str | None) -> float | None:
    """The newest value of a metric that not every step reports."""
    return next((p.metrics[name] for p in reversed(points) if name in p.metrics), None) if name else None


def compact(points: list[MetricPoint], limit: int = MAX_POINTS) -> list[MetricPoint]:
    """At most about `limit` points: of the older half every second one goes, but never the edge of an epoch."""
    if len(points) <= limit:
        return points
    half = len(points) // 2
    kept = [p for i, p in enumerate(points[:half]) if i % 2 == 0 or _is_edge(points, i)]
    return kept + points[half:]


def _is_edge(points: Sequence[MetricPoint], i: int) -> bool:
    epochs = {p.epoch for p in points[max(0, i - 1) : i + 2]}
    return len(epochs) > 1


def epoch_spans(points: Iterable[MetricPoint]) -> list[EpochSpan]:
    """The epochs that committed something, oldest first."""
    spans: list[EpochSpan] = []
    for point in points:
        if spans and spans[-1].epoch == point.epoch:
            spans[-1] = replace(spans[-1], last=point.step, ended_at=point.at, members=point.members)
        else:
            spans.append(_span(point, spans[-1] if spans else None))
    return spans


def _span(point: MetricPoint, before: EpochSpan | None) -> EpochSpan:
    return EpochSpan(
        epoch=point.epoch,
        first=point.step,
        last=point.step,
        members=point.members,
        began_at=point.at,
        ended_at=point.at,
        gap_s=point.at - before.ended_at if before else None,
    )


def span_words(span: EpochSpan) -> str:
    """One epoch in a line."""
    steps = f"step {span.first:,}" if span.steps == 1 else f"steps {span.first:,}\u2013{span.last:,}"
    gap = "" if span.gap_s is None else f", {wording.duration(span.gap_s)} after the commit before it"
    return f"{steps}, {wording.plural(span.members, 'member')}{gap}"
