"""The keys of a job file: the fields of `JobSpec`, with what people are told of each, and their JSON schema.

Types and defaults are those of the dataclass, so that a file, a request and a Python call mean the same. Beside them
stands here what a type cannot say: one sentence, the least value, the words to choose from. `check_spec` remains the
judge; a test holds the two equal at every bound. A field in seconds, `keep_for_s`, may be written with a unit (`"2h"`),
and then also without the ending (`keep_for`).
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from dataclasses import dataclass
from typing import Any

from atoll.schema.sharing import (
    MOST_ALTERNATIVES,
    MOST_COUNT,
    MOST_DEVICES,
    MOST_MEASURED,
    MOST_S,
    MOST_SIZES,
    PRIORITIES,
)
from atoll.schema.spec import (
    AUTO,
    EVICT,
    MOST_SPARES,
    MOST_STOP_GRACE_S,
    MOST_WORKERS,
    ROLLBACK,
    SKIP,
    STOP,
    JobKind,
    JobSpec,
)

# Given by whoever submits, not by the file.
NOT_IN_FILES = frozenset({"run_id", "working_dir_uri", "owner"})
# A file must say these; the rest has a default, the name that of the file.
REQUIRED = ("file",)
SECONDS = "_s"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is said of a key beside its type."""

    text: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    items: int | None = None
    among: tuple[str, ...] = ()
    pattern: str = ""


NOTES: dict[str, Note] = {
    "name": Note(text="Name of the job, the beginning of its run ids; the file's own name unless given."),
    "kind": Note(text="What the run's processes do.", among=tuple(JobKind)),
    "working_dir": Note(text="Folder that trainers run in, relative to the job file, which lies in it unless given."),
    "file": Note(text="Python file with the training function, relative to the job file."),
    "function": Note(text="Dotted name of the top-level function that trains."),
    "model": Note(text="Function or class of the same file that builds the bare module, for `atoll serve`."),
    "tokenizer": Note(text="Tokenizer of a served model."),
    "config": Note(text="JSON values handed to the function as `ctx.config`."),
    "workers": Note(
        text="Trainers with a rank: 4, or elastic: '2..16' (any number from 2 to 16) or '2,4,8' (one of these).",
        least=1,
        most=MOST_WORKERS,
        pattern=r"^\s*\d+(\.\.\d+|(\s*,\s*\d+)*)\s*$",
    ),
    "min_workers": Note(text="With how many workers it can do; `workers = '2..16'` says the same.", least=1),
    "worker_sizes": Note(
        text="The only numbers of workers it can run with, ascending; `workers = '2,4,8'` says the same.",
        items=MOST_SIZES,
    ),
    "spares": Note(text="Warm trainers without a rank.", least=0, most=MOST_SPARES),
    "queue": Note(text="The queue in which it waits."),
    "team": Note(text="Who is charged for it."),
    "priority": Note(text="Larger is served first within its queue.", least=PRIORITIES.start, most=PRIORITIES.stop - 1),
    "expected_s": Note(text="How long it will take, as far as its owner knows.", above=0, most=MOST_S),
    "alternatives": Note(
        text="Ways to place its workers, the dearest first; wherever there is room unless given.",
        items=MOST_ALTERNATIVES,
    ),
    "speeds": Note(text="Samples a second of one worker alone, by device, until they are measured."),
    "batch": Note(text="Samples of a step, until its first one tells.", least=0, most=MOST_COUNT),
    "sync_mib": Note(
        text="MiB of gradients that its workers add up in a step, until the first one tells.",
        least=0,
        most=MOST_MEASURED,
    ),
    "cpus_per_worker": Note(text="CPUs that each trainer holds.", least=0, most=MOST_DEVICES),
    "gpus_per_worker": Note(text="GPUs that each trainer holds.", least=0, most=MOST_DEVICES),
    "threads_per_worker": Note(
        text="Threads of torch in each trainer; as many as its share of the cores unless given."
    ),
    "env": Note(text="Environment variables of the trainers."),
    "seed": Note(text="Seed of data order, dropout and initial weights."),
    "checkpoint_dir": Note(text="Folder of the checkpoints, relative to the job file; the run's own unless given."),
    "checkpoint_every": Note(
        text="Steps between checkpoints, 0 for never, or `auto`.", least=0, most=MOST_COUNT, among=(AUTO,)
    ),
    "checkpoint_failures": Note(
        text="So many saves in a row may fail, one more stops the run; left out: a failed save never does.",
        least=0,
        most=MOST_COUNT,
    ),
    "checkpoint_remote": Note(text="URI to which each durable checkpoint is copied."),
    "keep_checkpoints": Note(text="So many of the last checkpoints are kept.", least=1, most=MOST_COUNT),
    "keep_every": Note(
        text="Checkpoints of steps divisible by this are kept too; 0 for none.", least=0, most=MOST_COUNT
    ),
    "keep_for_s": Note(text="Checkpoints younger than this are kept too.", least=0, most=MOST_S),
    "resume": Note(text="Folder of checkpoints, or one of them, to start from; relative to the job file."),
    "nonfinite": Note(text="What a step that is not finite does to the run.", among=(STOP, SKIP)),
    "compare_every": Note(
        text="Steps between comparisons of replicas; 0 for never, left out: as often as is cheap.",
        least=0,
        most=MOST_COUNT,
    ),
    "corrupt": Note(text="What becomes of the steps that a corrupt replica had a part in.", among=(EVICT, ROLLBACK)),
    "stop_grace_s": Note(
        text="How long a stopped run may take to its next step boundary; then it is ended.",
        least=0,
        most=MOST_STOP_GRACE_S,
    ),
    "chaos": Note(text="Trainers may be hurt on purpose."),
    "detach": Note(text="The run outlives the command that submits it."),
}


