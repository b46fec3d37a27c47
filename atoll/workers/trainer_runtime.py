"""A trainer process, from the moment after its fork until it exits.

It leaves the zygote's session, sends its output to the log file that the agent owns, takes on the job's directory,
variables, devices and thread count, opens its line to the agent, imports the user's file and hands the function over to
the training session (`workers/context.py`), or itself over to the serving replica. Exit code 0 means that
`TrainerFinished` was handed to the agent, 1 that `TrainerFailed` was; with any other code nothing was told, and the
trainer is lost.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from atoll.clock import SystemClock
from atoll.errors import ScriptNotFound, UserError
from atoll.schema.ids import Epoch, Step
from atoll.schema.messages import StopAtBoundary, TrainerFact, TrainerFailed, TrainerFinished, TrainerHello
from atoll.schema.spec import JobKind, JobSpec
from atoll.workers.agent_messages import log_path
from atoll.workers.fork_messages import ForkTrainer
from atoll.workers.fs_output import log_stream
from atoll.workers.harm_runtime import Harms
from atoll.workers.host import Identity, Mailbox
from atoll.workers.proc_runtime import my_start_ticks
from atoll.workers.program_runtime import failure, load_function, prepare_path
from atoll.workers.pulse_runtime import Pulse, pulse_path
from atoll.workers.trainer_link_runtime import LIFELINE_S, AgentLink

if TYPE_CHECKING:
    from atoll.collectives.tcp_transport import Listener

# What a program's exit handlers may take before the process ends without them.
EXIT_HANDLERS_S = 10.0
# The exit code of a trainer whose outcome nobody was told.
LOST = 70


class TrainerHost:
    """The real `Host`: identity, mailbox, listener, and the line to the agent behind `tell` and `heard`."""

    def __init__(self, identity: Identity, mailbox: Mailbox, listener: Listener, link: AgentLink) -> None:
        self.identity = identity
        self.mailbox = mailbox
        self.listener = listener
        self._link = link

    def tell(self, fact: TrainerFact) -> None:
        """Pass a fact on towards the control plane. Never blocks and never raises."""
        self._link.tell(fact)

    def heard(self) -> None:
        """A peer was heard: this trainer is led by somebody, even while its agent is away."""
        self._link.heard()


def run(order: ForkTrainer) -> int:
    """Be the trainer of `order` in this process, which was just forked. Returns the exit code."""
    _leave_zygote(order)
    pulse = Pulse(pulse_path(Path(order.state_dir), order.start.trainer))
    pulse.start()
    mailbox = Mailbox()
    link = AgentLink(_hello(order), mailbox, Path(order.state_dir), SystemClock())
    if order.start.spec.chaos:
        link.on_harm = Harms(SystemClock()).suffer
    link.start()
    try:
        _take_on(order.start.spec, order.start.device_ids)
        _stop_on_sigterm(mailbox, order.start.spec.kind)
        status = _program(_host(order, mailbox, link))
    except BaseException as error:  # noqa: BLE001 - the outermost edge: it becomes a fact, SystemExit too
        status = 1
        if link.outcome is None:
            _tell_failure(link, order, error)
    said = link.flush(LIFELINE_S)
    pulse.close()  # what follows are exit handlers, which nobody waits for
    return _exit_code(link, status) if said else LOST


def _exit_code(link: AgentLink, status: int) -> int:
    match link.outcome:
        case TrainerFinished():
            return 0
        case TrainerFailed():
            return 1
        case None:
            return status or LOST  # nothing was said: the others shall not take this for an end
        case _:
            assert_never(link.outcome)


def leave(code: int) -> None:
    """End the process: exit handlers run (they end loader processes and flush what programs buffer), then it is over.

    The interpreter is not torn down: threads of torch and of user code may be anywhere.
    """
    last = threading.Timer(EXIT_HANDLERS_S, os._exit, args=[code])
    last.daemon = True
    last.start()
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no public way to run them without ending the interpreter
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _leave_zygote(order: ForkTrainer) -> None:
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    log = Path(log_path(order.start.run_dir, order.start.trainer))
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout, sys.stderr = log_stream(1), log_stream(2)


def _hello(order: ForkTrainer) -> TrainerHello:
    return TrainerHello(
        trainer=order.start.trainer,
        run=order.start.run,
        pid=os.getpid(),
        start_ticks=my_start_ticks(),
        epoch=Epoch(0),
        ready=False,
    )


def _host(order: ForkTrainer, mailbox: Mailbox, link: AgentLink) -> TrainerHost:
    from atoll.collectives.tcp_transport import Listener  # noqa: PLC0415 - it holds tensors: not before the fork

    start = order.start
    identity = Identity(
        run=start.run,
        trainer=start.trainer,
        node=order.node,
        spec=start.spec,
        run_dir=Path(start.run_dir),
        secret=bytes.fromhex(start.secret),
        rewound=start.rewound,
        copies=start.copies,
    )
    nics = [(nic.name, nic.host) for nic in order.nics] if len(order.nics) > 1 else []
    return TrainerHost(identity, mailbox, Listener(order.address, identity.secret, start.run, nics), link)


def _take_on(spec: JobSpec, device_ids: tuple[int, ...]) -> None:
    """Variables before anything reads them; devices before CUDA is touched, which the zygote never does."""
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, device_ids)), "PYTHONUNBUFFERED": "1", **spec.env}
    os.environ.update(variables)  # noqa: TID251 - the job's own variables are written for it, none is read

    import torch  # noqa: PLC0415 - in memory since before the fork

    torch.set_num_threads(spec.threads_per_worker or max(1, (os.cpu_count() or 1) // spec.workers))


def _stop_on_sigterm(mailbox: Mailbox, kind: JobKind) -> None:
    """A replica drains. To a training run it is the loss of one worker: it must not stop the others."""
    if kind is not JobKind.SERVE:
        return

    def stop(_number: int, _frame: object) -> None:
        # Not from the handler itself: it may have interrupted this very thread inside the mailbox's lock.
        wish = StopAtBoundary(reason="SIGTERM")
        threading.Thread(target=mailbox.put, args=[wish], name="atoll-sigterm", daemon=True).start()

    signal.signal(signal.SIGTERM, stop)


def _program(host: TrainerHost) -> int:
    """Run what the job asks for. Returns the exit status that it asks for; what it raises is the program's failure."""
    spec = host.identity.spec
    if not Path(spec.working_dir).is_dir():
        raise ScriptNotFound(
            f"working_dir={spec.working_dir!r} is no directory on node {host.identity.node}; "
            "submit from a directory that every node can read"
        )
    os.chdir(spec.working_dir)
    prepare_path(spec)
    match spec.kind:
        case JobKind.TRAIN:
            function = load_function(spec, spec.function)
            from atoll.workers.context import run_function  # noqa: PLC0415 - holds tensors: not before the fork

            return run_function(host, function)
        case JobKind.SERVE:
            from atoll.workers.replica_server import serve  # noqa: PLC0415 - FastAPI is for serving processes alone

            serve(host)
            host.tell(TrainerFinished(trainer=host.identity.trainer, step=Step(0)))
            return 0
        case _:
            assert_never(spec.kind)


def _tell_failure(link: AgentLink, order: ForkTrainer, error: BaseException) -> None:
    fact = failure(error, order.start.spec, order.start.trainer, Step(0))
    frames = "" if isinstance(error, UserError) else fact.traceback
    sys.stderr.write(f"{frames}atoll: {fact.problem} ({fact.code})\n")
    link.tell(fact)
