"""`pytest tests/scenarios --rewrite` writes the transcripts anew: read the difference before keeping it."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", default=False, help="write scenario transcripts anew")
