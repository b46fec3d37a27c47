"""What users are promised in writing exists: public names, error codes, and every path that a document names."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import atoll
from atoll import errors

TOP_LEVEL = ("atoll", "tests", "docs", "examples", "benchmarks", "deploy", ".ci")
FILE_AT_THE_TOP = re.compile(r"(Makefile|[\w.-]+\.(md|toml|txt|in))")
_LEAF = re.compile(r"^(?P<lead>[\s│├└─]*)(?P<name>[A-Z]\w+)\s+(?P<rest>.+)$")


def error_classes() -> dict[str, type[errors.AtollError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: cls for name, cls in found if issubclass(cls, errors.AtollError)}


def drawn_tree() -> dict[str, tuple[str, str]]:
    """Name -> (parent, rest of the line) as the module docstring draws it."""
    drawn, path = {}, []
    for line in (errors.__doc__ or "").splitlines():
        found = _LEAF.match(line)
        if found and "──" in found["lead"]:
            path = [p for p in path if p[0] < len(found["lead"])]
            drawn[found["name"]] = (path[-1][1] if path else "AtollError", found["rest"])
            path.append((len(found["lead"]), found["name"]))
    return drawn


def test_the_drawn_error_tree_is_the_tree_of_classes():
    drawn = {name: parent for name, (parent, _) in drawn_tree().items()}
    real = {name: cls.__base__.__name__ for name, cls in error_classes().items() if name != "AtollError"}
    assert drawn == real


def test_the_drawn_codes_are_the_codes_of_the_leaves():
    leaves = {name: cls for name, cls in error_classes().items() if not cls.__subclasses__()}
    drawn = {name: rest.split()[0] for name, (_, rest) in drawn_tree().items() if name in leaves}
    assert drawn == {name: cls.code for name, cls in leaves.items()}


def test_error_codes_are_unique_and_kebab_case():
    codes = [cls.code for cls in error_classes().values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_the_table_of_errors_lists_every_code_with_its_exit_code(root):
    text = (root / "docs/errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| `(\w+)` \| (\d+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    assert sorted(rows) == sorted((cls.code, name, str(cls.exit_code)) for name, cls in error_classes().items())


def test_public_names_resolve():
    where = {name: module for name, module in atoll._WHERE.items() if importlib.util.find_spec(module)}
    missing = [name for name, module in where.items() if not _defines(module, name)]
    assert not missing, f"named in atoll/__init__.py and not defined: {missing}"
    assert set(atoll._WHERE) | {"__version__"} == set(atoll.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(atoll, "nothing")  # noqa: B009 - the module's own lookup is under test


def _defines(module: str, name: str) -> bool:
    """By the source: importing a session module would load torch into the pure suite."""
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    bound = {getattr(node, "name", "") for node in tree.body}
    bound |= {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    return name in bound


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_every_path_that_a_document_names_exists(document, root):
    target = root / document
    if not target.exists():
        pytest.skip(f"{document} is not written yet")
    wrong = []
    for page in sorted(target.rglob("*.md")) if target.is_dir() else [target]:
        wrong += [f"{page.relative_to(root)}: {p}" for p in named_paths(page.read_text("utf-8")) if not exists(root, p)]
        wrong += [
            f"{page.relative_to(root)}: {p}"
            for p in linked_paths(page.read_text("utf-8"))
            if not (page.parent / p).exists()
        ]
    assert not wrong, "; ".join(wrong)


def named_paths(text: str) -> list[str]:
    quoted = re.findall(r"`([^`\s]+)`", text)
    return [
        q
        for q in quoted
        if not re.search(r"[<>{}$:=()]|NNNN", q)
        if ("/" in q and q.split("/")[0] in TOP_LEVEL) or FILE_AT_THE_TOP.fullmatch(q)
    ]


def linked_paths(text: str) -> list[str]:
    links = re.findall(r"\]\(([^)#\s]+)", text)
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def exists(root, path: str) -> bool:
    return any(True for _ in root.glob(path)) if "*" in path else (root / path).exists()


def test_modules_export_only_what_they_define():
    modules = [errors, importlib.import_module("atoll.schema.views"), importlib.import_module("atoll.schema.messages")]
    for module in modules:
        assert all(hasattr(module, name) for name in getattr(module, "__all__", ())), module.__name__


def test_contributing_tells_where_each_kind_of_change_goes(root):
    page = root / "CONTRIBUTING.md"
    rows = re.findall(r"^\| .+ \| .*`.+`.* \|$", page.read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 12
    assert all(named_paths(row) for row in rows)
