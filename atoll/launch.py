"""`atoll.run`: hand a training function to a cluster and watch it, the same way from wherever the script is started.

The cluster is, in this order: the one that `address=` or ATOLL_ADDRESS names; the Ray cluster of RAY_ADDRESS, which Ray
sets inside `ray job submit` (the run id is then Ray's submission id); one that `atoll up` started on this machine; else an
embedded one that ends with the run. This module is the one bridge from the command line to the code that starts
clusters; everything after that is REST.

`atoll run FILE` executes the script with `overrides` set, so that the script's own `atoll.run(...)` holds and the flags
of the command line win. `atoll run job.toml` reads a job file instead. What `ray job submit --metadata-json` says stands
between the two: above script and file, below flags.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from atoll import config
from atoll.clock import SystemClock
from atoll.config import ClusterFile, Config, Target
from atoll.errors import AtollError, AuthError, ConnectError, ScriptNotFound, UserError
from atoll.launch_spec import JobOptions, build, build_document, metadata_options, read_document, script
from atoll.schema.ids import TRAINER_MARK, RunId

if TYPE_CHECKING:
    from atoll.control_plane.ray_bootstrap import ClusterInfo
    from atoll.schema.spec import JobSpec

__all__ = ["JobOptions", "Overrides", "find", "run", "run_job", "run_script", "up"]

_INTERRUPTED = 130
Say = Callable[[str], None]


@dataclass(slots=True)
class Overrides:
    """What the command line adds to the `atoll.run` of a script. `calls` counts those it made."""

    options: JobOptions = field(default_factory=JobOptions)
    config: dict[str, Any] = field(default_factory=dict)
    print_id: bool = False
    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsChoice:
    """What `atoll up` was told about TLS. `tls` None: as it was."""

    tls: bool | None = None
    host: str = ""
    names: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


_OVERRIDES: ContextVar[Overrides | None] = ContextVar("atoll_overrides", default=None)
_runs_of_this_driver = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A cluster to use. `embedded` is set for one that must be shut down with its user."""

    target: Target
    embedded: ClusterInfo | None = None


def run(fn: Callable[..., Any] | None = None, **options: Unpack[JobOptions]) -> int:
    """Train `fn` on a cluster and watch it to its end; with `detach=True`, return once it is submitted.

    Returns 0. A run that did not succeed, and every `AtollError`, is printed in one line and ends the program with the
    exit code of the error, as a script should.
    """
    overrides = _OVERRIDES.get() or Overrides()
    overrides.calls += 1
    _refuse_inside_trainer()
    with reported():
        settings = config.load()
        merged = _merged(options, _wishes(settings, overrides))
        code = _run(_spec(fn, merged, settings), settings, merged.get("address"), print_id=overrides.print_id)
    if code != 0:
        raise SystemExit(code)
    return 0


def run_job(path: str, overrides: Overrides) -> None:
    """Train as the job file at `path` says, with `overrides` on top, and watch it as `run` does."""
    with reported():
        settings = config.load()
        document, file = read_document(path, Path.cwd())
        wishes = _wishes(settings, overrides)
        address = wishes.pop("address", None)
        spec = build_document(document, file, wishes, **_ray_job(settings))
        code = _run(spec, settings, address, print_id=overrides.print_id)
    if code != 0:
        raise SystemExit(code)


def _wishes(settings: Config, overrides: Overrides) -> JobOptions:
    """What stands above the script or job file: metadata of `ray job submit`, and above that the command line."""
    told = metadata_options(settings.ray_job.metadata) if settings.ray_job else JobOptions()
    return _merged(_merged(told, overrides.options), JobOptions(config=overrides.config))


