"""`pytest tests/scenarios --rewrite` writes the transcripts anew: read the difference before keeping it."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", default=False, help="write scenario transcripts anew")


@pytest.fixture
def reads_as_kept(request):
    """Play a transcript's file, and compare: what is played has to be what is kept."""

    def check(path, play):
        again = play(path.read_text())
        if request.config.getoption("--rewrite", default=False):
            path.write_text(again)
        assert again == path.read_text()

    return check
