"""What the pages show, made from the schema's views: rows, tiles, member cards, the epoch timeline, event lines.

Everything here is a value, in the order in which it is drawn and in the words that are drawn, so that the pages only
carry it to the browser and change what differs from the second before. An epoch's span is read from the committed steps
and never from wishes: it begins with its first commit, and the gap before it is what the change of members cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from atoll.schema.ids import RunId
from atoll.schema.spec import JobKind
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, RunState, RunView, TrainerView
from atoll.ui import wording
from atoll.ui.wording import NOTHING, Tone

# Enough for the eye to follow one incident; older ones are in `atoll story` and in the events.
MAX_GONE = 4
# At one point a second this is more than an hour of full detail; compacted points still draw the same line.
MAX_POINTS = 4_000
_HELD_OUT = frozenset({"heldout", "held", "val", "valid", "validation", "eval", "test"})
_ROLE_ORDER = ("worker", "learner", "server", "spare", "gone")
_ROLE_GLYPHS = {"worker": "\u25cf", "server": "\u25cf", "learner": "\u25d1", "spare": "\u25cb", "gone": "\u2715"}
_ROLE_TONES = {
    "worker": Tone.ACTIVE,
    "server": Tone.ACTIVE,
    "learner": Tone.CALM,
    "spare": Tone.CALM,
    "gone": Tone.BAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pill:
    """A state in a rounded frame."""

    glyph: str
    text: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number with its name and a quiet line under it."""

    label: str
    value: str
    note: str = ""
    tone: Tone = Tone.CALM


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One line of the table of runs."""

    run: RunId
    name: str
    pill: Pill
    step: str
    loss: str
    members: str
    short: bool
    epoch: str
    checkpoint: str
    age: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One host. `used` is the share of its CPUs that seats hold, 0..1."""

    node: str
    address: str
    pill: Pill
    cpus: str
    used: float
    gpus: str
    labels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberCard:
    """One process of a run."""

    trainer: str
    title: str
    pill: Pill
    where: str
    gone: bool


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine:
    """One line of the story."""

    seq: int
    time: str
    glyph: str
    tone: Tone
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLine:
    """One durable checkpoint."""

    step: int
    title: str
    note: str
    path: str


# -- numbers of one step ---------------------------------------------------------------------------------------------


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


# -- overview --------------------------------------------------------------------------------------------------------


def run_pill(state: RunState) -> Pill:
    """The state of a run."""
    return Pill(glyph=wording.run_glyph(state), text=state.value, tone=wording.run_tone(state))


def run_rows(runs: Iterable[RunView], *, now: float) -> list[RunRow]:
    """Live runs first, then the newest."""
    ordered = sorted(runs, key=lambda r: (r.state.ended, -r.submitted_at, r.run))
    return [_run_row(run, now=now) for run in ordered]


def _run_row(run: RunView, *, now: float) -> RunRow:
    names = loss_names([run.last]) if run.last else []
    ended = run.state.ended
    return RunRow(
        run=run.run,
        name=run.name,
        pill=run_pill(run.state),
        step=wording.count(run.step) if run.kind is JobKind.TRAIN else "serving",
        loss=wording.number(run.last.metrics[names[0]]) if run.last and names else NOTHING,
        members=NOTHING if ended else f"{run.members} / {run.workers_wanted}",
        short=not ended and run.members < run.workers_wanted,
        epoch=str(run.epoch),
        checkpoint=f"step {run.checkpoint.step:,}" if run.checkpoint else NOTHING,
        age=wording.ago(run.submitted_at, now=now),
    )


def node_rows(nodes: Iterable[NodeView]) -> list[NodeRow]:
    """Hosts by name."""
    return [_node_row(node) for node in sorted(nodes, key=lambda n: n.node)]


def _node_row(node: NodeView) -> NodeRow:
    used = max(0.0, node.cpus - node.cpus_free)
    return NodeRow(
        node=node.node,
        address=node.address,
        pill=_node_pill(node),
        cpus=f"{used:g} of {node.cpus:g} CPUs held",
        used=min(1.0, used / node.cpus) if node.cpus > 0 else 0.0,
        gpus=wording.plural(int(node.gpus), "GPU") if node.gpus else "no GPU",
        labels=", ".join(f"{k}={v}" for k, v in sorted(node.labels.items())),
    )


def _node_pill(node: NodeView) -> Pill:
    if not node.alive:
        return Pill(glyph="\u2715", text="lost", tone=Tone.BAD)
    if not node.agent:
        return Pill(glyph="\u25cc", text="no agent", tone=Tone.CARE)
    return Pill(glyph="\u2713", text="ready", tone=Tone.GOOD)


