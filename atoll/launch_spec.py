"""From a training function to the `JobSpec` that names it.

The function itself never travels: trainers load its file from the working directory and look it up by name. So it must
be a top-level function of a file, and whatever it is to be told must be JSON.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from atoll.errors import ScriptNotFound, SpecError
from atoll.schema.ids import RunId
from atoll.schema.job_file import ENDINGS, Document, parse, parse_metadata
from atoll.schema.job_keys import hints
from atoll.schema.nearest import nearest
from atoll.schema.sharing import Alternative, bounds
from atoll.schema.spec import JobKind, JobSpec, check_spec


class JobOptions(TypedDict, total=False):
    """What `atoll.run` takes beside the function. Most are fields of `JobSpec`, with its defaults.

    `model` may be the function itself, `working_dir` is the current directory unless given, and `address` names a
    cluster, as ATOLL_ADDRESS would.
    """

    address: str | None
    workers: int | str
    min_workers: int | None
    worker_sizes: tuple[int, ...]
    spares: int
    queue: str
    team: str | None
    priority: int
    expected_s: float | None
    alternatives: tuple[Alternative, ...]
    speeds: dict[str, float]
    name: str | None
    config: Mapping[str, Any] | None
    file: str | Path | None
    function: str | None
    model: Callable[[], Any] | str | None
    tokenizer: str
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int | None
    env: Mapping[str, str]
    seed: int
    checkpoint_dir: str | Path | None
    checkpoint_every: int | str
    checkpoint_failures: int | None
    checkpoint_remote: str | None
    keep_checkpoints: int
    keep_every: int
    keep_for_s: float
    resume: str | Path | None
    nonfinite: str
    compare_every: int | None
    corrupt: str
    stop_grace_s: float
    kind: JobKind
    chaos: bool
    working_dir: str | Path | None
    detach: bool


# These take more than being passed on.
_MADE = frozenset({"name", "file", "function", "model", "config", "env", "working_dir", "checkpoint_dir", "resume"})
_PLAIN = tuple(name for name in hints() if name not in _MADE)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def build(
    fn: Callable[..., Any] | None,
    options: JobOptions,
    *,
    cwd: Path,
    run_id: RunId | None = None,
    working_dir_uri: str | None = None,
) -> JobSpec:
    """The checked spec. Raises `ScriptNotFound` or `SpecError` with what to change."""
    working_dir = _absolute(options.get("working_dir") or cwd, cwd)
    function = options.get("function") or _function_name(fn)
    file = _file(fn, options, cwd)
    plain: dict[str, Any] = {key: options[key] for key in _PLAIN if key in options}  # type: ignore[literal-required]
    plain |= _bounds(options)
    return check_spec(
        JobSpec(
            name=options.get("name") or safe_name(file.stem),
            working_dir=str(working_dir),
            working_dir_uri=working_dir_uri,
            file=_inside(file, working_dir),
            function=function,
            model=_model_name(options.get("model")),
            config=_json_config(options.get("config")),
            env=_environment(options.get("env")),
            checkpoint_dir=_path_text(options.get("checkpoint_dir"), cwd),
            resume=_path_text(options.get("resume"), cwd),
            run_id=run_id,
            **plain,
        )
    )


def _bounds(options: JobOptions) -> dict[str, Any]:
    if "workers" not in options:
        return {}
    written = bounds(options["workers"])
    ranged = {"min_workers": written.min_workers, "worker_sizes": written.worker_sizes}
    return {"workers": written.workers} | ({} if written.min_workers is None else ranged)


def is_job_file(path: str | Path) -> bool:
    """True where `path` is named as a job file, not as a script."""
    return str(path).endswith(ENDINGS)


def read_document(path: str | Path, cwd: Path) -> tuple[Document, Path]:
    """The job file at `path`, checked for keys and types, and where it lies. Raises `ScriptNotFound`, `SpecError`."""
    file = _absolute(path, cwd)
    try:
        return parse(file.read_text(encoding="utf-8"), str(path)), file
    except (FileNotFoundError, IsADirectoryError):
        raise ScriptNotFound(f"no file {file}; give the path of a job file in TOML or YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as text: {error}") from None


def build_document(
    document: Document,
    file: Path,
    more: JobOptions | None = None,
    *,
    cwd: Path | None = None,
    run_id: RunId | None = None,
    working_dir_uri: str | None = None,
) -> JobSpec:
    """The checked spec of a job file, with `more` on top; its relative paths are from the file's own folder.

    A `working_dir_uri` is a copy of `cwd`, so that becomes the working directory. Raises `ScriptNotFound`, `SpecError`.
    """
    folder = file.parent
    options: Any = {"name": safe_name(file.stem), **document.options}
    options["working_dir"] = cwd if working_dir_uri and cwd else _absolute(options.get("working_dir", folder), folder)
    options["file"] = _absolute(options["file"], folder)
    for name in ("checkpoint_dir", "resume"):
        if options.get(name) is not None:
            options[name] = _absolute(options[name], folder)
    given: Any = dict(more or {})
    config = {**options.get("config", {}), **(given.pop("config", None) or {})}
    merged: Any = {**options, **given, "config": config}
    try:
        return build(None, merged, cwd=cwd or folder, run_id=run_id, working_dir_uri=working_dir_uri)
    except SpecError as error:
        raise document.located(error) from None


def read_job(path: str | Path, cwd: Path | None = None) -> JobSpec:
    """The spec in a job file, TOML or YAML. Raises `ScriptNotFound`, or `SpecError` with the lines at fault."""
    document, file = read_document(path, cwd or Path.cwd())
    return build_document(document, file)


def check_names(spec: JobSpec) -> None:
    """Raises `ScriptNotFound` where the program, read and not run, defines no such function, or is no Python.

    For those who ask beforehand: a program may make its names in ways that only show when it runs.
    """
    file = Path(spec.working_dir, spec.file)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except SyntaxError as error:
        raise ScriptNotFound(f"{file}:{error.lineno}: no Python: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptNotFound(f"{file} cannot be read: {error}") from None
    known = _names_bound(tree)
    for name in filter(None, (spec.function, spec.model)):
        top = name.partition(".")[0]
        if top not in known and "*" not in known:
            near = nearest(top, known)
            hint = f"; the nearest name in it is {near!r}" if near else ""
            raise ScriptNotFound(f"{spec.file} defines no {name!r} at its top level{hint}")


def _names_bound(tree: ast.Module) -> set[str]:
    """Names that the top level of a module binds, also below `if` and `try`; `*` where it imports all of another."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Lambda():
                pass
            case _:
                waiting += ast.iter_child_nodes(node)
    return names


