import json
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.launch_spec import build
from atoll.schema import job_keys
from atoll.schema.job_file import JobFileError, parse, parse_metadata
from atoll.schema.job_places import toml_places, yaml_places
from atoll.schema.nearest import distance, nearest
from atoll.schema.spec import JobSpec, check_spec

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = job_keys.json_schema()


def faults(text, source="job.toml"):
    with pytest.raises(JobFileError) as caught:
        parse(text, source)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("wrokers", "workers"),
        ("checkpoint_evry", "checkpoint_every"),
        ("Spares", "spares"),
        ("cpu_per_worker", "cpus_per_worker"),
    ],
)
def test_misspelt_key_is_told_with_its_line_value_and_the_nearest_key(word, near):
    assert faults(f'# a job\nfile = "t.py"\n\n{word} = 4\n') == [
        f"job.toml:4: {word} = 4: no such key; the nearest valid key is '{near}'"
    ]


def test_all_faults_of_keys_and_types_are_told_at_once_in_order_of_lines():
    text = 'file = 3\nseed = "x"\nworkes = 2\nchaos = 1\nenv = {A = 1}\nkeep_for = "2 parsecs"\n'
    assert [line.split(": ")[0] for line in faults(text)] == [f"job.toml:{n}" for n in range(1, 7)]
    assert faults(text)[1] == 'job.toml:2: seed = "x": must be a whole number'
    assert "write 30s, 5m or 1h" in faults(text)[5]


def test_yaml_is_judged_alike():
    assert faults("file: t.py\n# rates\nsead: 1\n", "job.yaml") == [
        "job.yaml:3: sead = 1: no such key; the nearest valid key is 'seed'"
    ]
    assert faults("file: t.py\nseed: 1\nseed: 2\n", "job.yml") == ["job.yml:3: seed: said twice, first in line 2"]


def test_text_that_is_no_toml_or_yaml_is_told_with_its_line():
    assert faults('file = "t.py"\nseed = = 1\n') == ["job.toml:2: no TOML: Invalid value"]
    assert faults("file: t.py\n\tseed: 2\n", "job.yaml")[0].startswith("job.yaml:2: no YAML: ")
    assert faults("- 1\n", "job.yaml") == ["job.yaml:1: no YAML: a job file is a table of keys and values"]


def test_file_without_a_program_says_what_is_missing():
    assert faults("workers = 2\n") == ["job.toml:1: the key 'file' is missing"]


def test_spans_may_have_units_and_then_no_ending():
    assert parse('file = "t.py"\nkeep_for = "2h"', "job.toml").options["keep_for_s"] == 7200
    assert parse('file = "t.py"\nkeep_for_s = 90', "job.toml").options["keep_for_s"] == 90
    assert parse("file: t.py\nexpected: 5m", "job.yaml").options["expected_s"] == 300


def test_yaml_reads_rates_as_numbers():
    assert parse("file: t.py\nconfig: {lr: 1e-4, n: -2E+3}", "job.yaml").options["config"] == {"lr": 1e-4, "n": -2e3}


def test_unknown_key_of_an_alternative_is_told_with_its_own_line():
    text = 'file = "t.py"\n[[alternatives]]\nislands = 1\n[[alternatives]]\nshare = 0.75\nilands = 2\n'
    assert faults(text) == ["job.toml:6: alternatives[1].ilands = 2: no such key; the nearest valid key is 'islands'"]


def test_objection_of_the_last_judge_is_told_with_the_line_of_its_field():
    document = parse('file = "t.py"\n\nspares = -1\nworkers = "4..2"', "job.toml")
    assert str(document.located(SpecError("spares=-1: 0 or more"))) == "job.toml:3: spares = -1: 0 or more"
    assert str(document.located(SpecError("min_workers=4: too many"))).startswith("job.toml:4: min_workers = 4")
    assert str(document.located(SpecError("nothing of the kind"))) == "job.toml: nothing of the kind"


def test_metadata_is_read_by_prefix_and_type():
    told = {"atoll.priority": "50", "atoll.queue": "7", "atoll.config.lr": "0.1", "atoll.workers": "2..4", "mine": "x"}
    assert parse_metadata(told, "atoll.", "m").options == {
        "priority": 50, "queue": "7", "config": {"lr": 0.1}, "workers": "2..4"
    }  # fmt: skip


def test_unknown_metadata_is_told_with_the_nearest_key():
    with pytest.raises(
        SpecError, match=r"m: atoll.prioritty = 50: no such key; the nearest valid key is 'atoll.priority'"
    ):
        parse_metadata({"atoll.prioritty": "50"}, "atoll.", "m")


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_distance_is_symmetric_and_zero_only_between_equals(a, b):
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) <= max(len(a), len(b))


def test_swapped_neighbours_are_one_edit():
    assert (distance("wrokers", "workers"), distance("kitten", "sitting")) == (1, 3)
    assert nearest("x", []) is None


