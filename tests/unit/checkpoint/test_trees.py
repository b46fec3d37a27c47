"""Trees as DCP's paths and back, and what two trees and records have unlike."""

import pytest

from atoll.checkpoint.differing import Unlike, tensor_differences, tree_differences
from atoll.checkpoint.manifest import TensorRecord
from atoll.checkpoint.trees import entries, grown
from atoll.errors import CheckpointError


def named(tree):
    return {name: entry.tensor or entry.node for name, entry in entries(tree).items()}


def test_tensors_and_values_stand_under_their_paths():
    tree = {
        "model": {"w": {"$tensor": "model.w"}, "tied": {"$tensor": "model.w"}},
        "optimizer": {"$items": [[0, {"m": {"$tensor": "optimizer.0.m"}}]]},
        "groups": [{"lr": 0.1, "betas": {"$tuple": [0.9, 0.99]}}],
        "plain": [1, [2]],
    }
    assert named(tree) == {
        "model.w": "model.w",
        "model.tied": "model.w",
        "optimizer.0.m": "optimizer.0.m",
        "groups.0.lr": 0.1,
        "groups.0.betas": {"$tuple": [0.9, 0.99]},
        "plain": [1, [2]],
    }


def test_declared_parts_of_a_fused_tensor_have_no_place():
    assert named({"qkv": {"$parts": [{"$tensor": "q"}, {"$tensor": "k"}]}, "n": 1}) == {"n": 1}


def test_tree_grows_back_from_its_paths():
    tree = {"a": {"b": {"$tensor": "a.b"}, "c.d": 3}, "list": [{"x": 1}, {"$tensor": "list.1"}]}
    assert grown((entry.path, _node(entry)) for entry in entries(tree).values()) == tree
    assert grown([(("$odd", "k"), 1)]) == {"$items": [["$odd", {"k": 1}]]}


def _node(entry):
    return entry.node if entry.tensor is None else {"$tensor": entry.tensor}


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([("a",), ("a",)], "two values of the state are called 'a'"),
        ([("a",), ("a", "b")], "lies within what is a value already"),
        ([("a", 0), ("a", 2)], "has no element 1"),
        ([("a", 0), ("a", "b")], "text and numbers side by side"),
    ],
)
def test_paths_that_cannot_stand_together_are_refused(paths, words):
    with pytest.raises(CheckpointError, match=words):
        grown((path, 1) for path in paths)


def record(name, dtype="float32", shape=(2,), digest="0"):
    return TensorRecord(name=name, dtype=dtype, shape=shape, digest=digest)


def test_tensors_differ_by_presence_form_and_digest():
    first = {n: record(n) for n in ("gone", "form", "values", "same")}
    second = {
        "form": record("form", dtype="bfloat16"),
        "values": record("values", digest="1"),
        "same": record("same"),
        "new": record("new"),
    }
    found = {d.name: d.how for d in tensor_differences(first, second)}
    assert found == {
        "gone": Unlike.ONLY_FIRST,
        "new": Unlike.ONLY_SECOND,
        "form": Unlike.FORM,
        "values": Unlike.VALUES,
    }


def test_trees_differ_by_path_and_one_is_not_true():
    first = {"a": {"b": [1, 2], "only": 0}, "flag": True, "same": None}
    second = {"a": {"b": [1, 3]}, "flag": 1, "same": None, "new": 4}
    assert [d.line() for d in tree_differences(first, second)] == [
        "a.b.1: other value: 2, 3",
        "a.only: only in the first",
        "flag: other value: True, 1",
        "new: only in the second",
    ]
