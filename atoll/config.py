"""The one module that reads the environment, and the files that say where a cluster is.

Everything else gets its settings as arguments. `load` turns the environment into a `Config`; `locate` decides which
running cluster a client means, from (in this order) arguments, ATOLL_ADDRESS, RAY_ADDRESS and the newest
`cluster.json` under ATOLL_HOME. A `cluster.json` is believed only if it is the reader's own and closed to others: it
names the place that will be given the token.

| variable | meaning |
|---|---|
| ATOLL_HOME | state and token, default `~/.atoll` |
| ATOLL_ADDRESS | URL of the REST server, `http://127.0.0.1:8440` |
| ATOLL_TOKEN | the token, instead of the file `token` under ATOLL_HOME |
| ATOLL_CA | certificates (PEM) to trust for an https address, instead of `tls/ca.pem` under ATOLL_HOME |
| ATOLL_HOST | address that peers of a `torch.distributed` group connect to; default: that on the way to the store |
| GLOO_SOCKET_IFNAME | the same by the name of a NIC, as for torch's Gloo |
| ATOLL_DATABASE | `postgresql://...` for journal and history of a cluster that is started, instead of SQLite files |
| ATOLL_ARCHIVE | folder or URI for metrics of ended runs of such a cluster |
| ATOLL_KEEP_DAYS | how long metrics and logs of ended runs stay, default 90 |
| RAY_ADDRESS | GCS address of the Ray cluster; set by Ray inside `ray job submit` |
| RAY_JOB_CONFIG_JSON_ENV_VAR | set by Ray inside `ray job submit`: submission id, packed working directory, metadata |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.errors import AuthError, ConnectError

if TYPE_CHECKING:
    import ssl

HOME_MODE = 0o700
_RAYS_OWN = frozenset({"job_submission_id", "job_name"})
TOKEN_MODE = 0o600
# How the web server of this home is trusted, where it speaks TLS.
TLS_DIR, TLS_CA = "tls", "ca.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """What Ray tells a driver that it started itself. `metadata` is what came with `--metadata-json`."""

    submission_id: str
    working_dir_uri: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of this process. `token` is the environment's; `read_token` falls back to the file."""

    home: Path
    address: str | None = None
    token: str | None = None
    ca: Path | None = None
    host: str | None = None
    nic: str | None = None
    ray_address: str | None = None
    ray_job: RayJob | None = None
    database: str | None = None
    archive: str | None = None
    keep_days: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """A cluster as its `cluster.json` describes it. `plain` holds all of it, for those who wrote it."""

    path: Path
    rest_url: str
    ray_address: str
    plain: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send REST calls, and the token that they carry."""

    url: str
    token: str
    ca: Path | None = None


def load(environment: Mapping[str, str] | None = None) -> Config:
    """The settings in `environment`, which is the process's own unless given."""
    env = os.environ if environment is None else environment  # noqa: TID251 - this is the module that may
    home = env.get("ATOLL_HOME") or "~/.atoll"
    return Config(
        home=Path(home).expanduser().absolute(),
        address=env.get("ATOLL_ADDRESS") or None,
        token=env.get("ATOLL_TOKEN") or None,
        ca=Path(env["ATOLL_CA"]).expanduser().absolute() if env.get("ATOLL_CA") else None,
        host=env.get("ATOLL_HOST") or None,
        nic=env.get("GLOO_SOCKET_IFNAME") or None,
        ray_address=env.get("RAY_ADDRESS") or None,
        ray_job=_ray_job(env.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")),
        database=env.get("ATOLL_DATABASE") or None,
        archive=env.get("ATOLL_ARCHIVE") or None,
        keep_days=env.get("ATOLL_KEEP_DAYS") or None,
    )


def _ray_job(text: str) -> RayJob | None:
    # The variable's name is its own value in Ray 2.60; its JSON has "metadata" and "runtime_env".
    try:
        plain = json.loads(text) if text else {}
        metadata = plain.get("metadata", {})
        submission = metadata.get("job_submission_id")
        uri = plain.get("runtime_env", {}).get("working_dir")
    except (ValueError, AttributeError):
        return None
    if not isinstance(submission, str):
        return None
    copied = uri if isinstance(uri, str) and "://" in uri else None
    told = {str(key): str(value) for key, value in metadata.items() if key not in _RAYS_OWN}
    return RayJob(submission_id=submission, working_dir_uri=copied, metadata=told)


def as_url(address: str) -> str:
    """`address` as a URL without a trailing slash; `host:port` means http."""
    return (address if "://" in address else f"http://{address}").rstrip("/")


def cluster_key(ray_address: str) -> str:
    """The folder name of the cluster whose GCS answers at `ray_address`."""
    return ray_address.replace(":", "-").replace(".", "-")


def known_clusters(home: Path) -> list[ClusterFile]:
    """Every cluster described under `home`, the newest first. Unreadable files are passed over."""
    files = sorted(home.glob("clusters/*/cluster.json"), key=_modified, reverse=True)
    return [found for file in files if (found := read_cluster(file)) is not None]


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def read_cluster(file: Path) -> ClusterFile | None:
    """The cluster described in `file`, or None where it is absent, damaged, or writable by others."""
    try:
        status = file.stat()
        plain = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not isinstance(plain, dict):
        return None
    url, ray_address = plain.get("rest_url"), plain.get("ray_address")
    if not isinstance(url, str) or not isinstance(ray_address, str):
        return None
    return ClusterFile(path=file, rest_url=as_url(url), ray_address=ray_address, plain=plain)


def read_token(config: Config) -> str:
    """The token of ATOLL_TOKEN or of the file under ATOLL_HOME. Raises `AuthError` where neither is there."""
    if config.token:
        return config.token
    file = config.home / "token"
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        raise AuthError(f"no token: ATOLL_TOKEN is unset and {file} does not exist; run `atoll up` first") from None
    except OSError as error:
        raise AuthError(f"cannot read the token in {file}: {error.strerror}; it must be yours, mode 0600") from None
    if not text:
        raise AuthError(f"the token file {file} is empty; delete it and run `atoll up`")
    return text


def locate(config: Config, address: str | None = None, token: str | None = None) -> Target:
    """The running cluster that a client means. Raises `ConnectError` or `AuthError` with the next thing to do."""
    url = _choose_url(config, address)
    return Target(url=url, token=token or read_token(config), ca=authority(config) if url.startswith("https") else None)


def authority(config: Config) -> Path | None:
    """Whom to trust: the file of ATOLL_CA, else that of this home; None for whom the system trusts."""
    own = config.home / TLS_DIR / TLS_CA
    return config.ca or (own if own.exists() else None)


def trusted(ca: Path) -> ssl.SSLContext:
    """TLS that trusts the certificates in `ca` and no others. Raises `ConnectError`."""
    import ssl  # noqa: PLC0415 - 10 ms that `import atoll` must not cost

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A certificate that was given may be there itself, without whoever signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConnectError(
            f"no certificates to trust in {ca} ({error}); set ATOLL_CA to the cluster's ca.pem"
        ) from None
    return context


def _choose_url(config: Config, address: str | None) -> str:
    chosen = address or config.address
    if chosen:
        return as_url(chosen)
    clusters = known_clusters(config.home)
    if config.ray_address and config.ray_address != "auto":
        clusters = [c for c in clusters if c.ray_address == config.ray_address]
    if not clusters:
        where = f" for RAY_ADDRESS={config.ray_address}" if config.ray_address else ""
        raise ConnectError(
            f"no running cluster known under {config.home}{where}; run `atoll up`, or set ATOLL_ADDRESS to its URL"
        )
    return clusters[0].rest_url
