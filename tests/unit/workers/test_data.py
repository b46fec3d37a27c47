import pickle  # noqa: TID251 - loader processes get their data set this way

import numpy as np
import pytest
import torch

from atoll.errors import DataError
from atoll.workers.data import ArrowRows, TokenFile, as_rows, collate


def test_windows_overlap_by_the_one_target():
    tokens = TokenFile(np.arange(10, dtype=np.uint16), window=3)
    assert len(tokens) == 3
    assert tokens[0].tolist() == [0, 1, 2, 3]
    assert tokens[2].tolist() == [6, 7, 8, 9]
    assert tokens[0].dtype == torch.int64


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_raw_file_is_mapped_and_travels_by_path(tmp_path, dtype):
    path = tmp_path / "tokens.bin"
    np.arange(100, dtype=dtype).tofile(path)
    tokens = pickle.loads(pickle.dumps(TokenFile(path, window=9, dtype=dtype)))
    assert len(tokens) == 11
    assert tokens[10].tolist() == list(range(90, 100))


def test_npy_file_knows_its_type(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(20, dtype=np.int32))
    assert TokenFile(str(tmp_path / "t.npy"), window=4)[1].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: TokenFile(p / "none.bin", 4), "does not exist"),
        (lambda _: TokenFile([1, 2, 3], 4), "too few for one window"),
        (lambda _: TokenFile(np.zeros((2, 2), dtype=np.uint8), 1), "one dimension"),
        (lambda _: TokenFile([1, 2, 3], 0), "at least 1"),
        (lambda _: TokenFile([1, 2, 3], 1, dtype="float"), "dtype='float'"),
        (lambda p: ArrowRows(p / "none.parquet"), "parquet does not exist"),
    ],
)
def test_bad_source_is_refused_with_words(tmp_path, make, words):
    with pytest.raises(DataError, match=words):
        make(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_arrow_rows_read_by_group(tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"x": [[i, i + 1] for i in range(10)], "y": list(range(10)), "z": list("abcdefghij")})
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=4)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    rows = pickle.loads(pickle.dumps(ArrowRows([path, path], columns=["x", "y"])))
    assert len(rows) == 20
    assert rows[5]["x"].tolist() == [5, 6]
    assert rows[13]["y"] == 3
    batch = collate([rows[i] for i in (0, 9, 19)])
    assert batch["y"].tolist() == [0, 9, 9]
    assert batch["x"].shape == (3, 2)


def test_broken_file_is_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        ArrowRows(tmp_path / "rows.parquet")


def test_tuple_of_tensors_is_rows_of_each():
    rows = as_rows((torch.arange(3), torch.arange(3) * 2))
    assert [t.item() for t in rows[2]] == [2, 4]
    with pytest.raises(DataError, match="unequal length"):
        as_rows((torch.arange(3), torch.arange(4)))


def test_list_tensor_and_dataset_are_rows_as_they_are():
    data = [1.0, 2.0]
    assert as_rows(data) is data
    tensor = torch.zeros(3, 2)
    assert as_rows(tensor) is tensor
