"""Messages survive their JSON form, and nothing but registered messages comes out of one."""

import math

import pytest

from atoll.errors import SchemaError
from atoll.schema import messages as m
from atoll.schema.codec import Registry, decode_as, encode, from_plain, to_plain
from atoll.schema.spec import JobKind, JobSpec, check_spec

MEMBER = m.Member(trainer="t0", rank=0, node="n", host="127.0.0.1", port=1)
SPEC = JobSpec(name="x", working_dir="/", file="a.py", config={"lr": 0.1, "deep": [1, {"a": None}]})
COMMITTED = m.StepCommitted(trainer="t", epoch=1, step=2, at=0.5, step_s=1.0, samples=3, metrics={"loss": 1.5})


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (m.AGENT_COMMANDS, m.StartTrainer(run="r", trainer="t", seat="s", spec=SPEC, run_dir="/x", secret="aa")),
        (m.AGENT_COMMANDS, m.TellTrainer(trainer="t", command=m.Membership(run="r", epoch=1, members=(MEMBER,)))),
        (m.AGENT_COMMANDS, m.TellTrainer(trainer="t", command=m.StopAtBoundary(reason="why"))),
        (m.AGENT_FACTS, m.TrainerSaid(run="r", fact=COMMITTED)),
        (m.AGENT_FACTS, m.LogChunk(request="1", text="é", next_offset=2)),
    ],
)
def test_message_survives_its_json_form(channel, message):
    assert Registry(channel).decode(encode(message)) == message


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"type":"os.system"}', b'{"type":["a"]}', b"\xff", b"12"])
def test_anything_but_a_registered_message_is_refused(data):
    with pytest.raises(SchemaError):
        Registry(m.AGENT_FACTS).decode(data)


def test_message_of_another_channel_is_refused():
    with pytest.raises(SchemaError, match="StopAtBoundary"):
        Registry(m.AGENT_FACTS).decode(encode(m.StopAtBoundary(reason="x")))


@pytest.mark.parametrize(
    ("field", "value"),
    [("workers", "4"), ("workers", True), ("workers", 1.5), ("name", None), ("env", {"a": 1}), ("kind", "dance")],
)
def test_field_of_a_wrong_type_is_named(field, value):
    with pytest.raises(SchemaError, match=field):
        from_plain(JobSpec, {**to_plain(SPEC), field: value})


def test_missing_field_is_named_and_unknown_ones_are_ignored():
    plain = {**to_plain(SPEC), "from_the_future": 1}
    assert from_plain(JobSpec, plain) == SPEC
    del plain["file"]
    with pytest.raises(SchemaError, match="file"):
        from_plain(JobSpec, plain)


def test_numbers_that_are_not_finite_survive():
    lossy = m.StepCommitted(trainer="t", epoch=1, step=2, at=0.0, step_s=1.0, samples=3, metrics={"loss": math.nan})
    assert math.isnan(decode_as(m.StepCommitted, encode(lossy)).metrics["loss"])


def test_whole_numbers_serve_as_floats_and_enums_as_their_values():
    spec = from_plain(JobSpec, {**to_plain(SPEC), "cpus_per_worker": 1, "kind": "serve"})
    assert (spec.cpus_per_worker, spec.kind) == (1.0, JobKind.SERVE)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a b"},
        {"workers": 0},
        {"spares": -1},
        {"file": "a.txt"},
        {"function": "a; b"},
        {"run_id": "../x"},
        {"checkpoint_every": -1},
        {"checkpoint_every": "often"},
        {"checkpoint_remote": "/a/folder"},
        {"checkpoint_remote": "s3://"},
        {"checkpoint_failures": -1},
        {"keep_every": -5},
        {"keep_for_s": math.inf},
    ],
)
def test_spec_that_cannot_run_is_refused_with_the_field_and_its_value(changes):
    from atoll.errors import SpecError

    field, value = next(iter(changes.items()))
    with pytest.raises(SpecError, match=field) as caught:
        check_spec(from_plain(JobSpec, {**to_plain(SPEC), **changes}))
    assert str(value) in str(caught.value)
