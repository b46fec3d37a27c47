"""Several ranks save and load steps through torch's own `torch.distributed.checkpoint`, resharding as they load."""

from __future__ import annotations

import json

import pytest
from forked_ranks import Warm

from atoll.checkpoint.fs_store import Store

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def ranks():
    warm = Warm("checkpoint_dcp_ranks")
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def saved(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dcp")
    assert ranks.run("checkpoint_dcp_ranks.save", 2, folder=str(folder)) == ["saved", "saved"]
    return folder


def test_two_ranks_write_a_pack_each_and_one_step_that_verifies(saved):
    store = Store(saved / "steps")
    assert [s.step for s in store.list()] == [1, 2]
    assert all(store.verify(step).ok for step in (1, 2))
    record = json.loads((store.step_directory(1) / "commit.json").read_bytes())["record"]
    assert {segment["rank"] for segment in record["segments"]} == {0, 1}


@pytest.mark.parametrize(("size", "step"), [(2, 1), (3, 2), (1, 2)])
def test_any_number_of_ranks_loads_its_parts_of_it(ranks, saved, size, step):
    (saved / f"load-{step}").unlink(missing_ok=True)
    expected = {name: [True] * 4 for name in ("rows", "columns", "all")}
    assert ranks.run("checkpoint_dcp_ranks.load", size, folder=str(saved), step=step) == [expected] * size
