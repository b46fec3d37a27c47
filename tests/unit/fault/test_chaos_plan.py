"""Plans of faults: what is due when, whom it means, and what a file may not say."""

import random

import pytest

from atoll.errors import SpecError
from atoll.fault import chaos
from atoll.schema.harm import Harm
from atoll.schema.views import TrainerView

PLAN = """
seed = 7
[[faults]]
at_s = 10
what = "kill"
whom = "rank 0"
[[faults]]
at_step = 80
what = "stop"
whom = "any"
for_s = 20
[[faults]]
at_s = 30
what = "die"
at = "in-regroup"
whom = "spare"
"""


def trainer(name, rank=None, role="worker"):
    return TrainerView(trainer=name, node="n", role=role, rank=rank, pid=1, state="training")


CREW = [trainer("b", 1), trainer("a", 0), trainer("c", 2), trainer("s", role="spare"), trainer("g", role="gone")]


def test_fault_is_due_once_its_time_or_its_step_has_come_and_then_never_again():
    course = chaos.Course(chaos.parse(PLAN, "plan.toml"))
    assert course.due(since_s=9.9, step=79) == []
    assert [f.what for f in course.due(since_s=10.0, step=0)] == [Harm.KILL]
    assert [f.what for f in course.due(since_s=11.0, step=81)] == [Harm.STOP]
    assert course.due(since_s=29.0, step=90) == []
    assert not course.over
    assert [f.at for f in course.due(since_s=40.0, step=90)] == ["in-regroup"]
    assert course.over


@pytest.mark.parametrize(
    ("whom", "found"),
    [("rank 0", ["a"]), ("rank 7", []), ("spare", ["s"]), ("all", ["a", "b", "c"]), ("s", ["s"]), ("g", [])],
)
def test_words_for_whom_name_trainers_that_are_there(whom, found):
    fault = chaos.Fault(what=Harm.KILL, whom=whom, at_s=0)
    assert chaos.victims(fault, CREW, random.Random(1)) == found


def test_others_are_all_but_rank_0_and_chance_decides_among_them():
    fault = chaos.Fault(what=Harm.KILL, whom="others", at_s=0)
    chosen = {chaos.victims(fault, CREW, random.Random(seed))[0] for seed in range(30)}
    assert chosen == {"b", "c"}


def test_random_faults_come_so_often_on_average_and_are_the_same_for_the_same_seed():
    text = 'seed = {}\n[random]\nevery_s = 20\nuntil_s = 20000\nwhat = ["kill", "stop"]'
    faults = chaos.parse(text.format(3), "p").faults
    assert 900 < len(faults) < 1100
    assert {f.what for f in faults} == {Harm.KILL, Harm.STOP}
    assert all(f.for_s > 0 for f in faults if f.what is Harm.STOP)
    assert faults == chaos.parse(text.format(3), "p").faults
    assert faults != chaos.parse(text.format(4), "p").faults


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 1", "names no fault"),
        ("faults = 3", r"\[\[faults\]\] tables"),
        ("[[faults]]\nat_s = 1\nwhat = 'burn'", "what='burn'; there are kill, stop"),
        ("[[faults]]\nat_s = 1\nat_step = 2\nwhat = 'kill'", "either at_s"),
        ("[[faults]]\nwhat = 'kill'", "either at_s"),
        ("[[faults]]\nat_s = -1\nwhat = 'kill'", "at_s=-1"),
        ("[[faults]]\nat_s = 1\nwhat = 'kill'\nfor_s = 3", "kill is for good"),
        ("[[faults]]\nat_s = 1\nwhat = 'die'", "die needs"),
        ("[[faults]]\nat_s = 1\nwhat = 'kill'\nat = 'in-regroup'", "only die has"),
        ("[[faults]]\nat_s = 1\nwhat = 'kill'\nwhom = ''", "whom=''"),
        ("[[faults]]\nat_s = 1\nwhat = 'kill'\nwho = 'all'", "who means nothing"),
        ("[random]\nevery_s = 0\nuntil_s = 5", "every_s=0"),
        ("[random]\nevery_s = 1\nuntil_s = 5\nwhat = ['die']", "needs a place"),
        ("seed = [", "is no TOML"),
    ],
)
def test_file_that_says_something_else_is_refused_with_its_place(text, problem):
    with pytest.raises(SpecError, match=problem) as raised:
        chaos.parse(text, "plan.toml")
    assert "plan.toml" in str(raised.value)
