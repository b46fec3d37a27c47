"""What a training function gets as its one argument, and what runs it.

`Context` is the public face of the session: the objects to train, the loop over steps, and what this worker is.
`run_function` is called by the process around it: it prepares what user code may expect (a process group of its own for
DDP, seeded generators), runs the function, sees to it that its last step is settled everywhere, and tells how it ended.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atoll.clock import SystemClock
from atoll.errors import (
    AtollError,
    BatchError,
    ClusterError,
    DeviceError,
    OutOfMemory,
    ProgramFailed,
    StateError,
    UserError,
)
from atoll.fault.backup import Backup, checked
from atoll.schema.ids import RunId
from atoll.schema.ids import Step as StepNumber
from atoll.schema.messages import TrainerFailed, TrainerFinished
from atoll.workers.data import as_rows
from atoll.workers.epoch_runtime import StoppedWaiting
from atoll.workers.host import Host
from atoll.workers.peers import Connect
from atoll.workers.program_runtime import is_out_of_memory, user_traceback
from atoll.workers.samples import Plan, make_plan
from atoll.workers.torch_ddp import solo_group
from atoll.workers.torch_grains import seed_all
from atoll.workers.torch_parts import Lost, Suspended
from atoll.workers.torch_session import Session

if TYPE_CHECKING:
    from atoll.workers.torch_step import Step

__all__ = ["Context", "run_function"]

_LOST_STATUS = 70


class Context:
    """This worker, as the training function sees it."""

    def __init__(self, host: Host, session: Session) -> None:
        self._host = host
        self._session = session
        self._clock = SystemClock()

    @property
    def rank(self) -> int:
        """This worker's place among the members; changes with them. 0 before the first step."""
        return self._session.link.comm.rank if self._session.link.joined else 0

    @property
    def size(self) -> int:
        """How many members there are now; the number asked for before the first step."""
        return self._session.link.comm.size if self._session.link.joined else self._host.identity.spec.workers

    @property
    def run(self) -> RunId:
        """The run's id."""
        return self._host.identity.run

    @property
    def config(self) -> dict[str, Any]:
        """What was handed over with the job."""
        return self._host.identity.spec.config

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self._host.identity.spec.seed

    @property
    def device(self) -> torch.device:
        """Where model and batches belong."""
        return self._session.device

    @property
    def step(self) -> int:
        """How many steps are committed here."""
        return self._session.standing.committed

    def manage(self, *objects: Any, shard: int | None = None, copy_every: int = 1, **named: Any) -> Any:
        """Hand over what makes up the run's state: model, optimizer, scheduler, scaler, or anything with a state_dict.

        Keyword names are the names in checkpoints; positional objects are named by kind. Returns what was given, one
        object as itself, several as a tuple in order.

        A function `build(mesh)` in their place makes a sharded model: it returns the model, to which it has applied
        `fully_shard(..., mesh=mesh)`, its optimizer and what else belongs to them. It is called when the members are
        known, and again when their number changes; with the same generators seeded alike on all workers, it must make
        the same initial values on all. Returns a handle: `parts.model`, `parts.optimizer` inside the loop. `shard` workers
        hold one model together (None: all of them); more workers than that train several alike. Another worker follows
        each step of a shard, so that its loss loses nothing; with `copy_every=k` it gets a copy each k steps instead, and
        a loss leads all back to the last one: at most 2k - 1 steps are done again, with `step.again` true.
        """
        build = _build_among(objects, shard, copy_every)
        if build is not None:
            for name, item in named.items():
                self._session.managed.add(name, item)
            return self._session.shard(build, shard, copy_every)
        managed = self._session.managed
        for item in objects:
            managed.add(managed.name_of(item), item)
        for name, item in named.items():
            managed.add(name, item)
        given = (*objects, *named.values())
        return given[0] if len(given) == 1 else given

    def steps(
        self,
        data: Any,
        *,
        global_batch: int,
        micro_batch: int | None = None,
        steps: int | None = None,
        loaders: int = 0,
        backup: Backup = 0,
    ) -> Iterator[Step]:
        """The training loop: one `Step` for each optimizer step, `steps` in all (None: one pass over the data).

        Each step's `global_batch` samples are cut into micro-batches of `micro_batch` (None: one), shared among the
        members. When members change, the same step comes again. `loaders` processes read ahead.

        `backup=b` waits for all members but the slowest b of each step, `backup="auto"` chooses b before each step: who is
        late leaves out what it has not finished, so the batch is smaller then. 0: every micro-batch counts.
        """
        rows = as_rows(data)
        plan = make_plan(
            seed=self.seed, size=len(rows), global_batch=global_batch, micro_batch=micro_batch, steps=steps
        )
        workers = self._host.identity.spec.workers
        _check_shares(plan, workers)
        self._session.begin(rows, plan, loaders, checked(backup, workers))
        return self._session.steps()

    def checkpoint(self) -> None:
        """Save at the end of the step in hand. Call it in the same step on every worker."""
        self._session.saving.request()

    @contextlib.contextmanager
    def busy(self, what: str, *, limit_s: float) -> Iterator[None]:
        """Announce work of this worker alone (an evaluation, say) that may keep the others waiting for `limit_s` seconds.

        Without it a worker that does not come to a step while the others wait may be taken for hung, and replaced.
        """
        if not (math.isfinite(limit_s) and limit_s > 0):
            raise UserError(
                f"ctx.busy({what!r}, limit_s={limit_s}): give the most seconds, more than 0, that it may take"
            )
        began = self._clock.monotonic()
        self._session.announcements.begin(what, limit_s)
        try:
            yield
        finally:
            self._session.announcements.end(what)
        took = self._clock.monotonic() - began
        if took > limit_s:
            sys.stderr.write(f"atoll: {what} took {took:.1f} s, over its limit of {limit_s:g} s\n")


