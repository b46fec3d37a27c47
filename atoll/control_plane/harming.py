"""Faults on purpose: whether a run allows them, and the order to the agent. The story says who was hurt and how."""

from __future__ import annotations

from atoll.control_plane import effects as fx
from atoll.control_plane.answers import problem
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import HarmAsked
from atoll.control_plane.state import Run, Trainer
from atoll.errors import AtollError, NotFoundError, SpecError
from atoll.schema.harm import Harm, HarmWish, check_wish
from atoll.schema.messages import Inject


def harmed(desk: Desk, event: HarmAsked) -> None:
    """Have it done, or answer why not."""
    run = desk.cluster.runs.get(event.run)
    try:
        trainer = _allowed(run, event)
    except AtollError as error:
        desk.do(fx.Reply(request=event.request, problem=problem(error)))
        return
    wish = event.wish
    how = f"{wish.harm}{f' at {wish.place}' if wish.place else ''}{f' for {wish.for_s:g} s' if wish.for_s else ''}"
    desk.note(event.run, wish.trainer, "hurt", f"on purpose: {how}")
    # Its corruption will be nobody's fault: neither its host's nor its program's.
    trainer.flipped = trainer.flipped or wish.harm is Harm.FLIP
    order = Inject(trainer=wish.trainer, harm=wish.harm, for_s=wish.for_s, place=wish.place)
    desk.send(trainer.node, order)
    desk.do(fx.Reply(request=event.request, value={"run": event.run, "at": desk.now}))


def _allowed(run: Run | None, event: HarmAsked) -> Trainer:
    if run is None:
        raise NotFoundError(f"no run {event.run!r}; `atoll ls` lists all")
    if not run.spec.chaos:
        raise SpecError(f"run {run.run} does not allow chaos: submit it with chaos=True, and not where it matters")
    wish: HarmWish = check_wish(event.wish)
    trainer = run.trainers.get(wish.trainer)
    if trainer is None or trainer.gone:
        raise NotFoundError(f"no trainer {wish.trainer!r} lives in run {run.run}; `atoll status {run.run}` lists them")
    return trainer
