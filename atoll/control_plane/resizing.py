"""Making a running run smaller or larger without losing a step: whose seats are given up, and why.

A smaller size is a record that names the seats to be left. Their members go with the next epoch, at once: the step in hand
is tried again by the others, no committed step is lost, and the seats are free when the processes are proven gone. A
larger size that a person asks for is leave to grow: the arbiter decides when, after those who wait, and within the queue's
quota; then seats are taken, trainers start, learn the state beside the others' work and join.

Who goes, unless the arbiter says whose seats it needs: the highest ranks, so that the lower ones keep their places; of those
without a rank, first who is not ready yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.answers import problem
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import ResizeAsked
from atoll.control_plane.settle import settle
from atoll.control_plane.snapshots import stretch
from atoll.control_plane.state import Run
from atoll.errors import AtollError, NotFoundError, SpecError
from atoll.schema.ids import SeatId
from atoll.schema.views import RunState

RESIZABLE = frozenset({RunState.PLACED, RunState.RUNNING})


def superfluous(run: Run, workers: int) -> tuple[SeatId, ...]:
    """The seats that `run` gives up to go on with so many workers."""
    seats = {s.seat for s in run.seats.values() if not s.leaving}
    members = [m for m in run.members if run.trainers[m.trainer].active and run.trainers[m.trainer].seat in seats]
    members.sort(key=lambda m: -m.rank)
    left = [run.trainers[m.trainer].seat for m in members[: max(len(members) - workers, 0)]]
    taken = {run.trainers[m.trainer].seat for m in members}
    idle = [s for s in run.seats.values() if s.seat in seats - taken]
    # Of equals the newest: it has done least.
    idle.sort(key=lambda s: (_ready(run, s.seat), -int(s.seat.rpartition("-s")[2])))
    excess = len(seats) - (workers + run.spec.spares) - len(left)
    return tuple(left + [s.seat for s in idle[: max(excess, 0)]])


def _ready(run: Run, seat: SeatId) -> bool:
    tenant = run.tenant(seat)
    return tenant is not None and tenant.ready


def resize(desk: Desk, run: Run, workers: int, reason: str, *, bound: bool = False) -> None:
    """Have `run` go on with so many workers. `bound`: and with no more, until it is resized again."""
    leaving = superfluous(run, workers)
    if workers == run.size and not leaving and not (bound and workers != run.most):
        return
    desk.record(r.RunResized(run=run.run, workers=workers, leaving=leaving, reason=reason, at=desk.now, bound=bound))
    _settle(desk, run)


def give_up(desk: Desk, run: Run, workers: int, leaving: tuple[SeatId, ...], reason: str) -> None:
    """Have `run` go on with so many workers, and leave these seats, which others want."""
    desk.record(r.RunResized(run=run.run, workers=workers, leaving=leaving, reason=reason, at=desk.now, yielded=True))
    _settle(desk, run)


def _settle(desk: Desk, run: Run) -> None:
    desk.room_changed = True
    settle(desk, run)
    # Whom the epoch names no more goes at once: somebody waits for the seat.
    settle(desk, run)


def asked(desk: Desk, event: ResizeAsked) -> None:
    """Somebody wants a run to have another size."""
    run = desk.cluster.runs.get(event.run)
    error = _objection(run, event)
    if run is None or error is not None:
        desk.do(fx.Reply(request=event.request, problem=problem(error or NotFoundError(event.run))))
        return
    if event.workers > run.size:
        _let_grow(desk, run, event)
    else:
        resize(desk, run, event.workers, event.reason, bound=True)
    desk.do(fx.Reply(request=event.request, value={"run": run.run, "workers": event.workers}))


def _let_grow(desk: Desk, run: Run, event: ResizeAsked) -> None:
    if event.workers == run.most:
        return
    desk.record(
        r.RunResized(run=run.run, workers=run.size, leaving=(), reason=event.reason, at=desk.now, most=event.workers)
    )
    desk.room_changed = True


def _objection(run: Run | None, event: ResizeAsked) -> AtollError | None:
    if run is None:
        return NotFoundError(f"no run {event.run!r}; `atoll ls` lists all")
    if event.workers not in _legal(run):
        return SpecError(f"workers={event.workers}: run {run.run} runs with {_sizes(run)}")
    if run.state not in RESIZABLE or run.finished():
        return SpecError(f"run {run.run} is {run.state}: only one that was placed and goes on can be resized")
    return None


def _legal(run: Run) -> Sequence[int]:
    """Its sizes, by the alternative by which it was placed."""
    spec = run.spec
    if run.option >= len(spec.alternatives):
        return spec.sizes()
    least, most = stretch(spec, spec.alternatives[run.option])
    return tuple(n for n in spec.worker_sizes if n <= most) or range(least, most + 1)


def _sizes(run: Run) -> str:
    sizes = _legal(run)
    if len(sizes) == 1:
        return str(sizes[0])
    return f"{sizes[0]} to {sizes[-1]}" if len(sizes) == sizes[-1] - sizes[0] + 1 else ", ".join(map(str, sizes))
