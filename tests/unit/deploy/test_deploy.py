"""Every file of deploy/ parses, rendered ones are what the command prints, and dashboards show what is exported."""

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from atoll.cli_cluster import rendered
from atoll.control_plane.autoscaling.spec_fields import schema
from atoll.schema.ids import NodeId, RunId
from atoll.schema.spec import JobKind
from atoll.schema.views import CheckpointView, MetricPoint, NodeView, RunState, RunView
from atoll.ui.prometheus import render

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
RENDERED = {
    "ray-up/aws.yaml": ("ray-up", "aws"),
    "ray-up/gcp.yaml": ("ray-up", "gcp"),
    "ray-up/local.yaml": ("ray-up", "local"),
    "kuberay/raycluster.yaml": ("kuberay", "kuberay"),
    "external/autoscaling.yaml": ("external", "external"),
}
KNOWN = {".toml", ".yaml", ".yml", ".json", ".service", ".md", ""}


def files(*suffixes):
    return sorted(p for p in DEPLOY.rglob("*") if p.is_file() and p.suffix in suffixes)


@pytest.mark.parametrize("path", RENDERED)
def test_rendered_file_is_what_the_command_prints(path):
    target, source = RENDERED[path]
    assert (DEPLOY / path).read_text("utf-8") == rendered(DEPLOY / f"{source}.autoscaler.toml", target)


@pytest.mark.parametrize("path", files(".toml"), ids=lambda p: p.name)
def test_source_fits_the_published_schema(path):
    jsonschema.Draft202012Validator(schema()).validate(tomllib.loads(path.read_text("utf-8")))


@pytest.mark.parametrize("path", files(".yaml", ".yml"), ids=lambda p: p.name)
def test_yaml_parses_and_kubernetes_objects_are_named(path):
    documents = list(yaml.safe_load_all(path.read_text("utf-8")))
    assert all(isinstance(d, dict) for d in documents)
    if path.parent.name == "kuberay":
        assert all({"apiVersion", "kind", "metadata"} <= set(d) and d["metadata"]["name"] for d in documents)
        assert {d["metadata"].get("namespace", d["metadata"]["name"]) for d in documents} == {"atoll"}


@pytest.mark.parametrize("provider", ["aws", "gcp", "local"])
def test_ray_up_examples_are_what_ray_accepts(provider):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((DEPLOY / f"ray-up/{provider}.yaml").read_text("utf-8"))))


def test_every_file_is_of_a_kind_that_is_looked_at():
    found = {p.relative_to(DEPLOY) for p in DEPLOY.rglob("*") if p.is_file()}
    assert {p.suffix for p in found} <= KNOWN
    assert set(RENDERED) == {str(p) for p in found if p.suffix == ".yaml"} - {"kuberay/access.yaml"}


# -- systemd -----------------------------------------------------------------------------------------------------------


class Unit(configparser.RawConfigParser):
    """A unit file: keys may come again, and their case counts."""

    def __init__(self):
        super().__init__(strict=False, dict_type=dict, interpolation=None, comment_prefixes=("#",), delimiters=("=",))

    def optionxform(self, optionstr):
        return optionstr


@pytest.mark.parametrize("path", files(".service"), ids=lambda p: p.name)
def test_unit_runs_as_its_own_user_with_commands_that_exist(path):
    text = path.read_text("utf-8")
    unit = Unit()
    unit.read_string(text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    assert unit["Service"]["User"] == "atoll"
    commands = re.findall(r"^Exec(?:Start|Stop)=(\S+) (\S+)", text, re.MULTILINE)
    assert commands
    for program, word in commands:
        assert program in {"/opt/atoll/bin/atoll", "/opt/atoll/bin/ray", "/bin/sleep"}
        if program.endswith("/atoll"):
            assert word in atoll_commands()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_but_that_the_programs_are_not_installed_here():
    words = ["systemd-analyze", "verify", "--man=no", *map(str, files(".service"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    wrong = [line for line in done.stderr.splitlines() if "is not executable: No such file" not in line]
    assert wrong == []


def atoll_commands():
    import typer

    from atoll.cli import app

    return set(typer.main.get_command(app).commands)


# -- the image ---------------------------------------------------------------------------------------------------------


def test_image_is_built_in_stages_and_runs_as_nobody_special():
    lines = (DEPLOY / "Containerfile").read_text("utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith(("#", " "))]
    stages = [w for w in words if w[0] == "FROM"]
    assert len(stages) == 2
    assert stages[0][-2:] == ["AS", "build"]
    users = [w[1] for w in words if w[0] == "USER"]
    assert users == ["1000:1000"]
    copied = [w for w in words if w[0] == "COPY"]
    root = DEPLOY.parent
    assert all((root / source).exists() for w in copied if not w[1].startswith("--from") for source in w[1:-1])
    assert any(w[1] == "--from=build" for w in copied)


# -- what is measured --------------------------------------------------------------------------------------------------


def exported():
    """The names of everything that is exported for a run and a node of which all is known."""
    last = MetricPoint(step=2, at=0.0, step_s=1.0, samples=8, members=2, epoch=1, metrics={"loss": 1.0})
    saved = CheckpointView(run=RunId("r"), step=1, path="p", bytes=1, seconds=1.0, at=0.0)
    run = RunView(
        run=RunId("r"),
        name="r",
        kind=JobKind.TRAIN,
        state=RunState.RUNNING,
        reason="",
        submitted_at=0.0,
        ended_at=None,
        epoch=1,
        workers_wanted=2,
        members=2,
        spares=0,
        step=2,
        last=last,
        checkpoint=saved,
    )
    node = NodeView(node=NodeId("n"), address="a", alive=True, cpus=1.0, gpus=1.0, cpus_free=1.0, agent=True)
    return set(re.findall(r"^# TYPE (\S+)", render([run], [node]), re.MULTILINE))


def test_dashboard_shows_only_what_is_exported():
    board = json.loads((DEPLOY / "grafana/atoll.json").read_text("utf-8"))
    expressions = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    expressions += [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    shown = {name for text in expressions for name in re.findall(r"\batoll_\w+", text)}
    assert shown
    assert shown <= exported()
    assert all(re.search(r"\batoll_\w+", text) for text in expressions)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(cells)) == len(cells)


def test_prometheus_scrapes_the_path_that_is_served_with_a_token():
    (job,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"]
