"""A step for other programs: a Hugging Face directory, or one of `torch.distributed.checkpoint`.

One tensor at a time is in memory. The directory appears whole, under its name, when all is written, or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from atoll.checkpoint.exchange import Form
from atoll.checkpoint.fs_files import create, make_directory, sync_directory
from atoll.checkpoint.fs_stream import write_plain
from atoll.checkpoint.hf_index import INDEX, index_text
from atoll.checkpoint.image import shared_weights
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import CommitRecord
from atoll.checkpoint.torch_import import MODEL
from atoll.checkpoint.torch_state import Flat, bytes_of, unflatten
from atoll.checkpoint.torch_steps import Step, open_step
from atoll.errors import CheckpointError, NotFoundError

# What Hugging Face's own tools take as the most for one file.
SHARD_BYTES = 5_000_000_000
# Gets the bytes of another tensor that was written, and those of all.
Told = Callable[[int, int], None]


def export_step(
    source: Path,
    form: Form,
    target: Path,
    *,
    under: str = MODEL,
    shard_bytes: int = SHARD_BYTES,
    told: Told = lambda _, __: None,
) -> int:
    """The step at `source` as directory `target`; its number. Of `hf` the tensors called `under`.* alone.

    Raises `CheckpointError`, `NotFoundError`.
    """
    if target.exists():
        raise CheckpointError(f"{target} is there already; give the name of a directory that is not")
    with open_step(source) as step, _appearing(target) as folder:
        match form:
            case Form.HF:
                _export_hf(step, folder, under, shard_bytes, told)
            case Form.DCP:
                _export_dcp(step, folder, told)
        return step.record.step


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    make_directory(target.absolute().parent)
    folder = target.absolute().parent / f".{target.name}.{os.urandom(4).hex()}.tmp"
    folder.mkdir()
    try:
        yield folder
        sync_directory(folder)
        folder.rename(target)
        sync_directory(target.absolute().parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _export_hf(step: Step, folder: Path, under: str, shard_bytes: int, told: Told) -> None:
    prefix = f"{under}."
    mine = [one for name, one in sorted(step.logicals.items()) if name.startswith(prefix)]
    if not mine:
        tops = sorted({name.partition(".")[0] for name in step.logicals})
        raise NotFoundError(
            f"{step.directory} has no tensor {prefix}*; there are {', '.join(tops) or 'none'}: use --under"
        )
    total = sum(one.size_bytes for one in mine)
    shards = _shards(mine, shard_bytes)
    names: dict[str, str] = {}
    for at, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{at:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(step, folder / file, shard, under, lambda count: told(count, total))
        names |= {one.name.removeprefix(prefix): file for one in shard}
    if len(shards) > 1:
        create(folder / INDEX, index_text(dict(sorted(names.items())), total).encode())
    beside = step.record.beside if isinstance(step.record, CommitRecord) else {}
    for name, text in beside.items():
        if name != INDEX:
            create(folder / name, text.encode())


def _shards(logicals: list[Logical], most: int) -> list[list[Logical]]:
    shards: list[list[Logical]] = []
    held = 0
    for one in logicals:
        if not shards or (held and held + one.size_bytes > most):
            shards.append([])
            held = 0
        shards[-1].append(one)
        held += one.size_bytes
    return shards


def _write_shard(step: Step, path: Path, shard: list[Logical], under: str, told: Callable[[int], None]) -> None:
    weights = shared_weights(path.name, shard, under)
    ordered = sorted(shard, key=lambda one: weights.begins[one.name])

    def pieces() -> Iterator[memoryview]:
        yield memoryview(weights.header)
        for one in ordered:
            yield bytes_of(step.tensor(one))
            told(one.size_bytes)

    write_plain(path, pieces())


# -- torch.distributed.checkpoint --------------------------------------------------------------------------------------


def _export_dcp(step: Step, folder: Path, told: Told) -> None:
    empty = {
        name: torch.empty(one.shape, dtype=getattr(torch, one.dtype), device="meta")
        for name, one in step.logicals.items()
    }
    state = unflatten(Flat(tensors=empty, meta=_without_parts(step.tree)))
    planner = _Reading(step, {id(tensor): name for name, tensor in empty.items()}, told)
    # One thread, which asks for a tensor when the one before it is written.
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1)
    save(state, storage_writer=writer, planner=planner, no_dist=True)


class _Reading(DefaultSavePlanner):
    """Plans with tensors that have no values, and reads each when it is to be written."""

    def __init__(self, step: Step, names: Mapping[int, str], told: Told) -> None:
        super().__init__()
        self._step, self._names, self._told = step, names, told
        self._total = sum(one.size_bytes for one in step.logicals.values())

    def resolve_data(self, write_item: WriteItem) -> Any:
        """The values of one item."""
        if write_item.type is WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        one = self._step.logicals[self._names[id(self.lookup_object(write_item.index))]]
        self._told(one.size_bytes, self._total)
        return self._step.tensor(one)


def _without_parts(node: Any) -> Any:
    """Declared parts of a fused tensor as the list of them."""
    if isinstance(node, list):
        return [_without_parts(each) for each in node]
    if not isinstance(node, dict):
        return node
    if "$parts" in node:
        return node["$parts"]
    return {key: _without_parts(value) for key, value in node.items()}
