"""`atoll autoscale`: starts and ends machines for a running cluster, until Ctrl-C.

Everything that it knows it reads from the cluster's REST interface and from its provider, so it can be stopped, moved and
started again at any time: the next one takes the machines over. Two at once would start everything twice; so a lock file
in ATOLL_HOME keeps a second one out on the same machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll import config
from atoll.cli_cluster import DEFAULT, read_scaling
from atoll.clock import SystemClock
from atoll.errors import ClusterError, SpecError
from atoll.schema.ids import NodeId, RunId
from atoll.schema.offers import MachineOffer, Offers
from atoll.schema.spec import JobSpec
from atoll.schema.views import NodeView, RunState, RunView

if TYPE_CHECKING:
    from atoll.client import Client
    from atoll.control_plane.arbiter.model import Ask
    from atoll.control_plane.autoscaling.facts import Standing
    from atoll.control_plane.autoscaling.provider import Provider, Sight
    from atoll.control_plane.autoscaling.spec import Scaling

_TAG_BYTES = 2
_GONE = "gone"
# They hold for a minute.
OFFER_S = 10.0


def autoscale(
    file: Annotated[Path, typer.Option(help="What machines there may be.")] = DEFAULT,
    lab: Annotated[str | None, typer.Option(help="Provider lab: which lab; the only one unless given.")] = None,
    address: Annotated[str, typer.Option(help="Provider ray: HOST:PORT of Ray's controller.")] = "",
) -> None:
    """Start machines for gangs that wait, and end those that nobody needs, until Ctrl-C."""
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms
    from atoll.control_plane.autoscaling.core import Autoscaler  # noqa: PLC0415 - only by this command
    from atoll.control_plane.autoscaling.loop_runtime import Loop  # noqa: PLC0415 - likewise

    scaling = read_scaling(file)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with _alone(config.load().home), Client() as client:
        core = Autoscaler(scaling, tag=secrets.token_hex(_TAG_BYTES))
        provider = provider_of(scaling, file, lab=lab, address=address or config.load().ray_address or "")
        typer.echo(f"{file}: {len(scaling.types)} types of machines by way of {scaling.provider}; Ctrl-C ends this")
        door = RestCluster(client, scaling)

        def say(text: str) -> None:
            typer.echo(text)
            door.note(text)

        Loop(core, provider, door, SystemClock(), say).run(stop)
    typer.echo("no more machines are started or ended; those that stand go on")


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "autoscale.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                f"`atoll autoscale` runs already ({handle.name} is locked); end that one first"
            ) from None
        yield


def provider_of(scaling: Scaling, file: Path, *, lab: str | None = None, address: str = "") -> Provider:
    """The provider that the file names. Raises `SpecError` where something lacks for it."""
    match scaling.provider:
        case "command":
            from atoll.control_plane.autoscaling import command_provider_runtime as by_command  # noqa: PLC0415

            commands = by_command.commands_of(scaling.settings.get("command", {}), str(file))
            return by_command.CommandProvider(commands, str(file.resolve().parent))
        case "lab":
            from atoll.cli_lab import _lab  # noqa: PLC0415 - as above
            from atoll.control_plane.autoscaling.lab_provider_runtime import LabProvider  # noqa: PLC0415

            return LabProvider(_lab(lab), scaling)
        case _:
            if not address or address == "auto":
                raise SpecError("provider = 'ray' needs the address of Ray's controller: --address HOST:PORT")
            from atoll.control_plane.autoscaling.ray_provider import RayProvider  # noqa: PLC0415

            return RayProvider(address, scaling, SystemClock().now)


class RestCluster:
    """The cluster by its REST interface."""

    def __init__(self, client: Client, scaling: Scaling) -> None:
        self._client = client
        self._offers = offers_of(scaling)
        self._offer_at = 0.0
        self._decisions: list[str] = []
        self._specs: dict[RunId, JobSpec] = {}

    def note(self, text: str) -> None:
        """Have a decision told in the cluster's story, with the next look."""
        self._decisions.append(text)

    def look(self) -> Sight:
        """Nodes as they are used, and the runs that wait: of higher priority first, then in order of submission."""
        from atoll.control_plane.autoscaling.provider import Sight  # noqa: PLC0415 - as above

        if self._decisions or SystemClock().monotonic() >= self._offer_at:
            self._client.offer(replace(self._offers, decisions=tuple(self._decisions)))
            self._decisions.clear()
            self._offer_at = SystemClock().monotonic() + OFFER_S
        runs = [replace(run, spec=self._spec(run)) for run in self._client.runs() if not run.state.ended]
        self._specs = {run.run: run.spec for run in runs if run.spec is not None}
        return Sight(nodes=standings(self._client.nodes(), runs), asks=tuple(asks(runs)))

    def _spec(self, run: RunView) -> JobSpec | None:
        """A run's spec, which lists do not hold and which never changes: asked for once."""
        return run.spec or self._specs.get(run.run) or self._client.run(run.run).spec

    def drain(self, node: NodeId, within_s: float, reason: str) -> None:
        """As `atoll drain`."""
        self._client.drain(node, within_s, reason)

    def undrain(self, node: NodeId) -> None:
        """As `atoll undrain`."""
        self._client.undrain(node)


