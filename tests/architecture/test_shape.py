"""Sizes that a reader can hold in the head, and the loose ends and private paths that must not be published."""

from __future__ import annotations

import ast
import re

import pytest

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
# Path or "path:function" -> why it may be longer.
LONG_FOR_A_REASON: dict[str, str] = {}
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".css",
    ".proto",
    ".yml",
    ".yaml",
    ".sh",
    ".service",
    ".conf",
    ".json",
    ".in",
    "",
}
FOLDERS = ("atoll", "tests", "examples", "benchmarks", "deploy", "docs", ".ci")
# Written apart, so that this file does not find itself.
LOOSE_ENDS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(" + "|".join(("wo" + "rk", "ro" + "ot", "Us" + "ers")) + r")/\w")
HOMES = re.compile(r"(?<![\w.])/ho" + r"me/\w")


@pytest.fixture
def texts(root):
    top = [p for p in root.iterdir() if p.is_file() and not p.name.startswith(".git")]
    deep = [p for folder in FOLDERS for p in (root / folder).rglob("*") if p.is_file()]
    kept = [p for p in (*top, *deep) if p.suffix in TEXT and "__pycache__" not in p.parts and "_pb2" not in p.name]
    return {
        str(p.relative_to(root)): p.read_text(encoding="utf-8", errors="replace") for p in kept if p.name != ".coverage"
    }


def test_files_are_short(python_files, root):
    wrong = [
        f"{path}: {lines} lines"
        for p in python_files
        if (lines := len(p.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
        if (path := str(p.relative_to(root))) not in LONG_FOR_A_REASON
    ]
    assert not wrong, "; ".join(wrong)


def test_functions_are_short(python_files, root):
    wrong = [
        f"{where}: {lines} lines"
        for p in python_files
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
        if (where := f"{p.relative_to(root)}:{node.name}") not in LONG_FOR_A_REASON
    ]
    assert not wrong, "; ".join(wrong)


def test_every_module_explains_itself(modules):
    wrong = [m.name for m in modules if len(ast.get_docstring(m.tree) or "") < len("Says what it decides.")]
    assert not wrong, "; ".join(wrong)


def test_no_module_is_called_utils(modules):
    assert not [m.name for m in modules if re.search(r"(util|utils|helpers|misc|common)$", m.name)]


def test_no_loose_ends(texts):
    wrong = [f"{path}: {found[0]}" for path, text in texts.items() if (found := LOOSE_ENDS.search(text))]
    assert not wrong, "finish it or file an issue: " + "; ".join(wrong)


def test_no_path_of_one_machine(texts):
    wrong = [f"{path}: {found[0]}" for path, text in texts.items() if (found := MACHINE_PATHS.search(text))]
    wrong += [f"{p}: {f[0]}" for p, text in texts.items() if not p.startswith("tests/") and (f := HOMES.search(text))]
    assert not wrong, "; ".join(wrong)
