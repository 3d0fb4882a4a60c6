import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from electra_dist.data import records
from electra_dist.data.sources import SourceOptions, find_files
from electra_dist.errors import UserError
from tests.unit.data.reading import all_pieces, named, read

TEXTS = [f"Row {i}.\nIts number is {i * 7919 % 1009}. " + "word " * (i % 7) for i in range(500)]
DOCUMENTS = [tuple(line.strip() for line in text.split("\n")) for text in TEXTS]


def write(path: Path, texts: Any = TEXTS, **options: Any) -> Path:
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, **({"row_group_size": 100} | options))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_rows_of_any_string_type_are_documents(tmp_path: Path, kind: pyarrow.DataType) -> None:
    path = write(tmp_path / "a.parquet", pyarrow.array(TEXTS).cast(kind))
    found = read("parquet", path)
    assert found.documents == DOCUMENTS
    assert found.num_records == len(TEXTS)
    assert abs(found.num_bytes - path.stat().st_size) <= found.num_pieces


@pytest.mark.parametrize("row_group_size", [10, 100, 500])
def test_pieces_are_as_large_as_wished_whatever_the_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group_size: int
) -> None:
    monkeypatch.setattr(records, "PIECE_BYTES", 2000)
    path = write(tmp_path / "a.parquet", row_group_size=row_group_size)
    pieces = list(all_pieces("parquet", path, SourceOptions()))
    assert sum(map(len, TEXTS)) / 2000 < len(pieces) < sum(map(len, TEXTS)) / 1000
    assert [piece.offset for piece in pieces] == sorted({piece.offset for piece in pieces})
    assert read("parquet", path).documents == DOCUMENTS


def test_compressed_parquet(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet.xz").write_bytes(lzma.compress(data, preset=0))
    (tmp_path / "cut.parquet.gz").write_bytes(gzip.compress(data)[:-100])
    assert read("parquet", tmp_path / "a.parquet.xz").documents == DOCUMENTS
    found = read("parquet", tmp_path / "cut.parquet.gz")
    assert named(found.bad) == [(0, records.DAMAGED_ARCHIVE)]


def test_null_rows_and_rows_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    values = pyarrow.array([b"good", None, b"\xff", b"", b"also good"])
    bad_text = pyarrow.Array.from_buffers(pyarrow.string(), 5, values.buffers())
    found = read("parquet", write(tmp_path / "a.parquet", bad_text))
    assert found.documents == [("good",), (), ("also good",)]
    assert named(found.bad) == [(1, records.FIELD_NOT_A_STRING), (2, records.NOT_UTF8)]
    assert found.num_records == 5


def test_a_wrong_schema_is_one_bad_record_that_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    [record] = read("parquet", tmp_path, text_field="body").bad
    assert record.reason == records.NO_FIELD
    assert record.detail == "'body' is not among id, text"
    [record] = read("parquet", tmp_path, text_field="id").bad
    assert record.reason == records.FIELD_NOT_A_STRING
    assert record.detail == "'id' is int64"


def test_a_damaged_row_group_costs_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    chunk = metadata.row_group(2).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    found = read("parquet", path)
    assert found.documents == DOCUMENTS[:200] + DOCUMENTS[300:]
    assert named(found.bad) == [(200, records.DAMAGED_ROW_GROUP)]


@pytest.mark.parametrize("data", [b"", b"x", b"PAR1" * 10, b"plain text\n" * 100])
def test_what_is_no_parquet_is_one_bad_record(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    reason = records.NOT_PARQUET if data else records.EMPTY_FILE
    assert named(read("parquet", tmp_path).bad) == [(0, reason)]


def test_a_row_over_the_limit_is_split_and_named_by_row(tmp_path: Path) -> None:
    long = "\n".join(f"line {i}" for i in range(1000))
    found = read("parquet", write(tmp_path / "a.parquet", [long, "x"]), max_document_bytes=1000)
    assert [s for document in found.documents[:-1] for s in document] == long.split("\n")
    assert len(found.documents) > 6
    assert found.kept[0].row == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dataset, a saved dictionary of them, a folder of data files."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("datasets")
    rows = {"text": [*TEXTS, None], "id": list(range(501))}
    dataset = datasets.Dataset.from_dict(rows)
    dataset.save_to_disk(folder / "one", num_shards=2)
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(3))}).save_to_disk(
        folder / "several"
    )
    (folder / "files").mkdir()
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate([*TEXTS, None])]
    (folder / "files/train.jsonl").write_text("\n".join(lines))
    (folder / "files/test.jsonl").write_text("\n".join(lines[:3]))
    return folder


@pytest.mark.parametrize("name", ["one", "several", "files"])
def test_a_dataset_is_streamed_row_by_row(saved: Path, name: str) -> None:
    found = read("hf", saved / name)
    assert found.documents == DOCUMENTS
    assert named(found.bad) == [(500, records.FIELD_NOT_A_STRING)]
    if name != "one":
        assert read("hf", saved / name, hf_split="test").documents == DOCUMENTS[:3]
    [file] = find_files([str(saved / name)], "hf")
    assert file.name == name
    assert file.version


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("several", {"hf_split": "dev"}, "no split 'dev': use one of train, test"),
        ("files", {"hf_split": "dev"}, "dev"),
        ("one", {"text_field": "body"}, "'body' is not among text, id"),
        ("one", {"text_field": "id"}, "'id' is int64"),
        ("nothing", {}, "cannot be opened as a dataset"),
        ("files/train.jsonl", {}, "is a file"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_the_users_mistake(
    saved: Path, name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=rf"{name}.*{says}"):
        read("hf", saved / name, **options)
