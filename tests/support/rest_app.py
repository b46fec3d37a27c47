"""The whole REST application over a cluster in memory, and its description as it is published.

python tests/support/rest_app.py > docs/openapi.json
"""

from __future__ import annotations

import json
import sys

from atoll.control_plane.http_gateway import gateway
from atoll.control_plane.rest_memory import MemoryControl, MemoryReader
from atoll.control_plane.rest_server import application, refuse_the_rest
from atoll.control_plane.rest_source import ClusterSource


def whole(source):
    """Everything that the web process serves but the dashboard."""
    app = application(source)
    app.include_router(gateway(source.servers))
    refuse_the_rest(app)
    return app


def description():
    """The OpenAPI description."""
    reader = MemoryReader()
    return whole(ClusterSource(reader, MemoryControl(reader))).openapi()


def published():
    """The text of docs/openapi.json."""
    return json.dumps(description(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(published())
