"""With which other programs steps are exchanged."""

from __future__ import annotations

import enum


class Kind(enum.StrEnum):
    """What is imported."""

    DCP = "dcp"
    TORCH = "torch"
    HF = "hf"


class Form(enum.StrEnum):
    """What is made of a step."""

    HF = "hf"
    DCP = "dcp"
