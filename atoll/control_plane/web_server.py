"""The web process: REST, event streams, the gateway to served models, and the dashboard, on one port.

The port is the loopback interface's, unless `fs_tls` says otherwise.
`python -m atoll.control_plane.web_server` reads one JSON line of configuration from stdin (so that the cluster's secret
is on no command line), binds its port before anything else, and serves until SIGTERM. The head's agent starts it, and
starts it again. Views come from the history file, wishes go to the control plane; what is its own is who may do what, and
who did (`sql_identity`).
"""

from __future__ import annotations

import errno
import functools
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from atoll import config
from atoll.clock import SystemClock
from atoll.control_plane import fs_cluster, fs_tls
from atoll.control_plane.rest_auth import Guard
from atoll.control_plane.rest_pages import PageSource
from atoll.control_plane.rest_people import People
from atoll.control_plane.rest_server import application, refuse_the_rest
from atoll.control_plane.rest_source import ClusterSource, Control, Reader
from atoll.errors import AtollError, PortInUse
from atoll.schema.codec import decode_as

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# A stream or a completion in flight gets this long to end after SIGTERM.
_GRACE_S = 2
# For TLS 1.2; those of 1.3 are all good.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# uvicorn ticks ten times a second.
_TICKS_A_BEAT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """What the agent hands over. `secret` is the cluster's, in hex."""

    host: str
    port: int
    cluster_dir: str
    home: str
    control: str
    secret: str


def create_app(
    reader: Reader,
    control: Control,
    token: str,
    *,
    hosts: frozenset[str] = LOOPBACK,
    on_close: Callable[[], Awaitable[None]] | None = None,
    dashboard: bool = True,
    people: People | None = None,
) -> ASGIApp:
    """The whole application behind its guard. `hosts` are the names that it may be called by, `people` who may call."""
    source = ClusterSource(reader, control)
    app = application(source, on_close)
    _mount_gateway(app, source)
    refuse_the_rest(app)
    if dashboard:
        from atoll.ui.pages import mount  # noqa: PLC0415 - NiceGUI takes a second; REST alone does without

        mount(app, source, as_seen=lambda request: PageSource.of(source, request))
    return Guard(app, token=token, hosts=hosts, people=people)


def _mount_gateway(app: FastAPI, source: ClusterSource) -> None:
    from atoll.control_plane.http_gateway import gateway  # noqa: PLC0415 - httpx costs 150 ms of a start

    app.include_router(gateway(source.servers))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `PortInUse` naming the holder where it can be told."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortInUse(
            f"port {port} on {host} belongs to {_holder(port)}; end it, or choose another with `atoll up --port N`"
        ) from None
    return listener


def _holder(port: int) -> str:
    import psutil  # noqa: PLC0415 - only to word an error

    try:
        found = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid]
        return f"pid {found[0]} ({psutil.Process(found[0]).name()})" if found else "another user's process"
    except (psutil.Error, OSError):
        return "another process"


def serve(app: ASGIApp, listener: socket.socket, beat: Path, tls: tuple[Path, Path] | None = None) -> None:
    """Answer on `listener` until SIGTERM or SIGINT, or until the directory of `beat` is gone.

    `beat` is touched each second, by which the agent sees a hang.

    `tls`: certificate and key; without them plain HTTP.
    """
    import uvicorn  # noqa: PLC0415 - the tests of `create_app` do without

    class Server(uvicorn.Server):
        def _beat(self) -> None:
            try:
                beat.touch(mode=0o600)
            except FileNotFoundError:  # the cluster's directory is gone, and with it whoever would end this process
                self.should_exit = True
            except OSError:  # a full disk is no reason; a hanging one is a hang
                pass

        async def on_tick(self, counter: int) -> bool:
            if counter % _TICKS_A_BEAT == 0:
                self._beat()
            return await super().on_tick(counter)

    options = uvicorn.Config(
        app,
        lifespan="on",
        log_level="warning",
        access_log=False,  # a sign-in link carries the token
        server_header=False,
        proxy_headers=False,  # anybody on this host can send X-Forwarded-For, and would choose its own address
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
        ssl_ciphers=_CIPHERS,
    )
    Server(options).run(sockets=[listener])


def _open_cluster(settings: WebConfig) -> tuple[Reader, Control, Callable[[], Awaitable[None]]]:
    from atoll.control_plane import fs_durable  # noqa: PLC0415 - SQLAlchemy only in the real process
    from atoll.control_plane.grpc_client import ControlClient  # noqa: PLC0415 - likewise grpc
    from atoll.control_plane.sql_history import HistoryReader  # noqa: PLC0415 - as above

    cluster_dir = Path(settings.cluster_dir)
    durable = fs_durable.load(cluster_dir)
    archive = functools.cache(lambda: durable.opened_archive(cluster_dir))
    reader = HistoryReader(durable.history(cluster_dir), archive)
    control = ControlClient(settings.control, bytes.fromhex(settings.secret))

    async def close() -> None:
        await control.close()
        reader.close()

    return reader, control, close


def _open_people(settings: WebConfig, token: str) -> People:
    from atoll.control_plane.sql_identity import IdentityStore  # noqa: PLC0415 - as above

    store = IdentityStore(Path(settings.cluster_dir) / "identity.sqlite")
    return People(token, secret=bytes.fromhex(settings.secret), store=store)


def _tls(home: Path, cluster_dir: Path) -> tuple[Path, Path] | None:
    """Certificate and key, where clients of this cluster were told to come by https."""
    record = fs_cluster.load(cluster_dir)
    if record is None or not record.rest_url.startswith("https"):
        return None
    fs_tls.renew(home, now=SystemClock().now())
    return fs_tls.files(home)


def main() -> int:
    """Serve as one JSON line on stdin says. Returns the exit code."""
    try:
        settings = decode_as(WebConfig, sys.stdin.readline())
        token = config.read_token(config.Config(home=Path(settings.home)))
        with bind(settings.host, settings.port) as listener:
            reader, control, close = _open_cluster(settings)
            people = _open_people(settings, token)
            home, cluster_dir = Path(settings.home), Path(settings.cluster_dir)
            opened, tls = fs_tls.door(home), _tls(home, cluster_dir)
            hosts = LOOPBACK | {settings.host.lower()} | (opened.hosts() if tls else frozenset())
            app = create_app(reader, control, token, hosts=hosts, on_close=close, people=people)
            serve(app, listener, cluster_dir / "web.beat", tls)
    except AtollError as error:
        sys.stderr.write(f"atoll: {error} ({error.code})\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
