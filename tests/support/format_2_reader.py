"""A reader of checkpoints, written from "One step on disk" in docs/checkpoints.md and nothing else of the project."""

import base64
import json
import pathlib

import numpy as np
import pyarrow as pa
import xxhash

SIZES = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


def item_bytes(dtype):
    return SIZES.get(dtype) or np.dtype(dtype).itemsize


class Step:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        sealed = json.loads((self.path / "commit.json").read_bytes())
        self.record = sealed["record"]
        canonical = json.dumps(self.record, sort_keys=True, separators=(",", ":")).encode()
        assert xxhash.xxh3_64_hexdigest(canonical) == sealed["xxh3"], "the record was changed"
        assert self.record["format"] == 2, "not of format 2"
        assert self.record["step"] == int(self.path.name.removeprefix("step-")), "of another step"
        self.extents = [extent for table in self.record["tables"] for extent in self.table(table)]

    def table(self, table):
        data = (self.path / table["file"]).read_bytes()
        assert (len(data), xxhash.xxh3_64_hexdigest(data)) == (table["bytes"], table["xxh3"]), (
            f"{table['file']} was changed"
        )
        found = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        tensors, files = (json.loads(found.schema.metadata[name]) for name in (b"tensors", b"files"))
        return [dict(row, tensor=tensors[row["tensor"]][0], file=files[row["file"]]) for row in found.to_pylist()]

    def bytes_of(self, extent):
        """The extent's bytes, every block that any of them lies in verified."""
        low, high = extent["offset"], extent["offset"] + extent["bytes"]
        of_file = [s for s in self.record["segments"] if s["file"] == extent["file"]]
        [one] = [s for s in of_file if s["begin"] <= low and high <= s["begin"] + s["bytes"]]
        size, sums = one["block_bytes"], np.frombuffer(base64.b64decode(one["sums"]), "<u8")
        first, last = (low - one["begin"]) // size, (high - 1 - one["begin"]) // size
        with (self.path / one["file"]).open("rb") as file:
            file.seek(one["begin"] + first * size)
            data = file.read(min((last + 1) * size, one["bytes"]) - first * size)
        for at in range(first, last + 1):
            block = data[(at - first) * size : (at + 1 - first) * size]
            assert xxhash.xxh3_64_intdigest(block) == sums[at], f"{one['file']}, block {at}, of rank {one['rank']}"
        return data[low - one["begin"] - first * size :][: extent["bytes"]]

    def tensor(self, name):
        """The bits of a whole tensor, as unsigned numbers [its shape]."""
        [one] = [t for t in self.record["tensors"] if t["name"] == name]
        whole = np.zeros(one["shape"], f"<u{item_bytes(one['dtype'])}")
        for extent in (e for e in self.extents if e["tensor"] == name):
            box = tuple(slice(a, b) for a, b, _ in zip(extent["start"], extent["stop"], whole.shape, strict=False))
            whole[box] = np.frombuffer(self.bytes_of(extent), whole.dtype).reshape(whole[box].shape)
        return whole
