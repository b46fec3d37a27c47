"""Data sets that a run can share: anything with a length whose rows can be asked for by number.

Rows are asked for in the order of `samples`, by whichever rank owns the grain, so a row must depend on its number alone.
Random augmentation is fine: each grain seeds the generators. An `IterableDataset` has no rows and is refused.

`TokenFile` cuts a flat array of tokens into windows for language models; `ArrowRows` reads rows of Parquet and Arrow
files without loading them whole. Both may be sent to loader processes: they travel as paths and are opened there.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import IterableDataset, default_collate

from atoll.errors import DataError

_TOKEN_TYPES = ("uint8", "uint16", "int32", "int64")


@runtime_checkable
class Rows(Protocol):
    """A map-style data set."""

    def __len__(self) -> int:
        """How many rows."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Row `index`."""
        ...


class TokenFile:
    """Windows of a flat token array, as int64 tensors of `[window + 1]`: inputs are `[:-1]`, targets `[1:]`.

    `source` is a `.npy` file, a raw file of `dtype` (read through a memory map), an array, or `bytes`, whose tokens are
    the bytes. Windows do not overlap, but
    for the one token that is the last target of one and the first input of the next.
    """

    def __init__(
        self,
        source: str | Path | bytes | Sequence[int] | np.ndarray | torch.Tensor,
        window: int,
        *,
        dtype: str = "uint16",
    ) -> None:
        if window < 1:
            raise DataError(f"window={window}: at least 1 token")
        if dtype not in _TOKEN_TYPES:
            raise DataError(f"dtype={dtype!r}: one of {', '.join(_TOKEN_TYPES)}")
        self.window = self.tokens_per_row = window
        self._dtype = dtype
        self._path = Path(source) if isinstance(source, str | Path) else None
        self._tokens: np.ndarray | None = None if self._path else _as_tokens(source)
        self._count = len(self._open())
        if self._count <= window:
            name = self._path or "the array"
            raise DataError(
                f"{name} holds {self._count} tokens, too few for one window of {window} + 1; use a smaller window"
            )

    def __len__(self) -> int:
        return (self._count - 1) // self.window

    def __getitem__(self, index: int) -> torch.Tensor:
        first = index * self.window
        return torch.from_numpy(self._open()[first : first + self.window + 1].astype(np.int64))

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory map: it is opened again where it arrives."""
        return {**self.__dict__, "_tokens": None if self._path else self._tokens}

    def _open(self) -> np.ndarray:
        if self._tokens is None:
            self._tokens = _map_tokens(self._path, self._dtype)
        return self._tokens


def _as_tokens(source: Any) -> np.ndarray:
    if isinstance(source, bytes):
        return np.frombuffer(source, dtype=np.uint8)
    array = source.numpy() if isinstance(source, torch.Tensor) else np.asarray(source)
    if array.ndim != 1 or str(array.dtype) not in _TOKEN_TYPES:
        raise DataError(
            f"tokens of shape {array.shape} and type {array.dtype}: expected one dimension and one of "
            f"{', '.join(_TOKEN_TYPES)}"
        )
    return array


def _map_tokens(path: Path | None, dtype: str) -> np.ndarray:
    if path is None or not path.is_file():
        raise DataError(f"token file {path} does not exist")
    if path.suffix == ".npy":
        return _as_tokens(np.load(path, mmap_mode="r", allow_pickle=False))
    item = np.dtype(dtype).itemsize
    if path.stat().st_size < item:
        raise DataError(f"token file {path} holds no token")
    return np.memmap(path, dtype=dtype, mode="r")[: path.stat().st_size // item]


class ArrowRows:
    """Rows of Parquet (`.parquet`) or Arrow IPC (`.arrow`, `.feather`) files, as dicts by column.

    Numeric lists become tensors, other values stay Python values. Files are read by row group or record batch; the few
    used last stay decoded.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path], columns: Sequence[str] | None = None) -> None:
        self._paths = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
        self._columns = list(columns) if columns is not None else None
        for path in self._paths:
            if not path.is_file():
                raise DataError(f"data file {path} does not exist")
        self._open()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect.bisect_right(self._ends, index)
        table = self._table(group)
        row = index - (self._ends[group] - table.num_rows)
        return {name: _value(table.column(name)[row]) for name in table.column_names}

    def __getstate__(self) -> dict[str, Any]:
        """Paths only: files are opened again where it arrives."""
        return {"_paths": self._paths, "_columns": self._columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._paths, self._columns = state["_paths"], state["_columns"]
        self._open()

    def _open(self) -> None:
        self._readers = [_reader(path, self._columns) for path in self._paths]
        self._groups = [(f, g) for f, reader in enumerate(self._readers) for g in range(len(reader.rows))]
        self._ends = list(accumulate(self._readers[f].rows[g] for f, g in self._groups))
        # Each decoded group is some megabytes; a shuffled walk revisits few of them at once.
        self._table = lru_cache(maxsize=8)(self._read)

    def _read(self, group: int) -> Any:
        file, part = self._groups[group]
        return self._readers[file].read(part)


class _ParquetReader:
    def __init__(self, path: Path, columns: list[str] | None) -> None:
        from pyarrow import parquet  # noqa: PLC0415 - only for those who have such files

        self._file, self._columns = parquet.ParquetFile(path), columns
        self.rows = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]

    def read(self, group: int) -> Any:
        return self._file.read_row_group(group, columns=self._columns)


class _IpcReader:
    def __init__(self, path: Path, columns: list[str] | None) -> None:
        import pyarrow as pa  # noqa: PLC0415 - only for those who have such files

        self._table = pa.Table.from_batches
        self._file, self._columns = pa.ipc.open_file(pa.memory_map(str(path))), columns
        self.rows = [self._file.get_batch(g).num_rows for g in range(self._file.num_record_batches)]

    def read(self, group: int) -> Any:
        table = self._table([self._file.get_batch(group)])
        return table if self._columns is None else table.select(self._columns)


def _reader(path: Path, columns: list[str] | None) -> _ParquetReader | _IpcReader:
    try:
        return _ParquetReader(path, columns) if path.suffix == ".parquet" else _IpcReader(path, columns)
    except (OSError, ValueError) as error:
        raise DataError(f"data file {path} cannot be read: {error}; expected .parquet, .arrow or .feather") from None


def _value(scalar: Any) -> Any:
    value = scalar.as_py()
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        return torch.tensor(value)
    return value


class _Columns:
    """Row i of several tensors of one length."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1:
            raise DataError(f"tensors of unequal length {sorted(lengths)} cannot be one data set")
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(t[index] for t in self._tensors)


def as_rows(data: Any) -> Rows:
    """`data` as rows, or a `DataError` with the remedy. A tuple of tensors is one data set of rows of each."""
    if isinstance(data, IterableDataset) or (hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise DataError(
            f"{type(data).__name__} can only be iterated, so its rows cannot be shared and a step cannot be tried again; "
            "give a data set with __len__ and __getitem__ (for token streams: atoll.TokenFile, for files: atoll.ArrowRows)"
        )
    if isinstance(data, tuple) and data and all(isinstance(t, torch.Tensor) for t in data):
        return _Columns(data)
    if not isinstance(data, Rows) or isinstance(data, dict | str | bytes):
        raise DataError(f"{type(data).__name__} is no data set: it needs __len__ and __getitem__ by row number")
    return data


def collate(rows: list[Any]) -> Any:
    """One batch of rows, as torch's DataLoader makes it."""
    return default_collate(rows)
