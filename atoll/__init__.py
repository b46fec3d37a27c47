"""Atoll: one elastic cluster out of a patchwork of machines, for training and serving models.

Names are resolved when first used, so that `import atoll` loads nothing but the standard library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.client import AsyncClient, Client
    from atoll.errors import AtollError
    from atoll.launch import run
    from atoll.schema.spec import JobSpec
    from atoll.workers.context import Context
    from atoll.workers.data import ArrowRows, TokenFile

__version__ = "0.1.0"

_WHERE = {
    "run": "atoll.launch",
    "Context": "atoll.workers.context",
    "TokenFile": "atoll.workers.data",
    "ArrowRows": "atoll.workers.data",
    "Client": "atoll.client",
    "AsyncClient": "atoll.client",
    "JobSpec": "atoll.schema.spec",
    "AtollError": "atoll.errors",
}

__all__ = [  # noqa: RUF022 - reading order
    "run",
    "Context",
    "TokenFile",
    "ArrowRows",
    "Client",
    "AsyncClient",
    "JobSpec",
    "AtollError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    return getattr(importlib.import_module(where), name)


def __dir__() -> list[str]:
    return sorted(__all__)
