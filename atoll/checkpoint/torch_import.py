"""Other programs' files as a step: DCP directories, files of `torch.save`, Hugging Face directories.

Nothing that comes from outside is unpickled freely. Files of `torch.save` are read with `weights_only`; of DCP's pickles
`torch_dcp_files` tells. Safetensors files have no code to run. One tensor at a time is in memory: a file of `torch.save`
is mapped, a piece of a DCP directory and a tensor of a safetensors file are read when their turn has come.

Weights under one name become the step's file of weights, so that the step is a Hugging Face directory, too. The result
is judged and committed as any.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.exchange import Kind
from atoll.checkpoint.fs_pack import DTYPES, logical_of
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_stream import Heading, Told, commit_parts, free_step, write_part
from atoll.checkpoint.hf_index import CONFIGS, INDEX, index_text
from atoll.checkpoint.image import Piece, Weights, is_run, shared_weights
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import CommitRecord, run_tag
from atoll.checkpoint.torch_dcp import plain_value
from atoll.checkpoint.torch_dcp_files import DcpFiles
from atoll.checkpoint.torch_state import bytes_of, flatten
from atoll.checkpoint.trees import grown
from atoll.errors import AtollError, CheckpointError, NotFoundError, StateError

# Where a program's model lies, unless it is said.
MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A state as it lies elsewhere: its pieces, how to get one, and the files that go beside the weights."""

    tree: dict[str, Any]
    pieces: Sequence[Piece]
    fetch: Callable[[Logical, Box], memoryview]
    beside: Mapping[str, str] = field(default_factory=dict)

    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(box.count * logical.itemsize for logical, box in self.pieces)


def import_step(
    source: Path,
    kind: Kind,
    target: Path,
    heading: Heading,
    *,
    under: str | None = None,
    told: Callable[[int, int], None] = lambda _, __: None,
) -> CommitRecord:
    """`source` as step `heading.step` of the folder `target`.

    `under` is the name that all of it gets; None: "model" for weights that stand alone, else no name. `told` gets the
    bytes of another piece that was written, and those of all. Raises `CheckpointError`, `StateError`, `NotFoundError`.
    """
    store = Store(target)
    free_step(store, heading.step)
    try:
        return _imported(store, source, kind, heading, under, told)
    except AtollError:
        raise
    except Exception as error:
        raise CheckpointError(f"{source} cannot be imported: {error!r:.300}") from error


def _imported(
    store: Store, source: Path, kind: Kind, heading: Heading, under: str | None, told: Callable[[int, int], None]
) -> CommitRecord:
    if not source.exists():
        raise NotFoundError(f"nothing is at {source.absolute()}; give what is to be imported")
    with ExitStack() as stack:
        match kind:
            case Kind.TORCH:
                found = torch_source(source, under)
            case Kind.HF:
                found = hf_source(source, MODEL if under is None else under, stack)
            case Kind.DCP:
                found = dcp_source(source, under or "")
        size = found.size_bytes()
        return _written(store, found, under or MODEL, heading, lambda count: told(count, size))


def _written(store: Store, source: Source, prefix: str, heading: Heading, told: Told) -> CommitRecord:
    # Names of their own, so that what a broken-off try left is never taken for this one's.
    own = f"{run_tag(heading.run)}-{uuid.uuid4().hex[:12]}"
    weights, export = _weights(f"model-{own}.safetensors", source.pieces, prefix)
    directory = store.step_directory(heading.step)
    part = write_part(directory, f"import-{own}", source.pieces, source.fetch, weights=weights, told=told)
    heading = replace(heading, export=export)
    if weights is not None:
        names = {name.removeprefix(f"{prefix}."): weights.file for name in sorted(weights.begins)}
        index = index_text(names, weights.total - len(weights.header))
        heading = replace(heading, weights=weights.file, beside={INDEX: index, **source.beside})
    return commit_parts(store, [part], source.tree, heading)


def _weights(file: str, pieces: Sequence[Piece], prefix: str) -> tuple[Weights | None, str]:
    """The file of weights, or why there is none."""
    mine = [(one, box) for one, box in pieces if one.name.startswith(f"{prefix}.")]
    cut = [f"{one.name}{box}" for one, box in mine if box.count and not is_run(one, box)]
    if not mine:
        return None, f"nothing is called {prefix}.*"
    if cut:
        return None, f"{cut[0]} is no range of rows; export makes the file"
    return shared_weights(file, {one.name: one for one, _ in mine}.values(), prefix), ""


# -- sources -----------------------------------------------------------------------------------------------------------


