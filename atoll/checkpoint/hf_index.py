"""What makes a folder of safetensors files one model for Hugging Face's readers: the index of which file holds what."""

from __future__ import annotations

import json
from collections.abc import Mapping

INDEX = "model.safetensors.index.json"
# Small texts that make a folder of weights a model for other programs.
CONFIGS = ("config.json", "generation_config.json")
BESIDE = frozenset({INDEX, *CONFIGS})


def index_text(files: Mapping[str, str], total_bytes: int) -> str:
    """The index's content: `files` has the file of each tensor, `total_bytes` is what all tensors hold."""
    return json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": dict(files)}, separators=(",", ":"))
