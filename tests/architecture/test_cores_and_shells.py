"""Decisions live in pure modules; a module that does I/O says so by its name (`conftest.py` holds the naming rule)."""

from __future__ import annotations

import ast

# What a core must be given, not fetch: time, chance, environment, threads, files, network, processes, tensors, Ray.
# fmt: off
NOT_FOR_CORES = frozenset({
    "asyncio", "concurrent", "cupy", "fastapi", "fcntl", "glob", "grpc", "httpx", "logging", "mmap",
    "multiprocessing", "nicegui", "numpy", "os", "platform", "psutil", "pyarrow", "ray", "resource", "safetensors",
    "secrets", "select", "selectors", "shutil", "socket", "socketserver", "sqlalchemy", "sqlite3", "ssl",
    "sse_starlette", "starlette", "subprocess", "sys", "tempfile", "threading", "time", "torch", "urllib", "uuid",
    "uvicorn", "websockets",
})
# fmt: on
PURE_IN_SPITE_OF_ITS_PACKAGE = ("urllib.parse",)
FILE_CALLS = frozenset({"read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "unlink", "iterdir", "rglob"})
WRITE_THE_ENVIRONMENT = {
    "atoll.lab.proc_namespaces": "a process that enters a host has the host's home and none of the clusters outside",
    "atoll.control_plane.ray_api": "Ray takes some of its settings in no other way",
    "atoll.workers.agent_launch_runtime": "takes variables of a Ray worker out before it starts the agent",
    "atoll.workers.trainer_runtime": "gives the program the variables that its job asks for",
    "atoll.workers.zygote_runtime": "sets thread variables around the import of torch, and puts them back",
}
# A million rows are columns, and numpy is what they are computed with: no tensors, no devices, no threads of its own.
COMPUTE_IN_COLUMNS = frozenset(
    f"atoll.checkpoint.{name}" for name in ("columns", "coverage", "digests", "extents", "reshard_columns")
)
UNPICKLE_WHAT_IS_LISTED = {
    "atoll.checkpoint.torch_dcp_files": "DCP describes its directories in a pickle; a list of plain classes is all it can name",
}
ALLOWED = {
    ("atoll", "atoll.launch"): "public names are resolved lazily",
}


def test_pure_modules_import_no_clock_environment_network_process_tensor_or_ray(pure_modules):
    wrong = [
        f"{m.name}:{line} imports {name}"
        for m in pure_modules
        for name, line in m.imports()
        if name.split(".")[0] in NOT_FOR_CORES and not name.startswith(PURE_IN_SPITE_OF_ITS_PACKAGE)
        if not (name == "numpy" and m.name in COMPUTE_IN_COLUMNS)
    ]
    assert not wrong, "take it as an argument, or name the module as a shell: " + "; ".join(wrong)


def test_pure_modules_import_no_shell_of_atoll(pure_modules, module_names, shell_named):
    wrong = [
        f"{m.name}:{line} imports {name}"
        for m in pure_modules
        for name, line in m.imports()
        if name in module_names and shell_named(name) and (m.name, name) not in ALLOWED
    ]
    assert not wrong, "a core that imports a shell is no core: " + "; ".join(wrong)


def test_pure_modules_open_no_file_and_print_nothing(pure_modules):
    wrong = [
        f"{m.name}:{node.lineno} calls {called}"
        for m in pure_modules
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Call) and (called := _io_call(node))
    ]
    assert not wrong, "; ".join(wrong)


def _io_call(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}:
        return node.func.id
    if isinstance(node.func, ast.Attribute) and node.func.attr in FILE_CALLS:
        return node.func.attr
    return ""


def test_chance_comes_from_an_injected_generator(pure_modules):
    wrong = [
        f"{m.name}:{node.lineno} random.{node.attr}"
        for m in pure_modules
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
        if node.attr != "Random"
    ]
    assert not wrong, "; ".join(wrong)


def test_only_config_reads_the_environment(modules):
    wrong = [
        f"{m.name}:{node.lineno}"
        for m in modules
        if m.name != "atoll.config" and m.name not in WRITE_THE_ENVIRONMENT
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        if node.attr in {"environ", "getenv", "environb"}
    ]
    assert not wrong, "; ".join(wrong)


def test_only_clock_asks_for_the_time_of_day(modules):
    wrong = [
        f"{m.name}:{node.lineno}"
        for m in modules
        if m.name != "atoll.clock"
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("dt", "now")}
    ]
    assert not wrong, "; ".join(wrong)


def test_nothing_reaches_a_shell_or_pickle(modules):
    wrong = [
        f"{m.name}:{line} imports {name}"
        for m in modules
        for name, line in m.imports()
        if name.split(".")[0] in {"pickle", "cloudpickle", "marshal", "shelve", "dill"}
        if m.name not in UNPICKLE_WHAT_IS_LISTED
    ]
    wrong += [
        f"{m.name}:{node.lineno} asks for a shell"
        for m in modules
        for node in ast.walk(m.tree)
        if isinstance(node, ast.keyword) and node.arg == "shell" and getattr(node.value, "value", False) is True
    ]
    assert not wrong, "; ".join(wrong)


def test_every_thread_is_a_daemon_with_a_name_of_atoll(modules):
    wrong = [
        f"{m.name}:{node.lineno}"
        for m in modules
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"threading.Thread", "Thread"}
        if not _daemon_of_atoll(node)
    ]
    assert not wrong, "threads need daemon=True and a name that begins with 'atoll-': " + "; ".join(wrong)


def _daemon_of_atoll(call: ast.Call) -> bool:
    given = {k.arg: k.value for k in call.keywords if k.arg}
    daemon = isinstance(given.get("daemon"), ast.Constant) and given["daemon"].value is True
    return daemon and "name" in given