def _merged(below: JobOptions, above: JobOptions) -> JobOptions:
    """`config` entry by entry, everything else as a whole."""
    both = {**(below.get("config") or {}), **(above.get("config") or {})}
    merged: JobOptions = {**below, **above}
    return {**merged, "config": both} if both or "config" in merged else merged


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """End the program on an `AtollError` with one line on stderr and its exit code."""
    try:
        yield
    except AtollError as error:
        sys.stderr.write(f"atoll: {error} ({error.code})\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _run(spec: JobSpec, settings: Config, address: str | None, *, print_id: bool) -> int:
    from rich.console import Console  # noqa: PLC0415 - `import atoll` loads nothing but the standard library

    from atoll.cli_attach import attach, terminable  # noqa: PLC0415 - likewise

    console = Console(stderr=print_id)
    cluster = _cluster(settings, address, may_embed=not spec.detach, say=lambda text: _say(console, text))
    with terminable(), cluster as found:
        run_id = _submit(found.target, spec)
        if print_id or spec.detach:
            sys.stdout.write(f"{run_id}\n")
            return 0
        # `ray job logs` shows the driver's output: what trainers write belongs there.
        return attach(found.target, run_id, console, with_logs=settings.ray_job is not None)


def _spec(fn: Callable[..., Any] | None, options: JobOptions, settings: Config) -> JobSpec:
    return build(fn, options, **{"cwd": Path.cwd(), **_ray_job(settings)})


def _ray_job(settings: Config) -> dict[str, Any]:
    """What a spec takes over from `ray job submit`."""
    job = settings.ray_job
    if job is None:
        return {}
    return {
        "cwd": Path.cwd(),
        "run_id": _id_in_ray_job(job.submission_id),
        "working_dir_uri": job.working_dir_uri,
    }


def _id_in_ray_job(submission_id: str) -> RunId:
    """Ray's submission id; a second run of the same driver gets a number behind it."""
    global _runs_of_this_driver  # noqa: PLW0603 - a driver is one process
    _runs_of_this_driver += 1
    return RunId(submission_id if _runs_of_this_driver == 1 else f"{submission_id}-{_runs_of_this_driver}")


def _submit(target: Target, spec: JobSpec) -> RunId:
    from atoll.client import Client  # noqa: PLC0415 - as above

    with Client(target.url, target.token) as client:
        return client.submit(spec)


def _say(console: Any, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _refuse_inside_trainer() -> None:
    """Trainers import the script; a call without a `__main__` guard would start runs without end."""
    if getattr(sys.modules.get("__main__"), TRAINER_MARK, False):
        raise UserError(
            'atoll.run was called while a trainer loaded the script; put the call under `if __name__ == "__main__":`'
        )


# -- clusters --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _cluster(settings: Config, address: str | None, *, may_embed: bool, say: Say) -> Iterator[Found]:
    from atoll.cli_attach import uninterrupted  # noqa: PLC0415 - as above

    found = find(settings, address, may_embed=may_embed, say=say)
    try:
        yield found
    finally:
        if found.embedded is not None:
            with uninterrupted():
                say("shutting the embedded cluster down")
                _bootstrap().shutdown(found.embedded)


def find(settings: Config, address: str | None, *, may_embed: bool, say: Say) -> Found:
    """The cluster to use, started if need be. Raises `ConnectError`."""
    if address or settings.address:
        return Found(target=config.locate(settings, address))
    if settings.ray_address:
        info = _bootstrap().ensure(settings.ray_address, settings.home, progress=say)
        # A driver may read the cluster's own token; one that was given a user's submits as that user.
        return Found(target=_target(info, settings.token))
    for cluster in config.known_clusters(settings.home):
        target = Target(url=cluster.rest_url, token=config.read_token(settings))
        if _answers(target, explicit=settings.token is not None):
            return Found(target=target)
    if not may_embed:
        raise ConnectError("a detached run needs a cluster that outlives this command; start one with `atoll up`")
    before = {cluster.path.parent for cluster in config.known_clusters(settings.home)}
    info = _bootstrap().ensure(None, settings.home, progress=say)
    # One that was there before and only needed mending belongs to whoever started it.
    return Found(target=_target(info), embedded=None if info.cluster_dir in before else info)


def up(settings: Config, address: str | None, port: int | None, say: Say) -> ClusterInfo:
    """Start Atoll on the Ray cluster at `address`, or on a Ray of its own, to stay."""
    info: ClusterInfo = _bootstrap().ensure(address or settings.ray_address, settings.home, progress=say, port=port)
    return info


def choose_tls(settings: Config, choice: TlsChoice) -> None:
    """Have the web server speak TLS, or plain HTTP, from the next `up` on. Raises `UserError` while a cluster is up."""
    if choice.tls is None and not (choice.host or choice.names or choice.certificate or choice.key):
        return
    running = config.known_clusters(settings.home)
    if running:
        raise UserError(f"{running[0].rest_url} is up; run `atoll down` first, then choose TLS with `atoll up`")
    fs_tls = _bootstrap().fs_tls
    if not choice.tls:
        if choice.tls is None or choice.host or choice.names or choice.certificate or choice.key:
            raise UserError(
                "--host, --name, --tls-cert and --tls-key need --tls: beyond this host nothing goes in clear"
            )
        fs_tls.close(settings.home)
        return
    if (choice.certificate is None) != (choice.key is None):
        raise UserError("--tls-cert and --tls-key belong together; name both, or neither to have them made")
    given = None
    if choice.certificate is not None and choice.key is not None:
        given = fs_tls.Given(certificate=choice.certificate, key=choice.key, authority=choice.authority)
    host = choice.host or fs_tls.LOOPBACK
    fs_tls.open_door(settings.home, host, choice.names, given, now=SystemClock().now())


def down(settings: Config, say: Say) -> list[str]:
    """End every cluster known under ATOLL_HOME. Returns their names. Raises `ConnectError` where there is none."""
    clusters = config.known_clusters(settings.home)
    if not clusters:
        raise ConnectError(f"no running cluster known under {settings.home}; nothing to end")
    for cluster in clusters:
        say(f"ending {cluster.ray_address}")
        _bootstrap().shutdown(_info(settings, cluster))
    return [cluster.ray_address for cluster in clusters]


def _info(settings: Config, cluster: ClusterFile) -> ClusterInfo:
    info: ClusterInfo = _bootstrap().ClusterInfo(
        rest_url=cluster.rest_url,
        token="",
        home=settings.home,
        cluster_dir=cluster.path.parent,
        ray_address=cluster.ray_address,
        embedded=bool(cluster.plain.get("embedded")),
    )
    return info


def _target(info: ClusterInfo, token: str | None = None) -> Target:
    return Target(url=config.as_url(info.rest_url), token=token or info.token)


def _answers(target: Target, *, explicit: bool) -> bool:
    from atoll.client import Client  # noqa: PLC0415 - as above

    try:
        with Client(target.url, target.token, patience_s=0, answer_s=2) as client:
            client.version()
    except AuthError:
        if explicit:
            raise
        return False
    except AtollError:
        return False
    return True


def _bootstrap() -> Any:
    from atoll.control_plane import ray_bootstrap  # noqa: PLC0415 - Ray, only where a cluster is started

    return ray_bootstrap


# -- scripts ---------------------------------------------------------------------------------------------------------


def run_script(path: str, function: str | None, arguments: list[str], overrides: Overrides) -> None:
    """Execute the script at `path` as `python path arguments...` would, with `overrides` for its `atoll.run`.

    A script that calls none is run by its function `train`, or the one that was named.
    """
    with reported():
        file = script(path, Path.cwd())
        if function:
            overrides.options |= JobOptions(file=str(file), function=function)
        token = _OVERRIDES.set(overrides)
        before = sys.argv, sys.path[:]
        sys.argv, sys.path[0:0] = [path, *arguments], [str(file.parent)]
        try:
            names = _execute(file)
            if overrides.calls == 0:
                _run_function_of(file, function or "train", names)
        finally:
            _OVERRIDES.reset(token)
            sys.argv, sys.path[:] = before


def _run_function_of(file: Path, function: str, names: dict[str, Any]) -> None:
    top = function.partition(".")[0]
    if not callable(names.get(top)):
        raise ScriptNotFound(f"{file} neither calls atoll.run nor has a function {function!r}; name it: FILE:FUNCTION")
    run(file=str(file), function=function)


def _execute(file: Path) -> dict[str, Any]:
    """The names that the script defines. What it raises is shown from its own first line on, as Python would."""
    try:
        return runpy.run_path(str(file), run_name="__main__")
    except AtollError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's program may raise anything
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != str(file):
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
        raise SystemExit(1) from None
