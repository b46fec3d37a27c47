"""The source of Atoll as data: every module with its syntax tree, and which of them are shells by their name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ("schema", "control_plane", "workers", "collectives", "checkpoint", "fault", "ui", "lab", "simulate")
# A shell does I/O and says so by its name: at the top by its first word, in a component by its last word or by the
# technology it begins with.
TOP_SHELLS = frozenset({"cli", "client", "clock", "config", "log", "launch", "ray"})
SHELL_SUFFIXES = frozenset({"runtime", "actor", "server", "client", "writer", "inject"})
TECHNOLOGIES = frozenset(
    {"ray", "torch", "arrow", "tcp", "shm", "nccl", "grpc", "fs", "sql", "http", "rest", "nicegui", "proc"}
)
# Named for the seam that users or other components import, not for what is inside; each with its reason.
NAMED_EXCEPTIONS = {
    "atoll.workers.context": "the public session API: users import it by this name and it holds their tensors",
    "atoll.workers.data": "the public data sets: users import them by this name and they read files",
    "atoll.collectives.work": "a handle that the main thread waits for and the communication thread ends",
    "atoll.workers.host": "the seam to the process: its mailbox is the one place where two threads meet",
    "atoll.ui.pages": "the seam to the web server: mounts what the nicegui_ modules draw",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def component(self) -> str:
        """The subpackage, or "" at the top."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] in COMPONENTS else ""

    @property
    def shell(self) -> bool:
        """True where the name says that the module does I/O."""
        return is_shell(self.name)

    def imports(self) -> Iterator[tuple[str, int]]:
        """Dotted names imported at run time, anywhere in the module, with their lines."""
        yield from _imports(self.tree)


def is_shell(name: str) -> bool:
    """Whether a module of this dotted name may do I/O."""
    words = name.rpartition(".")[2].strip("_").split("_")
    if name in NAMED_EXCEPTIONS:
        return True
    if len(name.split(".")) == 2:
        return words[0] in TOP_SHELLS
    return words[-1] in SHELL_SUFFIXES or words[0] in TECHNOLOGIES


def _imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _imports(other)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
            yield child.module, child.lineno
            yield from ((f"{child.module}.{alias.name}", child.lineno) for alias in child.names)
        else:
            yield from _imports(child)


@functools.cache
def _modules() -> tuple[Module, ...]:
    found = []
    for path in sorted((ROOT / "atoll").rglob("*.py")):
        if "_pb2" in path.name:
            continue
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found.append(Module(name=dotted, path=path, tree=ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


@pytest.fixture
def modules() -> tuple[Module, ...]:
    return _modules()


@pytest.fixture
def pure_modules() -> tuple[Module, ...]:
    return tuple(m for m in _modules() if not m.shell)


@pytest.fixture
def module_names() -> frozenset[str]:
    return frozenset(m.name for m in _modules())


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def shell_named() -> object:
    return is_shell


@pytest.fixture
def python_files() -> tuple[Path, ...]:
    folders = ("atoll", "tests", "examples", "benchmarks", "docs", "deploy")
    return tuple(p for f in folders for p in sorted((ROOT / f).rglob("*.py")) if "_pb2" not in p.name)
