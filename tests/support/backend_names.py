"""Names of the scenarios in `backend_scenarios`, for tests that must not import torch."""

from __future__ import annotations

MOVES = ["broadcast", "all_gather", "gather_and_scatter", "all_to_all", "messages", "objects"]
SUMS = ["all_reduce", "reduce", "reduce_scatter", "all_reduce_of_several"]
AT_THREE = [*SUMS, *MOVES, "ddp", "pipelines"]
AT_FOUR = [
    *SUMS, *MOVES, "handles", "groups", "many_at_once", "ddp", "ddp_hooks", "fsdp", "tensor_parallel", "pipelines",
    "checkpoints",
]  # fmt: skip