def hints() -> dict[str, Any]:
    """Key -> type, in the order of `JobSpec`."""
    known = {**typing.get_type_hints(JobSpec), "workers": int | str}
    return {f.name: known[f.name] for f in dataclasses.fields(JobSpec) if f.name not in NOT_IN_FILES}


def field_of(key: str) -> str:
    """The field that a key of a file stands for: its own, or that of `keep_for_s` for `keep_for`."""
    known = hints()
    return key + SECONDS if key not in known and key + SECONDS in known else key


def keys() -> list[str]:
    """Every key that a job file may hold."""
    return [*hints(), *(name.removesuffix(SECONDS) for name in hints() if name.endswith(SECONDS))]


def json_schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    defaults = {f.name: f.default for f in dataclasses.fields(JobSpec) if f.default is not dataclasses.MISSING}
    properties: dict[str, Any] = {}
    for name, kind in hints().items():
        described = _described(name, kind)
        if defaults.get(name) not in {None, ()}:
            described["default"] = defaults[name]
        properties[name] = described
        if name.endswith(SECONDS):
            properties[name.removesuffix(SECONDS)] = described
    return {
        "$schema": _DIALECT,
        "$id": "https://atoll.invalid/job.schema.json",
        "title": "Atoll job",
        "description": "A job file in TOML or YAML, as `atoll run`, `submit` and `validate` read it.",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": False,
    }


def _described(name: str, kind: Any) -> dict[str, Any]:
    note = NOTES[name]
    forms = [_narrowed(form, note) for form in _forms(kind)]
    if name.endswith(SECONDS):
        forms.append({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(s|m|min|h)?\s*$"})
    shape = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {"description": note.text, **shape}


def _forms(kind: Any) -> list[dict[str, Any]]:
    """Schemas of the alternatives of a type; None, which a file leaves out, is none of them."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return [form for option in args if option is not type(None) for form in _forms(option)]
    if origin is dict:
        inner = {} if args[1] is Any else _forms(args[1])[0]
        return [{"type": "object", "additionalProperties": inner}]
    if origin in {tuple, list}:
        return [{"type": "array", "items": _forms(args[0])[0]}]
    if dataclasses.is_dataclass(kind):
        return [_table(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [{"type": "string", "enum": [m.value for m in kind]}]
    return [{"type": _SCALARS[getattr(kind, "__supertype__", kind)]}]


def _table(kind: Any) -> dict[str, Any]:
    known = typing.get_type_hints(kind)
    options = {f.name: _forms(known[f.name]) for f in dataclasses.fields(kind)}
    properties = {name: forms[0] if len(forms) == 1 else {"anyOf": forms} for name, forms in options.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _narrowed(form: dict[str, Any], note: Note) -> dict[str, Any]:
    if form["type"] in {"integer", "number"}:
        bounds = {"minimum": note.least, "exclusiveMinimum": note.above, "maximum": note.most}
        return form | {name: bound for name, bound in bounds.items() if bound is not None}
    if form["type"] == "array" and note.items is not None:
        return form | {"maxItems": note.items}
    if form["type"] == "string" and note.pattern:
        return {**form, "pattern": note.pattern}
    if form["type"] == "string" and note.among:
        return {**form, "enum": list(note.among)}
    return form