def torch_source(path: Path, under: str | None) -> Source:
    """A file of `torch.save`, mapped where its form allows it. Raises `CheckpointError` for what `weights_only` refuses."""
    state = _loaded(path)
    if not isinstance(state, Mapping):
        raise StateError(f"{path} holds a {type(state).__name__}; a state is a dict")
    weights_only = all(isinstance(value, torch.Tensor) for value in state.values())
    name = under if under is not None else (MODEL if weights_only else "")
    flat = flatten({name: state} if name else state)

    def fetch(logical: Logical, box: Box) -> memoryview:
        del box  # always all of it
        return bytes_of(flat.tensors[logical.name])

    logicals = [logical_of(name, tensor) for name, tensor in flat.tensors.items()]
    return Source(tree=flat.meta, pieces=[(one, whole(one.shape)) for one in logicals], fetch=fetch)


def _loaded(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the form before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # noqa: BLE001 - whatever bytes make torch's loader say
        lines = [line.strip() for line in str(error).splitlines()]
        # torch's own advice is to trust the file; what it found is further below.
        telling = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler" in line]
        why = next(iter(telling or lines), type(error).__name__)
        raise CheckpointError(f"{path} is not read, as it is not plain data: {why}") from None


def hf_source(path: Path, under: str, stack: ExitStack) -> Source:
    """A directory of safetensors files with or without an index, or one such file."""
    found: dict[str, tuple[Any, str, Path]] = {}
    logicals: dict[str, Logical] = {}
    prefix = f"{under}." if under else ""
    for file, names in _hf_files(path).items():
        try:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            there = set(opened.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is no safetensors file: {error}") from None
        missing = sorted((names or there) - there)
        if missing:
            raise CheckpointError(f"{file} lacks tensor {missing[0]!r}, which the index says is there")
        for name in sorted(names or there):
            piece = opened.get_slice(name)
            dtype = DTYPES.get(piece.get_dtype())
            if dtype is None:
                raise CheckpointError(f"{file}: tensor {name!r} has type {piece.get_dtype()}, which no step holds")
            called = prefix + name
            if called in found:
                raise CheckpointError(
                    f"{found[called][2]} and {file} both hold tensor {name!r}, and no {INDEX} says which counts; "
                    "move one of the files away"
                )
            logicals[called] = Logical(called, str(dtype).removeprefix("torch."), tuple(piece.get_shape()))
            found[called] = (opened, name, file)

    def fetch(logical: Logical, box: Box) -> memoryview:
        del box  # always all of it
        opened, name, _ = found[logical.name]
        return bytes_of(opened.get_tensor(name))

    tree = grown(((*((under,) if under else ()), name), {"$tensor": called}) for called, (_, name, _) in found.items())
    folder = path if path.is_dir() else path.parent
    beside = {name: (folder / name).read_text() for name in CONFIGS if (folder / name).is_file()}
    return Source(tree=tree, pieces=[(one, whole(one.shape)) for one in logicals.values()], fetch=fetch, beside=beside)


def _hf_files(path: Path) -> dict[Path, set[str]]:
    """The files, and the tensors of each that count; an empty set stands for all."""
    if path.is_file():
        return {path: set()}
    index = path / INDEX
    if not index.is_file():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{path} holds no safetensors file")
        return {file: set() for file in files}
    try:
        names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        files_of = {str(name): str(file) for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index: {error!r}") from None
    outside = sorted(file for file in files_of.values() if Path(file).name != file)
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not in its folder")
    return {path / file: {n for n, f in files_of.items() if f == file} for file in dict.fromkeys(files_of.values())}


def dcp_source(path: Path, under: str) -> Source:
    """A directory that DCP wrote; its pieces stay pieces."""
    files = DcpFiles(path)
    prefix = f"{under}." if under else ""
    paths = files.metadata.planner_data or {}
    names: dict[str, str] = {}
    pieces: list[Piece] = []
    nodes: list[tuple[tuple[str | int, ...], Any]] = []

    def place(name: str) -> tuple[str | int, ...]:
        return (*((under,) if under else ()), *paths.get(name, (name,)))

    for logical, box in files.tensors():
        called = prefix + logical.name
        if called not in names:
            nodes.append((place(logical.name), {"$tensor": called}))
        names[called] = logical.name
        pieces.append((replace(logical, name=called), box))
    nodes += [(place(name), plain_value(name, value)) for name, value in files.values()]

    def fetch(logical: Logical, box: Box) -> memoryview:
        return bytes_of(files.piece(replace(logical, name=names[logical.name]), box))

    return Source(tree=grown(nodes), pieces=pieces, fetch=fetch)
