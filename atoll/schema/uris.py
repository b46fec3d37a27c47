"""Credentials in a URI: found, so that they are refused. A run's spec is shown to everybody who may look at runs."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

# Of `abfss://container@account/` and `hdfs://user@host/` the first part is a name; of the others only a key can be meant.
_NAMED = frozenset({"abfs", "abfss", "hdfs", "viewfs"})
_SECRETS = ("secret", "password", "token", "signature", "credential")
_SIGNATURE = "sig"


def tells_secrets(uri: str) -> bool:
    """Whether there is a user, a password, or a parameter that says it is secret. Never raises."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or parts.scheme.lower() not in _NAMED):
        return (parts.scheme.lower(), user) != ("gs", "anonymous")
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return any(name == _SIGNATURE or any(word in name for word in _SECRETS) for name in names)


def without_secrets(field: str, uri: str | None) -> tuple[bool, str]:
    """A rule of a spec: `uri` tells no secrets. The words do not repeat it."""
    problem = (
        f"{field}: credentials in a URI are shown to everybody who may see the run; leave them out, and give them to the"
        " nodes (a role of the machine, or variables such as AWS_ACCESS_KEY_ID where Ray and the agents are started)"
    )
    return uri is None or not tells_secrets(uri), problem
