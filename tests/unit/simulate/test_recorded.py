"""Recorded workloads: what a line says is what the job is, and what is wrong is named."""

from __future__ import annotations

import pytest

from atoll.errors import SpecError
from atoll.simulate.cluster import islands
from atoll.simulate.progress import alone_s
from atoll.simulate.recorded import read

CLUSTER = islands(4, types=("v100",), each=4, island_nodes=4)
TABLE = """submitted_s,workers,duration_s,id,least,most,model,queue,priority
60,2,600,second,1,8,lm,research,70
0,4,100,,,,,,
"""


def test_table_says_when_and_how_large():
    first, second = read(TABLE.splitlines(), "jobs.csv", CLUSTER)
    assert (first.id, first.submitted_s, first.workers, first.sizes, first.queue) == (
        "job-00001",
        0.0,
        4,
        (4,),
        "default",
    )
    assert (second.id, second.sizes, second.model.name, second.priority) == ("second", (1, 2, 4, 8), "lm", 70)
    assert alone_s(second, "v100", CLUSTER) == pytest.approx(600.0)


def test_lines_of_json_say_the_same():
    lines = [
        '{"submitted_s": 5, "workers": 1, "duration_s": 30.5}',
        "",
        '{"submitted_s": 2, "workers": 2, "duration_s": 7}',
    ]
    assert [j.workers for j in read(lines, "jobs.jsonl", CLUSTER)] == [2, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"workers": 1, "duration_s": 1}', "line 1: submitted_s is missing"),
        ('{"submitted_s": 0, "workers": "many", "duration_s": 1}', "line 1: workers='many' is no int"),
        ('{"submitted_s": -1, "workers": 1, "duration_s": 1}', "line 1: submitted_s=-1: 0 or more"),
        ('{"submitted_s": 0, "workers": 1, "duration_s": "nan"}', "duration_s='nan'"),
        ('{"submitted_s": 0, "workers": 1, "duration_s": 1, "gpus": 2}', "line 1: column 'gpus' is not one of"),
        ('{"submitted_s": 0, "workers": 1, "duration_s": 1, "model": "gpt"}', "line 1: model='gpt': one of resnet-18"),
        ('{"submitted_s": 0, "workers": 2, "duration_s": 1, "least": 3}', "least=3, workers=2, most=2: in this order"),
        ('{"submitted_s": 0, "workers": 99, "duration_s": 1}', "99 workers never fit: the cluster has 16 devices"),
        ('{"submitted_s": 0, "workers": 1, "duration_s": 1, "queue": "a/b"}', "queue='a/b'"),
        ("nothing", "line 1 is not JSON"),
        ("[1]", "line 1 is not an object"),
        ("", "has no job in it"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(line, words):
    with pytest.raises(SpecError, match=r"jobs\.jsonl") as error:
        read([line], "jobs.jsonl", CLUSTER)
    assert words in str(error.value)


def test_two_jobs_of_one_name_are_refused():
    line = '{"submitted_s": 0, "workers": 1, "duration_s": 1, "id": "twin"}'
    with pytest.raises(SpecError, match="two jobs are called 'twin'"):
        read([line, line], "jobs.jsonl", CLUSTER)
