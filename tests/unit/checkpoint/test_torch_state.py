import datetime as dt

import pytest
import torch
from torch import nn

from atoll.checkpoint.torch_state import Flat, digest, flatten, shape_digest, unflatten
from atoll.errors import CheckpointError, StateError


def assert_same(one, other):
    assert type(one) is type(other) or isinstance(one, torch.Tensor)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def test_state_comes_back_with_its_types_keys_and_order(state):
    assert_same(unflatten(flatten(state())), state())


def test_keys_that_look_like_ours_come_back():
    odd = {"$tensor": 1, "$items": {"$tuple": [1]}, "a": {1: "x", None: 2, 1.5: 3, False: 4} | {"1": "y"}}
    assert_same(unflatten(flatten(odd)), odd)


def test_tied_tensors_are_stored_once_and_are_one_tensor_again(state):
    flat = flatten(state())
    assert "model.a/b" in flat.tensors
    assert "model.tied" not in flat.tensors
    model = unflatten(flat)["model"]
    assert model["a/b"] is model["tied"]


def test_views_of_one_storage_that_differ_are_stored_apart():
    base = torch.arange(4.0)
    flat = flatten({"whole": base, "half": base[:2], "turned": base.view(2, 2).T, "square": base.view(2, 2)})
    assert len(flat.tensors) == 4


@pytest.mark.parametrize("padded", [torch.zeros(2, 3), torch.empty(0, 3)], ids=["padded", "empty"])
def test_tied_tensors_without_elements_are_one_however_they_were_detached(padded):
    part = padded[:0]
    flat = flatten({"a": part.detach(), "tied": part.view(0, 3).detach(), "other": torch.zeros(2, 3)[:0]})
    assert list(flat.tensors) == ["a", "other"]


@pytest.mark.parametrize("beside", [{"full": slice(3, 6)}, {"other": slice(3, 3)}], ids=["full", "empty"])
def test_empty_parts_of_one_buffer_are_not_one_tensor(beside):
    buffer = torch.zeros(6)
    ((name, where),) = beside.items()
    flat = flatten({"a": buffer[3:3], "b": buffer[3:3], "c": buffer[3:3].view(0, 2), name: buffer[where]})
    assert len(flat.tensors) == 4


def test_paths_that_read_the_same_get_different_names():
    flat = flatten({"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}, "__metadata__": torch.ones(2)})
    assert len(flat.tensors) == 3
    assert "__metadata__" not in flat.tensors
    assert unflatten(flat)["a.b"]["c"].item() == 1


def test_optimizer_and_scheduler_resume_from_their_flat_state():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    saved = unflatten(flatten({"o": optimizer.state_dict(), "s": scheduler.state_dict()}))
    again = torch.optim.AdamW(model.parameters(), lr=0.1)
    again.load_state_dict(saved["o"])
    assert_same(again.state_dict(), optimizer.state_dict())
    assert saved["s"] == scheduler.state_dict()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"when": dt.timedelta(1)}}, r"state 'a\.when' is a datetime\.timedelta; checkpoints hold"),
        ({"a": [{1, 2}]}, r"state 'a\.0' is a builtins\.set"),
        ({"a": {(1, 2): 3}}, "state 'a' has a key of type tuple; use text or numbers"),
        ({"w": torch.empty(2, device="meta")}, "state 'w' is a tensor on the meta device"),
        ({"w": torch.eye(2).to_sparse()}, "state 'w' is a tensor of layout torch.sparse_coo"),
        ({"\ud800": torch.ones(1)}, "named by text that is not Unicode"),
    ],
)
def test_what_cannot_be_written_is_refused_with_its_path_and_type(state, words):
    with pytest.raises(StateError, match=words):
        flatten(state)


def test_tree_that_names_a_missing_tensor_is_refused():
    with pytest.raises(CheckpointError, match="names tensor 'w', which is not there"):
        unflatten(Flat(tensors={}, meta={"a": {"$tensor": "w"}}))


def test_digest_depends_on_content_and_not_on_order_or_strides(state):
    flat = flatten(state())
    turned = Flat(
        tensors={n: flat.tensors[n].clone(memory_format=torch.contiguous_format) for n in reversed(flat.tensors)},
        meta=flat.meta,
    )
    assert digest(turned) == digest(flat)
    assert digest(flatten(state(2.0))) != digest(flat)
    assert shape_digest(flatten(state(2.0))) == shape_digest(flat)


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2), "lr": 1},
        {"a": torch.zeros(2, dtype=torch.int32), "lr": 1},
        {"a": torch.zeros(1, 2), "lr": 1},
        {"a": torch.zeros(2), "lr": 2},
    ],
)
def test_digest_sees_names_types_shapes_and_numbers_beside_the_tensors(other):
    assert digest(flatten(other)) != digest(flatten({"a": torch.zeros(2), "lr": 1}))
