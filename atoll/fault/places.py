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

# Those that a save passes: on the trainer's threads, in its I/O process, and where the leader decides.
CHECKPOINT_FAILPOINTS = (
    "save-begun",
    "before-layout",
    "before-staging",
    "in-staging",
    "after-staging",
    "before-handover",
    "after-handover",
    "job-taken",
    "before-directory",
    "after-directory",
    "file-opened",
    "in-blocks",
    "before-edges",
    "after-blocks",
    "before-pack-sync",
    "after-pack-sync",
    "files-durable",
    "before-table",
    "after-table",
    "between-pack-and-sidecar",
    "before-link",
    "after-link",
    "word-durable",
    "before-answer",
    "before-claim",
    "after-claim",
    "before-judging",
    "before-record",
    "after-record",
    "before-telling",
    "before-retention",
    "before-removal",
    "after-removal",
    "before-request",
    "after-request",
    "before-rescue",
)

# Those of them that only the I/O process passes, and not the trainer itself.
_TAKEN, _LINKED = CHECKPOINT_FAILPOINTS.index("job-taken"), CHECKPOINT_FAILPOINTS.index("before-link")
IO_FAILPOINTS = (*CHECKPOINT_FAILPOINTS[_TAKEN:_LINKED], "word-durable", "before-answer")

# Those that a copy to a remote store passes.
UPLOAD_FAILPOINTS = (
    "before-upload",
    "in-upload",
    "before-decision",
    "after-decision",
    "after-upload",
    "before-remote-removal",
    "after-withdrawal",
)