# Keys of `ray job submit --metadata-json` that are Atoll's begin so.
METADATA = "atoll."


def metadata_options(metadata: Mapping[str, str]) -> JobOptions:
    """What `ray job submit --metadata-json` asks of Atoll. Raises `SpecError` that names the key and the nearest."""
    options: Any = parse_metadata(metadata, METADATA, "--metadata-json").options
    return cast("JobOptions", options)


def safe_name(text: str) -> str:
    """`text` as a job name."""
    return _UNSAFE.sub("-", text).strip("-._") or "job"


def script(path: str | Path, cwd: Path) -> Path:
    """The script at `path`. Raises `ScriptNotFound`."""
    found = _absolute(path, cwd)
    if not found.is_file():
        raise ScriptNotFound(f"no file {found}; give the path of the Python file with the training function")
    return found


def _file(fn: Callable[..., Any] | None, options: JobOptions, cwd: Path) -> Path:
    given = options.get("file")
    if given is not None:
        return script(given, cwd)
    if fn is None:
        raise ScriptNotFound("atoll.run needs a function, or file= and function=")
    source = inspect.getsourcefile(inspect.unwrap(fn))
    if source is None or not Path(source).is_file():
        raise ScriptNotFound(f"{fn!r} is in no file; trainers load the function from one: put it into a .py file")
    return Path(source).absolute()


def _function_name(fn: Callable[..., Any] | None) -> str:
    if fn is None:
        return "train"
    name = getattr(fn, "__qualname__", "")
    if not inspect.isfunction(inspect.unwrap(fn)) or "<" in name or not name:
        raise SpecError(f"function={name or fn!r}: trainers look it up by name; make it a top-level `def` of its file")
    return str(name)


def _model_name(model: Callable[[], Any] | str | None) -> str | None:
    """A class will do as well as a function: the file needs to know it by this name, defined there or imported."""
    if inspect.isclass(model) and "<" not in model.__qualname__:
        return model.__qualname__
    return model if model is None or isinstance(model, str) else _function_name(model)


def _json_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    plain = dict(config or {})
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(f"config={plain!r}: {error}; it travels as JSON: numbers, strings, lists and dicts") from None
    return plain


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    plain = dict(env or {})
    wrong = [key for key, value in plain.items() if not isinstance(key, str) or not isinstance(value, str)]
    if wrong:
        raise SpecError(f"env[{wrong[0]!r}]={plain[wrong[0]]!r}: environment variables are strings")
    return plain


def _absolute(path: str | Path, cwd: Path) -> Path:
    return (cwd / Path(path).expanduser()).resolve()


def _path_text(path: str | Path | None, cwd: Path) -> str | None:
    return None if path is None else str(_absolute(path, cwd))


def _inside(file: Path, working_dir: Path) -> str:
    """`file` relative to the working directory where it lies in there, so that a copy of the directory will do."""
    real = file.resolve()
    return str(real.relative_to(working_dir)) if real.is_relative_to(working_dir) else str(real)