def offers_of(scaling: Scaling) -> Offers:
    """What the cluster is told: nobody is refused for whom machines could be started."""
    from atoll.control_plane.autoscaling.spec import labels_of  # noqa: PLC0415 - as above

    return Offers(
        offers=tuple(
            MachineOffer(kind=kind.name, most=kind.most, cpus=kind.cpus, gpus=kind.gpus, labels=labels_of(kind))
            for kind in scaling.types
        )
    )


def asks(runs: list[RunView]) -> list[Ask]:
    """What waits, in the order in which it is served."""
    from atoll.control_plane.snapshots import ask  # noqa: PLC0415 - as above

    waiting = [run for run in runs if run.state is RunState.QUEUED and not run.held and run.spec is not None]
    waiting.sort(key=lambda run: (-(run.spec.priority if run.spec is not None else 0), run.submitted_at))
    return [
        replace(ask(run.spec), run=run.run, submitted_at=run.submitted_at, measured=dict(run.measured))
        for run in waiting
        if run.spec is not None
    ]


def standings(nodes: list[NodeView], runs: list[RunView]) -> tuple[Standing, ...]:
    """The nodes that count: Ray may have lost one on which everything goes on, and its word alone ends no machine.

    One that is not listed at all, as before the first list after a restart, counts while trainers of runs are said to be there.
    """
    known = {node.node for node in nodes}
    used = {t.node for run in runs for t in run.trainers if t.role != _GONE}
    bare = [
        NodeView(node=name, address="", alive=False, cpus=0.0, gpus=0.0, cpus_free=0.0, agent=False)
        for name in sorted(used - known)
    ]
    seen = [(node, standing(node, runs)) for node in [*nodes, *bare]]
    return tuple(found for node, found in seen if node.alive or node.agent or node.node in used)


def standing(node: NodeView, runs: list[RunView]) -> Standing:
    """A node with what is free on it. Of a drained or dead one nothing counts as free for others, so it is reckoned up here."""
    from atoll.control_plane.arbiter.model import Amount  # noqa: PLC0415 - as above
    from atoll.control_plane.autoscaling.facts import Standing  # noqa: PLC0415 - as above

    here = [
        run.spec
        for run in runs
        for t in run.trainers
        if t.node == node.node and t.role != _GONE and run.spec is not None
    ]
    total = Amount(cpus=_units(node.cpus), gpus=_units(node.gpus))
    cpus = total.cpus - sum(_units(spec.cpus_per_worker) for spec in here)
    if node.drain is None and node.alive:
        cpus = min(cpus, _units(node.cpus_free))  # a seat may be held before its trainer is there
    free = Amount(cpus=max(cpus, 0), gpus=max(total.gpus - sum(_units(s.gpus_per_worker) for s in here), 0))
    return Standing(
        node=node.node,
        labels=dict(node.labels),
        total=total,
        free=free,
        trainers=len(here),
        leaving_at=None if node.drain is None else monotonic(node.drain.until),
        noticed=node.drain is not None and node.drain.reason.startswith("a notice"),
        left=node.drain is not None and node.drain.left,
        alive=node.alive,
    )


def monotonic(until: float) -> float:
    """A moment of the wall's clock as the loop counts time."""
    clock = SystemClock()
    return until - clock.now() + clock.monotonic()


def _units(amount: float) -> int:
    return round(amount * 10_000)
