"""The named places of the code where a fault can be made to happen: data, for tests and for plans of faults."""

from __future__ import annotations

# The places, in the order in which one step passes them. Tests walk this list.
FAILPOINTS = (
    "step-entry",
    "before-backward",
    "in-bucket",
    "after-backward",
    "before-vote",
    "after-vote",
    "in-update",
    "after-update",
    "before-ack",
    "after-ack",
    "in-regroup",
    "in-transfer",
)

# Those that a joiner passes that learns while the others train, and its teachers.
LEARNING_FAILPOINTS = ("in-lesson", "in-replay", "in-examination")

# Those that a save passes, on the writer's threads.
CHECKPOINT_FAILPOINTS = ("before-pack-sync", "between-pack-and-sidecar", "before-link", "after-link", "before-removal")
