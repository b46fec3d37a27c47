"""What the pages show, made from the schema's views: rows, tiles, member cards, the epoch timeline, event lines.

Everything here is a value, in the order in which it is drawn and in the words that are drawn, so that the pages only
carry it to the browser and change what differs from the second before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atoll.schema.checkpoints import TierState, TierView
from atoll.schema.ids import RunId
from atoll.schema.spec import JobKind
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, RunState, RunView, TrainerView
from atoll.ui import wording
from atoll.ui.steps import is_held_out, latest_value, loss_names, rate
from atoll.ui.wording import NOTHING, Tone

# Enough for the eye to follow one incident; older ones are in `atoll story` and in the events.
MAX_GONE = 4
_ROLE_ORDER = ("worker", "learner", "server", "spare", "gone")
_ROLE_GLYPHS = {"worker": "\u25cf", "server": "\u25cf", "learner": "\u25d1", "spare": "\u25cb"}
_ROLE_TONES = {
    "worker": Tone.ACTIVE,
    "server": Tone.ACTIVE,
    "learner": Tone.CALM,
    "spare": Tone.CALM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pill:
    """A state in a rounded frame."""

    glyph: str
    text: str
    tone: Tone


# How a part in a run ended; whatever else is said of a gone process reads as a loss.
_GOOD_ENDS = {"finished": Pill(glyph="\u2713", text="finished", tone=Tone.GOOD)}
# Told by `atoll story`.
_BOOKKEEPING = frozenset({"seat-taken", "seat-freed", "assigned", "started", "gone", "dismissed"})
_CALM_ENDS = frozenset({"dismissed", "stopped", "left", "evicted"})


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
    name: str
    title: str
    pill: Pill
    where: str
    gone: bool


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
    copies: tuple[Pill, ...] = ()


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
        age=wording.ago(run.submitted_at, now=now) + (f" by {run.owner}" if run.owner else ""),
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
    if node.drain is not None:
        if node.drain.left:
            return Pill(glyph="\u25a0", text="drained", tone=Tone.CALM)
        return Pill(glyph="\u25b2", text=f"draining, {wording.plural(node.drain.trainers, 'trainer')}", tone=Tone.CARE)
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
        where = Tile(label="Answering at", value=run.endpoint or NOTHING, note="inside the cluster; ask this server")
        return [_members_tile(run, "Replicas"), where]
    points = points or [p for p in (run.last,) if p is not None]
    names = loss_names(points)
    train = next((n for n in names if not is_held_out(n)), None)
    held = next((n for n in names if is_held_out(n)), None)
    last = points[-1] if points else None
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
    if run.state.ended:
        return Tile(label=label, value=NOTHING, note=f"{run.workers_wanted} while it ran")
    short = run.members < run.workers_wanted
    note = f"one short of {run.workers_wanted}" if run.workers_wanted - run.members == 1 else "fewer than wanted"
    return Tile(
        label=label,
        value=f"{run.members} / {run.workers_wanted}",
        note=note if short else f"and {wording.plural(run.spares, 'spare')}",
        tone=Tone.CARE if short else Tone.CALM,
    )


def member_cards(trainers: Iterable[TrainerView], run: str = "") -> list[MemberCard]:
    """Ranks in order, then spares, then the last few that are gone, the newest of them first."""
    by_role = sorted(trainers, key=lambda t: (_role_place(t.role), -1 if t.rank is None else t.rank, t.trainer))
    present = [t for t in by_role if t.role != "gone"]
    gone = [t for t in by_role if t.role == "gone"]
    return [_member_card(t, run) for t in (*present, *gone[::-1][:MAX_GONE])]


def _role_place(role: str) -> int:
    return _ROLE_ORDER.index(role) if role in _ROLE_ORDER else len(_ROLE_ORDER)


def short_name(subject: str, run: str) -> str:
    """`"t3"` for the trainer `"my-run-t3"`: on a run's own page its name only takes room."""
    rest = subject.removeprefix(f"{run}-") if run else subject
    return rest or subject


def _member_card(trainer: TrainerView, run: str) -> MemberCard:
    rank = NOTHING if trainer.rank is None else str(trainer.rank)
    title = f"Rank {rank}" if trainer.role in {"worker", "learner"} else trainer.role.capitalize()
    return MemberCard(
        trainer=trainer.trainer,
        name=short_name(trainer.trainer, run),
        title=title,
        pill=_end_pill(trainer.state) if trainer.role == "gone" else _role_pill(trainer),
        where=f"pid {trainer.pid} on {trainer.node}" if trainer.pid else f"on {trainer.node}",
        gone=trainer.role == "gone",
    )


def _role_pill(trainer: TrainerView) -> Pill:
    return Pill(
        glyph=_ROLE_GLYPHS.get(trainer.role, "\u25cc"),
        text=(trainer.state or trainer.role).replace("_", " ").lower(),
        tone=Tone.CARE if trainer.state == "regrouping" else _ROLE_TONES.get(trainer.role, Tone.CALM),
    )


def _end_pill(state: str) -> Pill:
    if state in _GOOD_ENDS:
        return _GOOD_ENDS[state]
    if state in _CALM_ENDS:
        return Pill(glyph="\u25a0", text=state, tone=Tone.CALM)
    return Pill(glyph="\u2715", text=state or "gone", tone=Tone.BAD)


def is_news(event: EventView) -> bool:
    """False for the control plane's bookkeeping, among which the loss of a member is hard to find."""
    return event.kind not in _BOOKKEEPING


def event_line(event: EventView) -> EventLine:
    """One event in words: whom it happened to stands first, unless that is the run itself."""
    tone = wording.event_tone(event.kind)
    whom = "" if event.subject in {event.run, ""} else short_name(event.subject, event.run or "")
    return EventLine(
        seq=event.seq,
        time=wording.clock_time(event.at),
        glyph=wording.TONE_GLYPHS[tone],
        tone=tone,
        title=f"{whom}: {wording.kind_words(event.kind).lower()}" if whom else wording.kind_words(event.kind),
        text=event.text,
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
            copies=tuple(_copy_light(tier) for tier in c.tiers),
        )
        for c in ordered
    ]


def _copy_light(view: TierView) -> Pill:
    tone = wording.copy_tone(view.state)
    # How far a copy got is worth its room; where it lies is not.
    more = f" {view.detail}" if view.state is TierState.COPYING and view.detail else ""
    return Pill(glyph=wording.TONE_GLYPHS[tone], text=f"{view.tier} {view.state}{more}", tone=tone)
