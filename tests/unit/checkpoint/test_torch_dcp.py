"""Steps through torch's own `torch.distributed.checkpoint`, in one process without a process group."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_dcp import StorageReader, StorageWriter, plain_value
from atoll.checkpoint.torch_state import flatten, unflatten
from atoll.errors import CheckpointError, StateError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def trained(scale=1.0):
    """A model with its optimizer and values, as a program would give it to DCP."""
    return {
        "model": {"w": torch.arange(12.0).view(3, 4) * scale, "b": torch.full((3,), scale, dtype=torch.bfloat16)},
        "optimizer": {
            "state": {"0": {"step": torch.tensor(scale)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
        },
        "list": [torch.ones(2) * scale, 3],
        "empty": torch.empty(0, 3),
        "note": {"$odd": "text", "none": None, "numbers": [1, 2, [3]]},
    }


def same(one, other):
    mine, theirs = flatten(one), flatten(other)
    assert mine.meta == theirs.meta
    assert mine.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(t, theirs.tensors[name]) for name, t in mine.tensors.items())


def saved(tmp_path, state, step=7):
    path = tmp_path / f"step-{step:08d}"
    dcp.save(state, storage_writer=StorageWriter(path), no_dist=True)
    return path


def test_state_that_dcp_saves_is_a_step_as_any_and_no_pickle_is_in_it(tmp_path):
    path = saved(tmp_path, trained(2.0))
    store = Store(tmp_path)
    assert store.verify(7).ok
    same(unflatten(store.open(7)), trained(2.0))
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".arrow", ".json"}
    record = json.loads((path / "commit.json").read_bytes())["record"]
    assert record["run"] == "dcp"


def test_dcp_loads_what_dcp_saved(tmp_path):
    path = saved(tmp_path, trained(2.0))
    state = trained(0.0)
    dcp.load(state, storage_reader=StorageReader(path), no_dist=True)
    same(state, trained(2.0))


def test_dcp_loads_what_writers_saved_with_types_it_asks_for(tmp_path, crew, state):
    made = crew(3)
    made.save_and_wait(flatten(state(2.0)), 1, 2)
    made.finish()
    into = {
        "model": {"a/b": torch.zeros(2, 3, dtype=torch.float64), "tied": torch.zeros(2, 3)},
        "optimizer": {"state": {"0": {"m": torch.zeros(4, 4).T}}},
        "scaler": {"on": torch.tensor([False, False])},
        "lr": None,
    }
    dcp.load(into, storage_reader=StorageReader(made.directory), no_dist=True)
    expected = state(2.0)
    assert torch.equal(into["model"]["a/b"], expected["model"]["a/b"].double())
    assert torch.equal(into["model"]["tied"], expected["model"]["tied"])
    assert torch.equal(into["optimizer"]["state"]["0"]["m"], expected["optimizer"]["state"][0]["m"])
    assert into["scaler"]["on"].tolist() == [True, False]
    assert into["lr"] == (0.1, {"last": 3})


def test_dcp_without_a_state_of_its_own_gets_all_of_the_step(tmp_path):
    path = saved(tmp_path, trained())
    same(_load_state_dict_from_keys(storage_reader=StorageReader(path)), trained())


def test_tensor_that_is_not_there_is_named_by_dcp(tmp_path):
    path = saved(tmp_path, trained())
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: model\.other"):
        dcp.load({"model": {"other": torch.ones(1)}}, storage_reader=StorageReader(path), no_dist=True)


def test_flipped_byte_is_never_loaded(tmp_path):
    path = saved(tmp_path, trained())
    pack = next(path.glob("*.safetensors"))
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    with pytest.raises(CheckpointException, match="written by rank 0"):
        dcp.load(trained(0.0), storage_reader=StorageReader(path), no_dist=True)


def test_step_that_counts_is_not_written_again_and_a_path_has_to_name_a_step(tmp_path):
    path = saved(tmp_path, trained())
    with pytest.raises(CheckpointException, match="committed already, and never written again"):
        dcp.save(trained(2.0), storage_writer=StorageWriter(path), no_dist=True)
    with pytest.raises(CheckpointError, match="names no step"):
        StorageWriter(tmp_path / "mine").set_up_storage_writer(True)
    same(unflatten(Store(tmp_path).open(7)), trained())


def test_try_that_ended_before_its_record_does_not_stand_in_the_way_of_the_next(tmp_path):
    path = saved(tmp_path, trained(1.0))
    (path / "commit.json").unlink()
    dcp.save(trained(2.0), storage_writer=StorageWriter(path), no_dist=True)
    same(unflatten(Store(tmp_path).open(7)), trained(2.0))
    assert Store(tmp_path).verify(7).ok


def test_value_that_is_no_plain_one_is_refused_by_name_and_nothing_counts(tmp_path):
    with pytest.raises(CheckpointException, match="'hook'"):
        saved(tmp_path, {"w": torch.ones(1), "hook": print})
    assert Store(tmp_path).list() == []
    with pytest.raises(StateError, match="holds tensors"):
        plain_value("pair", (torch.ones(1),))


def test_ranks_that_found_unlike_newest_steps_load_none(tmp_path):
    saved(tmp_path, trained(), step=7)
    early = StorageReader(tmp_path)
    early.read_metadata()
    saved(tmp_path, trained(), step=8)
    late = StorageReader(tmp_path)
    late.read_metadata()
    found = [reader.prepare_local_plan(LoadPlan([])) for reader in (early, late)]
    with pytest.raises(CheckpointError, match="ranks found step-00000007 and step-00000008 as the newest"):
        early.prepare_global_plan(found)
    assert early.prepare_global_plan(found[:1]) == found[:1]


def test_state_of_values_alone_is_a_step_too(tmp_path):
    path = saved(tmp_path, {"n": 3, "empty": torch.empty(0)})
    state = {"n": 0, "empty": torch.empty(0)}
    dcp.load(state, storage_reader=StorageReader(path), no_dist=True)
    assert state["n"] == 3
    assert Store(tmp_path).verify(7).ok


@pytest.mark.parametrize("name", ["step-7", "step-00000007"])
def test_step_that_is_saved_by_either_form_of_its_name_loads_by_both(tmp_path, name):
    dcp.save({"w": torch.full((3,), 7.0)}, storage_writer=StorageWriter(tmp_path / name), no_dist=True)
    assert Store(tmp_path).committed_steps() == [7]
    for form in ("step-7", "step-00000007"):
        into = {"w": torch.zeros(3)}
        dcp.load(into, storage_reader=StorageReader(tmp_path / form), no_dist=True)
        assert into["w"].tolist() == [7.0] * 3
