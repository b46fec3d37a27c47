import json
import os
from types import SimpleNamespace

import pytest

from atoll import config, launch
from atoll.config import Config, RayJob
from atoll.errors import AuthError, ConnectError


def a_cluster(home, key="127-0-0-1-6379", url="http://127.0.0.1:8440", ray="127.0.0.1:6379", mode=0o600, at=1.0):
    folder = home / "clusters" / key
    folder.mkdir(parents=True)
    file = folder / "cluster.json"
    file.write_text(json.dumps({"rest_url": url, "ray_address": ray}))
    file.chmod(mode)
    os.utime(file, (at, at))
    return file


def test_environment_is_read_once_into_settings(tmp_path):
    job = {"metadata": {"job_submission_id": "raysubmit_1"}, "runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}
    found = config.load(
        {"ATOLL_HOME": str(tmp_path), "ATOLL_ADDRESS": "h:1", "ATOLL_TOKEN": "t", "RAY_ADDRESS": "10.0.0.1:6379"}
        | {"ATOLL_HOST": "10.0.0.2", "GLOO_SOCKET_IFNAME": "eth1"}
        | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    )
    assert found == Config(
        home=tmp_path,
        address="h:1",
        token="t",
        host="10.0.0.2",
        nic="eth1",
        ray_address="10.0.0.1:6379",
        ray_job=RayJob(submission_id="raysubmit_1", working_dir_uri="gcs://_ray_pkg_1.zip"),
    )


def test_empty_variables_count_as_unset():
    found = config.load({"ATOLL_HOME": "", "ATOLL_ADDRESS": "", "RAY_ADDRESS": ""})
    assert (found.home.name, found.address, found.ray_address) == (".atoll", None, None)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"metadata": 3}', '{"metadata": {"job_submission_id": 3}}', "null"])
def test_ray_job_config_in_another_form_is_passed_over(text):
    assert config.load({"RAY_JOB_CONFIG_JSON_ENV_VAR": text}).ray_job is None


def test_local_working_directory_of_a_ray_job_is_no_uri():
    text = '{"metadata": {"job_submission_id": "a"}, "runtime_env": {"working_dir": "/tmp/x"}}'
    assert config.load({"RAY_JOB_CONFIG_JSON_ENV_VAR": text}).ray_job == RayJob(submission_id="a", working_dir_uri=None)


def test_newest_cluster_is_meant_unless_ray_address_names_another(tmp_path):
    a_cluster(tmp_path, "a", "http://127.0.0.1:1", "10.0.0.1:1", at=1.0)
    a_cluster(tmp_path, "b", "http://127.0.0.1:2", "10.0.0.1:2", at=2.0)
    settings = Config(home=tmp_path, token="t")
    assert config.locate(settings).url == "http://127.0.0.1:2"
    assert config.locate(Config(home=tmp_path, token="t", ray_address="10.0.0.1:1")).url == "http://127.0.0.1:1"
    assert config.locate(settings, "example:80").url == "http://example:80"


def test_cluster_file_that_others_may_write_is_not_believed(tmp_path):
    a_cluster(tmp_path, mode=0o666)
    with pytest.raises(ConnectError, match="atoll up"):
        config.locate(Config(home=tmp_path, token="t"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rest_url": 3, "ray_address": "a"}'])
def test_damaged_cluster_file_is_passed_over(tmp_path, text):
    a_cluster(tmp_path).write_text(text)
    assert config.known_clusters(tmp_path) == []


def test_token_is_the_environments_or_the_files(tmp_path):
    assert config.read_token(Config(home=tmp_path, token="t")) == "t"
    (tmp_path / "token").write_text("from-file\n")
    assert config.read_token(Config(home=tmp_path)) == "from-file"
    (tmp_path / "token").write_text("\n")
    with pytest.raises(AuthError, match="is empty"):
        config.read_token(Config(home=tmp_path))


def test_addresses_become_urls_and_cluster_keys():
    assert config.as_url("127.0.0.1:8440") == "http://127.0.0.1:8440"
    assert config.as_url("https://a/b/") == "https://a/b"
    assert config.cluster_key("127.0.0.1:6379") == "127-0-0-1-6379"


@pytest.mark.parametrize(("given", "used"), [("anns", "anns"), (None, "clusters-own")])
def test_driver_in_a_ray_cluster_submits_with_the_token_that_it_was_given(tmp_path, monkeypatch, given, used):
    info = SimpleNamespace(rest_url="http://127.0.0.1:1", token="clusters-own")
    bootstrap = SimpleNamespace(ensure=lambda *_, **__: info)
    monkeypatch.setattr(launch, "_bootstrap", lambda: bootstrap)
    found = launch.find(Config(home=tmp_path, token=given, ray_address="10.0.0.1:1"), None, may_embed=False, say=print)
    assert found.target.token == used
