"""What passes on Gloo passes on the backend `atoll`, with the same results: torch's own users of process groups.

All scenarios (tests/support/backend_scenarios.py) run in one set of forked ranks, each on Gloo and then on ours.
"""

from __future__ import annotations

import pytest
from backend_names import AT_FOUR, AT_THREE

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def at_four(warm, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    return warm.run("backend_ranks.compare", 4, names=AT_FOUR, folder=folder, limit_s=150)


@pytest.fixture(scope="module")
def at_three(warm, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    return warm.run("backend_ranks.compare", 3, names=AT_THREE, folder=folder, limit_s=100)


@pytest.mark.parametrize("name", AT_FOUR)
def test_on_four_ranks_results_are_those_of_gloo(at_four, name):
    agree(at_four, name)


@pytest.mark.parametrize("name", AT_THREE)
def test_on_three_ranks_results_are_those_of_gloo(at_three, name):
    agree(at_three, name)


def agree(answers, name):
    for rank, answer in enumerate(answers):
        assert "error" not in answer, answer
        found = answer[name]
        # A scenario that Gloo fails would say nothing of ours.
        assert isinstance(found["gloo"], float), f"rank {rank} on gloo: {found['gloo']}"
        assert isinstance(found["atoll"], float), f"rank {rank} on atoll: {found['atoll']}"
        assert found["difference"] == "", f"rank {rank}"
