"""The published description is that of the application, and tells all that it names."""

import json
import re
from pathlib import Path

import pytest
from rest_app import description, published

from atoll.control_plane.permissions import TABLE


@pytest.fixture
def told():
    return description()


def test_published_description_is_that_of_the_application():
    kept = (Path(__file__).resolve().parents[3] / "docs" / "openapi.json").read_text(encoding="utf-8")
    assert kept == published(), "read the difference, then: python tests/support/rest_app.py > docs/openapi.json"


def test_everything_that_is_referred_to_is_described(told):
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(told)))
    assert named <= set(told["components"]["schemas"])


def test_every_endpoint_but_the_description_itself_is_told_with_its_purpose(told):
    found = {(m.upper(), p): o for p, operations in told["paths"].items() for m, o in operations.items()}
    assert set(found) == set(TABLE) - {("GET", "/api/openapi.json")}
    assert not [where for where, operation in found.items() if not operation.get("description")]


def test_every_refusal_is_a_problem_and_only_health_asks_for_no_token(told):
    for path, operations in told["paths"].items():
        for operation in operations.values():
            assert "ProblemView" in json.dumps(operation["responses"]["default"])
            assert "HTTPValidationError" not in json.dumps(operation)
            assert (operation.get("security") == []) is (path == "/api/health")
    assert told["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
