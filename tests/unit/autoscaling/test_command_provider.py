"""Machines by commands of the user: real processes, no shell."""

import json
import sys

import pytest

from atoll.control_plane.autoscaling.command_provider_runtime import CommandProvider, commands_of, filled
from atoll.control_plane.autoscaling.facts import Machine
from atoll.control_plane.autoscaling.provider import Order, ProviderFailed, SoldOut
from atoll.errors import SpecError

RACK = """
import json, pathlib, sys
here, act, *rest = pathlib.Path("machines"), *sys.argv[1:]
machines = json.loads(here.read_text()) if here.exists() else {}
if act == "list":
    print("\\n".join(f"{name} {kind}" for name, kind in machines.items()))
elif act == "end":
    machines.pop(rest[0], None)
elif rest[0] == "none":
    sys.exit("nothing left") if False else (print("no more", file=sys.stderr), sys.exit(75))
elif rest[0] == "hang":
    import time; time.sleep(30)
elif rest[0] == "break":
    sys.exit("no such rack")
else:
    machines[rest[1]] = rest[0]
    pathlib.Path("order").write_text(json.dumps([rest, json.load(sys.stdin)]))
here.write_text(json.dumps(machines))
"""


@pytest.fixture
def provider(tmp_path):
    (tmp_path / "rack.py").write_text(RACK)
    rack = [sys.executable, "-S", "rack.py"]
    settings = {
        "launch": [*rack, "start", "{kind}", "{instance}", "{labels}", "{resources}"],
        "terminate": [*rack, "end", "{instance}"],
        "list": [*rack, "list"],
        "deadline_s": 5,
    }
    return CommandProvider(commands_of(settings, "f"), str(tmp_path))


def order(instance, kind="good"):
    return Order(instance=instance, kind=kind, labels={"zone": "z", "island": "$(i)"}, resources={"CPU": 4.0})


def test_machines_are_started_listed_and_ended(provider, tmp_path):
    provider.launch(order("one"))
    provider.launch(order("two"))
    assert set(provider.machines()) == {Machine(instance="one", kind="good"), Machine(instance="two", kind="good")}
    words, said = json.loads((tmp_path / "order").read_text())
    assert words == ["good", "two", "zone=z,island=$(i)", '{"CPU": 4.0}']
    assert said["labels"] == {"zone": "z", "island": "$(i)"}
    provider.terminate("one")
    provider.terminate("one")
    assert provider.machines() == (Machine(instance="two", kind="good"),)


def test_status_of_sold_out_is_told_from_a_failure(provider):
    with pytest.raises(SoldOut, match="none is sold out: no more"):
        provider.launch(order("x", "none"))
    with pytest.raises(ProviderFailed, match="ended with 1: no such rack") as caught:
        provider.launch(order("x", "break"))
    assert not isinstance(caught.value, SoldOut)


def test_command_that_hangs_or_is_missing_is_a_failure(provider, tmp_path):
    slow = CommandProvider(commands_of({**_words(provider), "deadline_s": 0.3}, "f"), str(tmp_path))
    with pytest.raises(ProviderFailed, match=r"took more than 0.3 s"):
        slow.launch(order("x", "hang"))
    with pytest.raises(ProviderFailed, match="cannot run nothing-here"):
        CommandProvider(commands_of({**_words(provider), "list": ["nothing-here"]}, "f"), str(tmp_path)).machines()


def _words(provider):
    commands = provider._commands
    return {"launch": list(commands.launch), "terminate": list(commands.terminate), "list": list(commands.list)}


def test_names_in_braces_are_replaced_once_and_nothing_else():
    assert filled("a{x}b{y}{x}", {"x": "{y}", "y": "1"}) == "a{y}b1{y}"
    assert filled("{z} {", {"x": "1"}) == "{z} {"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "launch = None: it is a list of words"),
        ({"launch": ["l"], "terminate": "t", "list": ["l"]}, "terminate = 't'"),
        ({"launch": ["l"], "terminate": ["t"], "list": ["l"], "soldout": 3}, "soldout: unknown key"),
        ({"launch": ["l"], "terminate": ["t"], "list": ["l"], "deadline_s": 0}, "more than 0"),
    ],
)
def test_settings_that_could_not_work_are_refused(settings, words):
    with pytest.raises(SpecError, match=words):
        commands_of(settings, "f")
