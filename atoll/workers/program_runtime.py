"""The user's program: finding its file, importing it, and telling its errors the way its author would want to read them.

The file is imported under its own stem, never as `__main__`, and is registered in `sys.modules`: a `__main__` guard in
it stays closed, and a spawned loader process finds its classes by importing the same name from the same `sys.path`.
Tracebacks start at the user's file: the frames of Atoll above it say nothing to them.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from atoll.errors import AtollError, OutOfMemory, ProgramFailed, ScriptNotFound
from atoll.schema.ids import Step, TrainerId
from atoll.schema.messages import TrainerFailed
from atoll.schema.spec import JobSpec

# How torch says it without a class of its own.
_MEMORY_HINTS = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory")


def script_of(spec: JobSpec) -> Path:
    """The absolute path of the user's file. Raises `ScriptNotFound`."""
    path = Path(spec.working_dir, spec.file)
    if not path.is_file():
        raise ScriptNotFound(
            f"{spec.file!r} does not exist in working_dir={spec.working_dir!r} on this node; "
            "give the path of the script relative to the working directory, and a directory that every node can read"
        )
    return path.resolve()


def prepare_path(spec: JobSpec) -> None:
    """Let the program import its neighbours: the directory of its file first, then the working directory."""
    wanted = [str(script_of(spec).parent), str(Path(spec.working_dir).resolve())]
    sys.path[:] = [*dict.fromkeys(wanted), *(p for p in sys.path if p not in {*wanted, ""})]
    sys.argv = [str(script_of(spec))]


def load_function(spec: JobSpec, name: str) -> Callable[..., Any]:
    """The function `name` (dotted) of the user's file, which is imported once. What its top level raises passes."""
    path = script_of(spec)
    found: Any = _load_module(path)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ScriptNotFound(f"{path} has no function {name!r}; it defines {_functions(_load_module(path))}")
        found = getattr(found, part)
    if not callable(found):
        raise ScriptNotFound(f"{name!r} in {path} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a device: no fault of the program's logic, and worth another try."""
    text = str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and any(hint in text for hint in _MEMORY_HINTS))


def failure(error: BaseException, spec: JobSpec, trainer: TrainerId, step: Step) -> TrainerFailed:
    """The fact that tells of an error of the user's program."""
    code = error.code if isinstance(error, AtollError) else ProgramFailed.code
    code = OutOfMemory.code if is_out_of_memory(error) else code
    text = str(error) if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
    story = user_traceback(error, Path(spec.working_dir, spec.file))
    return TrainerFailed(trainer=trainer, step=step, code=code, problem=text, traceback=story)


def user_traceback(error: BaseException, script: Path) -> str:
    """The traceback of `error` from the first frame in the user's file on; all of it where no frame is there."""
    wanted = str(script.resolve())
    start: TracebackType | None = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename != wanted:
        start = start.tb_next
    if start is None and isinstance(error, AtollError):
        return ""  # refused before the program ran: the message says it all
    # Without a frame of the user's, a syntax error tells its place by itself; anything else is ours: show it all.
    whole = None if isinstance(error, SyntaxError) else error.__traceback__
    return "".join(traceback.format_exception(type(error), error, start or whole))


def _load_module(path: Path) -> ModuleType:
    module = sys.modules.get(path.stem)
    if module is not None and getattr(module, "__file__", None) == str(path):
        return module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ScriptNotFound(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _functions(module: ModuleType) -> str:
    names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
    return ", ".join(sorted(names)) or "none"
