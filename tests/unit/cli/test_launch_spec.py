import functools
from pathlib import Path

import pytest

from atoll.errors import ScriptNotFound, SpecError
from atoll.launch_spec import build, safe_name

HERE = Path(__file__).resolve()


def train(ctx):
    pass


def model():
    pass


class Thing:
    def method(self):
        pass

    @staticmethod
    def top(ctx):
        pass


def test_function_becomes_file_and_name_relative_to_the_working_directory():
    spec = build(train, {"model": model}, cwd=HERE.parent)
    assert (spec.file, spec.function, spec.model) == (HERE.name, "train", "model")
    assert (spec.working_dir, spec.name) == (str(HERE.parent), "test_launch_spec")


def test_file_outside_the_working_directory_keeps_its_full_path(tmp_path):
    assert build(train, {}, cwd=tmp_path).file == str(HERE)


def test_options_are_passed_on_and_paths_made_absolute(tmp_path):
    options = {
        "workers": 4,
        "seed": 7,
        "resume": "old",
        "checkpoint_dir": "new",
        "config": {"a": [1]},
        "env": {"A": "b"},
    }
    spec = build(train, options, cwd=tmp_path, run_id="raysubmit_1", working_dir_uri="gcs://x")
    assert (spec.workers, spec.seed, spec.config, spec.env) == (4, 7, {"a": [1]}, {"A": "b"})
    assert (spec.resume, spec.checkpoint_dir) == (str(tmp_path / "old"), str(tmp_path / "new"))
    assert (spec.run_id, spec.working_dir_uri) == ("raysubmit_1", "gcs://x")


def test_static_function_of_a_class_is_named_with_its_class():
    assert build(Thing.top, {}, cwd=HERE.parent).function == "Thing.top"


@pytest.mark.parametrize("fn", [lambda ctx: None, functools.partial(train)])
def test_function_that_has_no_name_of_its_own_is_refused(fn):
    with pytest.raises((SpecError, ScriptNotFound)):
        build(fn, {}, cwd=HERE.parent)


def test_function_inside_a_function_is_refused():
    def inner(ctx):
        pass

    with pytest.raises(SpecError, match="top-level"):
        build(inner, {}, cwd=HERE.parent)


def test_function_typed_in_an_interpreter_is_refused():
    names = {}
    exec("def f(ctx): pass", names)
    with pytest.raises(ScriptNotFound, match=r"put it into a \.py file"):
        build(names["f"], {}, cwd=HERE.parent)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": {"a": object()}}, "travels as JSON"),
        ({"config": {"a": float("nan")}}, "travels as JSON"),
        ({"env": {"A": 1}}, r"env\['A'\]=1"),
        ({"workers": 0}, "workers=0"),
        ({"name": "a b"}, "name='a b'"),
    ],
)
def test_option_that_cannot_be_is_refused_with_its_value(options, words):
    with pytest.raises(SpecError, match=words):
        build(train, options, cwd=HERE.parent)


def test_unknown_file_is_refused_with_its_full_path(tmp_path):
    with pytest.raises(ScriptNotFound, match=str(tmp_path / "no.py")):
        build(None, {"file": "no.py"}, cwd=tmp_path)


def test_any_text_becomes_a_safe_name():
    assert safe_name("my train!") == "my-train"
    assert safe_name("ß") == "job"