def _build_among(objects: tuple[Any, ...], shard: int | None, copy_every: int) -> Any:
    """The function that builds a sharded model, if that is what was given."""
    builds = [o for o in objects if inspect.isroutine(o) or isinstance(o, functools.partial)]
    if builds and len(objects) > 1:
        raise StateError("ctx.manage takes one build function and nothing beside it by position; return all from build")
    if shard is not None and (shard < 1 or not builds):
        raise StateError(f"shard={shard}: give the number of workers that hold one model, with a build function")
    if copy_every < 1 or (copy_every > 1 and not builds):
        raise StateError(f"copy_every={copy_every}: give a number of steps, with a build function")
    return builds[0] if builds else None


def _check_shares(plan: Plan, workers: int) -> None:
    if plan.grains < workers:
        raise BatchError(
            f"global_batch={plan.global_batch} in micro-batches of {plan.micro_batch} makes {plan.grains}, too few for "
            f"{workers} workers to share; use a global_batch of at least "
            f"{plan.micro_batch * workers}, a smaller micro_batch or fewer workers"
        )


def run_function(host: Host, function: Callable[[Context], Any], *, connect: Connect | None = None) -> int:
    """Run `function` as this trainer's part in the run, and tell how it ended. Returns the process's exit status."""
    session = Session(host, connect or _default_connect(gpus=host.identity.spec.gpus_per_worker > 0), _device(host))
    try:
        with solo_group():
            seed_all(host.identity.spec.seed, 0, 0)
            with _clean_exit(), contextlib.suppress(Suspended):
                function(Context(host, session))
            session.finish()
    except StoppedWaiting:
        wish = host.mailbox.stop
        session.suspended = wish is not None and wish.suspend
    except Lost as error:
        # No fact: to the others this is a lost worker, whose state nobody must use.
        traceback.print_exception(error)
        return _LOST_STATUS
    except BaseException as error:  # noqa: BLE001 - the outer edge: it becomes a fact
        return _tell_failure(host, session, error)
    finally:
        session.close()
    host.tell(
        TrainerFinished(
            trainer=host.identity.trainer,
            step=StepNumber(session.standing.committed),
            suspended=session.suspended,
        )
    )
    return 0


@contextlib.contextmanager
def _clean_exit() -> Iterator[None]:
    """`sys.exit(0)` in user code is a return."""
    try:
        yield
    except SystemExit as error:
        if error.code not in {None, 0}:
            raise


def _default_connect(*, gpus: bool) -> Connect:
    from atoll.collectives.tcp_communicator import connect, connect_devices  # noqa: PLC0415 - a fake needs no sockets

    return connect_devices if gpus else connect


def _device(host: Host) -> torch.device:
    wanted = host.identity.spec.gpus_per_worker > 0
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def _tell_failure(host: Host, session: Session, error: BaseException) -> int:
    session.settle_what_is_decided()
    known, spec = _explained(error), host.identity.spec
    fact = TrainerFailed(
        trainer=host.identity.trainer,
        step=StepNumber(session.standing.committed),
        code=known.code,
        problem=" ".join(str(known).split()),
        traceback=user_traceback(error, Path(spec.working_dir, spec.file)),
    )
    # What Atoll refuses is said in one line with its place; only what the program raised needs its frames.
    frames = "" if isinstance(error, UserError | ClusterError) else fact.traceback
    sys.stderr.write(f"{frames}atoll: {fact.problem} ({fact.code})\n")
    host.tell(fact)
    return known.exit_code


def _explained(error: BaseException) -> AtollError:
    """The error as one of Atoll's, with the place in the user's code."""
    where = _user_line(error)
    if isinstance(error, UserError):
        return type(error)(f"{error}{where}")
    if isinstance(error, AtollError):
        return error
    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return OutOfMemory(f"{text}{where}")
    if isinstance(error, RuntimeError | AssertionError) and _is_about_devices(str(error)):
        return DeviceError(f"{text}{where}; move model and batch with .to(ctx.device)")
    return ProgramFailed(f"{text}{where}")


def _is_about_devices(text: str) -> bool:
    hints = ("same device", "not compiled with CUDA", "Found no NVIDIA driver", "No CUDA GPUs", "Input type (torch.")
    return any(hint in text for hint in hints)


def _user_line(error: BaseException) -> str:
    """The last frame of the user's own code, as ` (file:line)`."""
    others = (sysconfig.get_path("stdlib"), f"{Path(__file__).parents[1]}{os.sep}", "<")
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(others)]
    return f" ({mine[-1].filename}:{mine[-1].lineno})" if mine else ""