JSON = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text("a#\"'[]{}\n\\=é ", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.-", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def as_toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[\n  # a comment ] \n" + ",\n".join(as_toml(v) for v in value) + "\n]"
    return json.dumps(value)


@given(st.lists(JSON, min_size=1, max_size=5), st.sampled_from(["", "# [x]\n", "\n\n", "[[t]]\n", "[u.v]\n"]))
def test_places_of_toml_are_the_lines_that_keys_begin_in(values, between):
    text, wanted = "", {}
    for n, value in enumerate(values):
        header = between if between.startswith("[[") or (between.startswith("[u") and n == 0) else ""
        text += header or (between if between.startswith(("#", "\n")) else "")
        wanted[n] = text.count("\n") + 1
        text += f"k{n} = {as_toml(value)}  # end\n"
    places = toml_places(text)
    found = {path[-1]: line for path, line in places.items() if str(path[-1]).startswith("k")}
    assert found == {f"k{n}": line for n, line in wanted.items()}


def test_places_of_tables_in_lists_count_them():
    places = toml_places("[[a]]\nx = 1\n[[a]]\n[a.b]\ny = 2\n[c]\nz.w = '''\n[[a]]\n'''\nlast = 1\n")
    assert (places["a", 0, "x"], places["a", 1, "b", "y"], places["c", "z", "w"], places["c", "last"]) == (2, 5, 7, 10)


def test_places_of_yaml_are_its_own():
    places = dict(yaml_places(yaml.compose("a: 1\nb:\n  - x: 1\n  - y: 2\n")))
    assert (places["a",], places["b", 1, "y"]) == (1, 4)


# -- the schema ------------------------------------------------------------------------------------------------------


def test_every_field_of_a_spec_is_described_or_kept_out_of_files():
    assert set(job_keys.NOTES) | job_keys.NOT_IN_FILES == {f.name for f in fields(JobSpec)}


def test_published_schema_is_the_one_of_this_build():
    published = (ROOT / "docs/job.schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == SCHEMA, "write it anew: atoll validate --schema > docs/job.schema.json"


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "key", [k for k, note in job_keys.NOTES.items() if note.least is not None or note.most is not None]
)
def test_bounds_of_the_schema_are_those_of_the_check(key):
    note = job_keys.NOTES[key]
    for bound, beyond in ((note.least, -1), (note.most, 1)):
        if bound is None:
            continue
        good, bad = int(bound), int(bound) + beyond
        check_spec(JobSpec(name="n", working_dir="/", file="f.py", **{"workers": 9, key: good}))
        with pytest.raises(SpecError, match=key):
            check_spec(JobSpec(name="n", working_dir="/", file="f.py", **{"workers": 9, key: bad}))
        jsonschema.validate({"file": "f.py", key: good}, SCHEMA)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"file": "f.py", key: bad}, SCHEMA)


@pytest.mark.parametrize("key", [k for k, note in job_keys.NOTES.items() if note.among])
def test_words_of_the_schema_are_those_of_the_check(key):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"file": "f.py", key: "other"}, SCHEMA)
    for word in job_keys.NOTES[key].among:
        jsonschema.validate({"file": "f.py", key: word}, SCHEMA)
        parse(f'file = "f.py"\n{key} = "{word}"', "job.toml")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("job.*")), ids=lambda p: p.name)
def test_examples_are_valid_by_both(example):
    parse(example.read_text(encoding="utf-8"), example.name)
    plain = yaml.safe_load(example.read_text("utf-8")) if example.suffix == ".yaml" else None
    if plain is not None:
        jsonschema.validate(plain, SCHEMA)


VALUES = [0, 1, -1, 7, 1.5, -0.5, 2_000, "x", "auto", "train", "2..4", "4,8", "4..", "2h", "soon", "", True, False]
VALUES += [
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    {"a": "b"},
    [{"islands": 1}],
    [{"ilands": 1}],
    "a b",
    "stop",
    "evict",
    "s3://b/f",
]
# What no schema of one key can say: names and paths that must be of a form, elastic bounds that depend on one another,
# and a number of seconds with a unit (`2h`) that is beyond its bound.
FORMS = {
    "name",
    "file",
    "function",
    "model",
    "queue",
    "team",
    "checkpoint_remote",
    "min_workers",
    "worker_sizes",
    "kind",
    "stop_grace_s",
    "stop_grace",
}


def accepted(key, value):
    try:
        options = parse(yaml.safe_dump({"file": "f.py", key: value}), "job.yaml").options
        build(None, {**options, "file": __file__, "function": "f"}, cwd=Path("/"))
    except SpecError:
        return False
    return True


@pytest.mark.parametrize("key", [key for key in SCHEMA["properties"] if key not in FORMS])
def test_schema_and_checks_take_the_same_values(key):
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid
    judged = {repr(value): (valid({"file": "f.py", key: value}), accepted(key, value)) for value in VALUES}
    assert {value: both for value, both in judged.items() if both[0] != both[1]} == {}
