"""Refusals as answers to requests."""

from __future__ import annotations

from atoll.errors import AtollError
from atoll.schema.views import ProblemView


def problem(error: AtollError, remedy: str = "") -> ProblemView:
    """An error as an answer."""
    return ProblemView(code=error.code, problem=str(error), remedy=remedy)
