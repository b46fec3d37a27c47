import functools
from pathlib import Path

import pytest

from atoll.errors import ScriptNotFound, SpecError
from atoll.launch_spec import build, build_document, check_names, metadata_options, read_document, read_job, safe_name

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


@pytest.fixture
def job(tmp_path):
    """Write a job file beside a program."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("def train(ctx):\n    pass\n")

    def write(text, name="tiny job.toml"):
        (tmp_path / "jobs" / name).write_text(text)
        return tmp_path / "jobs" / name

    return write


def test_job_file_becomes_a_spec_with_paths_from_its_own_folder(job):
    path = job('file = "train.py"\nworkers = "2..16"\nkeep_for = "2h"\nresume = "old"\n[config]\nlr = 1e-3\n')
    spec = read_job(path)
    assert (spec.name, spec.file, spec.working_dir) == ("tiny-job", "train.py", str(path.parent))
    assert (spec.workers, spec.min_workers, spec.keep_for_s) == (16, 2, 7200)
    assert (spec.config, spec.resume) == ({"lr": 1e-3}, str(path.parent / "old"))


def test_job_file_of_a_ray_job_runs_in_rays_copy(job):
    path = job('file = "train.py"')
    document, file = read_document(path, path.parent.parent)
    spec = build_document(document, file, cwd=path.parent.parent, run_id="raysubmit_1", working_dir_uri="gcs://x")
    assert (spec.working_dir, spec.file) == (str(path.parent.parent), "jobs/train.py")
    assert (spec.run_id, spec.working_dir_uri) == ("raysubmit_1", "gcs://x")


def test_what_stands_above_a_job_file_wins_and_config_is_merged(job):
    document, file = read_document(job('file = "train.py"\nworkers = 2\n[config]\na = 1\nb = 2\n'), HERE.parent)
    spec = build_document(document, file, {"workers": 3, "config": {"b": 5}})
    assert (spec.workers, spec.config) == (3, {"a": 1, "b": 5})


def test_value_out_of_range_names_the_line_of_the_job_file(job):
    path = job('file = "train.py"\n\nspares = -1\n')
    with pytest.raises(SpecError, match=r"tiny job.toml:3: spares = -1: 0 or more"):
        read_job(path)
    with pytest.raises(SpecError, match=r":3: workers = '5\.\.2'"):
        read_job(job('file = "train.py"\n\nworkers = "5..2"\n'))


def test_job_file_that_is_not_there_is_told_by_its_path(tmp_path):
    with pytest.raises(ScriptNotFound, match=r"no file .*none\.toml"):
        read_job("none.toml", tmp_path)


def test_metadata_of_a_ray_job_become_options():
    assert metadata_options({"atoll.queue": "research", "atoll.priority": "50", "job_name": "x"}) == {
        "queue": "research",
        "priority": 50,
    }
    with pytest.raises(SpecError, match=r"'atoll\.queue'"):
        metadata_options({"atoll.quue": "research"})


def test_function_that_a_program_does_not_define_is_told_with_the_nearest_name(job):
    path = job('file = "train.py"\nfunction = "trian"')
    with pytest.raises(
        ScriptNotFound, match=r"train\.py defines no 'trian' at its top level; the nearest name in it is 'train'"
    ):
        check_names(read_job(path))
    check_names(read_job(job('file = "train.py"')))


@pytest.mark.parametrize(
    "program",
    ["from other import train", "from other import *", "if True:\n    train = print", "class train:\n    pass"],
)
def test_function_may_come_from_anywhere(job, program):
    path = job('file = "train.py"')
    (path.parent / "train.py").write_text(program)
    check_names(read_job(path))


def test_program_that_is_no_python_is_told_with_its_line(job):
    path = job('file = "train.py"')
    (path.parent / "train.py").write_text("a = 1\ndef train(:\n")
    with pytest.raises(ScriptNotFound, match=r"train\.py:2: no Python"):
        check_names(read_job(path))