def overview_tiles(runs: Sequence[RunView], nodes: Sequence[NodeView]) -> list[Tile]:
    """The cluster in four numbers."""
    live = [r for r in runs if not r.state.ended]
    alive = [n for n in nodes if n.alive]
    members, wanted = sum(r.members for r in live), sum(r.workers_wanted for r in live)
    cpus, free = sum(n.cpus for n in alive), sum(n.cpus_free for n in alive)
    return [
        Tile(label="Live runs", value=str(len(live)), note=f"{len(runs)} in the history"),
        Tile(
            label="Members",
            value=f"{members} / {wanted}" if live else NOTHING,
            note="trainers with a rank, of those wanted",
            tone=Tone.CARE if members < wanted else Tone.CALM,
        ),
        Tile(
            label="Nodes",
            value=f"{len(alive)} / {len(nodes)}" if nodes else NOTHING,
            note="alive, of those known",
            tone=Tone.CARE if len(alive) < len(nodes) else Tone.CALM,
        ),
        Tile(label="CPUs held", value=f"{cpus - free:g} / {cpus:g}" if alive else NOTHING, note="by seats of runs"),
    ]


# -- one run ---------------------------------------------------------------------------------------------------------


def run_tiles(run: RunView, points: Sequence[MetricPoint], *, now: float) -> list[Tile]:
    """What a person looks at first, by the kind of run."""
    if run.kind is JobKind.SERVE:
        return [_members_tile(run, "Replicas"), Tile(label="Endpoint", value=run.endpoint or NOTHING)]
    names = loss_names(points)
    train = next((n for n in names if not is_held_out(n)), None)
    held = next((n for n in names if is_held_out(n)), None)
    last = points[-1] if points else run.last
    pace, unit = rate(last) if last else (None, "tokens/s")
    saved = run.checkpoint
    return [
        Tile(label="Step", value=wording.count(run.step), note=_step_note(last)),
        Tile(label="Loss", value=wording.number(latest_value(points, train)), note="training batch"),
        Tile(label="Held-out loss", value=wording.number(latest_value(points, held)), note="text never trained on"),
        Tile(label=unit.capitalize(), value=wording.count(pace) if pace is not None else NOTHING, note="all members"),
        _members_tile(run, "Members"),
        Tile(label="Epoch", value=str(run.epoch), note="changes with the members"),
        Tile(
            label="Last checkpoint",
            value=f"{saved.step:,}" if saved else NOTHING,
            note=f"durable {wording.ago(saved.at, now=now)}" if saved else "none yet",
        ),
    ]


def _step_note(last: MetricPoint | None) -> str:
    return f"{wording.duration(last.step_s)} a step" if last else "none committed yet"


def _members_tile(run: RunView, label: str) -> Tile:
    short = not run.state.ended and run.members < run.workers_wanted
    note = f"one short of {run.workers_wanted}" if run.workers_wanted - run.members == 1 else "fewer than wanted"
    return Tile(
        label=label,
        value=f"{run.members} / {run.workers_wanted}",
        note=note if short else f"and {wording.plural(run.spares, 'spare')}",
        tone=Tone.CARE if short else Tone.CALM,
    )


def member_cards(trainers: Iterable[TrainerView]) -> list[MemberCard]:
    """Ranks in order, then spares, then the last few that are gone, the newest of them first."""
    by_role = sorted(trainers, key=lambda t: (_role_place(t.role), -1 if t.rank is None else t.rank, t.trainer))
    present = [t for t in by_role if t.role != "gone"]
    gone = [t for t in by_role if t.role == "gone"]
    return [_member_card(t) for t in (*present, *gone[::-1][:MAX_GONE])]


def _role_place(role: str) -> int:
    return _ROLE_ORDER.index(role) if role in _ROLE_ORDER else len(_ROLE_ORDER)


def _member_card(trainer: TrainerView) -> MemberCard:
    gone = trainer.role == "gone"
    rank = NOTHING if trainer.rank is None else str(trainer.rank)
    title = f"Rank {rank}" if trainer.role in {"worker", "learner"} else trainer.role.capitalize()
    return MemberCard(
        trainer=trainer.trainer,
        title=title,
        pill=Pill(
            glyph=_ROLE_GLYPHS.get(trainer.role, "\u25cc"),
            text=wording.kind_words(trainer.state or trainer.role).lower(),
            tone=_ROLE_TONES.get(trainer.role, Tone.CALM),
        ),
        where=f"pid {trainer.pid} on {trainer.node}",
        gone=gone,
    )


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


def event_line(event: EventView) -> EventLine:
    """One event in words."""
    tone = wording.event_tone(event.kind)
    return EventLine(
        seq=event.seq,
        time=wording.clock_time(event.at),
        glyph=wording.TONE_GLYPHS[tone],
        tone=tone,
        title=wording.kind_words(event.kind),
        text=event.text or event.subject,
    )


def checkpoint_lines(checkpoints: Iterable[CheckpointView]) -> list[CheckpointLine]:
    """The newest first."""
    ordered = sorted(checkpoints, key=lambda c: c.step, reverse=True)
    return [
        CheckpointLine(
            step=c.step,
            title=f"Step {c.step:,}",
            note=f"{wording.size(c.bytes)} in {wording.duration(c.seconds)}, {wording.clock_time(c.at)} UTC",
            path=c.path,
        )
        for c in ordered
    ]
