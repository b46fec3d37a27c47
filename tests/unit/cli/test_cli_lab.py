"""`atoll lab` as far as it needs no lab: reading files, choosing a lab, tables."""

import io
from pathlib import Path

import lab_specs
import pytest
from rich.console import Console
from typer.testing import CliRunner

from atoll import cli_lab, cli_lab_tables
from atoll.cli import app
from atoll.errors import NotFoundError, SpecError
from atoll.lab.bench_runtime import Measurement
from atoll.lab.fs_state import Labs, Record
from atoll.lab.layout import lay_out
from atoll.lab.measuring import ways
from atoll.lab.status_runtime import HostStatus, LabStatus, NicStatus

EXAMPLES = Path(__file__).resolve().parents[3] / "examples/lab"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path))
    return tmp_path


def shown(*parts):
    out = io.StringIO()
    console = Console(file=out, width=100)
    for part in parts:
        console.print(part, markup=False)
    return out.getvalue()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda f: f.stem)
def test_the_examples_are_labs_named_as_their_files(file):
    assert cli_lab.read_spec(file).name == file.stem.replace("_", "-")


def test_a_lab_may_be_raised_under_another_name():
    assert cli_lab.read_spec(EXAMPLES / "trunk.toml", "mine").name == "mine"
    with pytest.raises(SpecError, match="--name"):
        cli_lab.read_spec(EXAMPLES / "trunk.toml", "No Name")


def test_a_file_that_is_not_there_is_told_by_name(tmp_path):
    with pytest.raises(SpecError, match=r"cannot read the lab file .*nothing\.toml"):
        cli_lab.read_spec(tmp_path / "nothing.toml")


def test_without_a_lab_the_next_thing_to_do_is_told(home):
    with pytest.raises(NotFoundError, match="atoll lab up FILE"):
        CliRunner().invoke(app, ["lab", "down"], catch_exceptions=False)
    assert "no lab stands" in CliRunner().invoke(app, ["lab", "ls"]).stdout


def test_of_several_labs_one_must_be_named(home):
    for name in ("one", "two"):
        Labs(home).write(Record(name=name, id="0", spec=lab_specs.islands(name)))
    with pytest.raises(NotFoundError, match="--lab: one, two"):
        CliRunner().invoke(app, ["lab", "freeze", "e0"], catch_exceptions=False)


def test_the_table_of_a_lab_shows_rates_and_what_befell_hosts():
    nics = (
        NicStatus(nic="fast", network="east", address="10.64.0.1", declared=59.8e6, measured=59e6, cut=True),
        NicStatus(nic="slow", network="wide", address="10.66.0.1", declared=None, measured=None, cut=False),
    )
    host = HostStatus(host="e0", state="frozen", processes=3, cpus=0.5, labels={}, nics=nics)
    one = LabStatus(
        name="two",
        id="ab12",
        phase="up",
        user_namespace=True,
        ray_address="",
        hosts=(host,),
        slows=(("e0", "w0", 5e6),),
        notices=("no CPU quota",),
    )
    text = shown(*cli_lab_tables.lab(one))
    for part in ("frozen, fast cut", "478 Mbit/s", "472 Mbit/s", "unshaped", "user namespace", "5 Mbit/s at most"):
        assert part in text
    assert "no CPU quota" in text


def test_the_table_of_measurements_marks_what_is_far_off():
    layout = lay_out(lab_specs.islands())
    first, second, third, *_ = ways(layout, ["e0", "e1"], {})
    rows = [
        Measurement(way=first, bandwidth=first.declared),
        Measurement(way=second, bandwidth=second.declared / 2),
        Measurement(way=third, bandwidth=None),
    ]
    good, bad, none = shown(cli_lab_tables.measured(rows)).splitlines()[1:4]
    assert "1.00" in good
    assert "far off" not in good
    assert "0.50" in bad
    assert "far off" in bad
    assert "nothing came" in none
