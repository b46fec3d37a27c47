"""Specs are shown to every viewer, so a URI with credentials is refused, in words that do not repeat them."""

import pytest

from atoll.errors import SpecError
from atoll.schema.spec import JobSpec, check_spec

FINE = (
    "s3://bucket/folder?region=eu-west-1&endpoint_override=minio:9000",
    "gs://anonymous@bucket/x",
    "abfss://container@account.dfs.core.windows.net/x",
    "hdfs://ann@namenode:8020/x",
    "s3://bucket/ann@home/x",
    "file:///mnt/x",
)
TELLING = (
    "s3://AKIA:hidden@bucket/x",
    "s3://hidden@bucket/x",
    "hdfs://ann:hidden@namenode/x",
    "abfss://container:hidden@account.dfs.core.windows.net/x",
    "abfss://c@a.dfs.core.windows.net/x?client_secret=hidden",
    "S3://a:hidden@bucket",
)


def spec(**changes):
    return JobSpec(**{"name": "a", "working_dir": "/w", "file": "a.py", **changes})


@pytest.mark.parametrize("uri", FINE)
def test_uri_without_credentials_is_taken(uri):
    assert check_spec(spec(checkpoint_remote=uri)).checkpoint_remote == uri


@pytest.mark.parametrize("field", ["checkpoint_remote", "working_dir_uri"])
@pytest.mark.parametrize("uri", TELLING)
def test_uri_with_credentials_is_refused_and_not_repeated(field, uri):
    with pytest.raises(SpecError, match=f"{field}: credentials .* AWS_ACCESS_KEY_ID") as caught:
        check_spec(spec(**{field: uri}))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["https://hidden@host/a.zip", "https://h/a.zip?X-Amz-Signature=hidden", "https://h/a?sig=x"]
)
def test_address_of_a_package_with_a_key_in_it_is_refused(uri):
    with pytest.raises(SpecError, match="working_dir_uri: credentials"):
        check_spec(spec(working_dir_uri=uri))
