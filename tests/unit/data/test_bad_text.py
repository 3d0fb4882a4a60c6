"""A folder with everything that is wrong with text in the wild, built whole."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from electra_dist.data import records
from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.sources import SourceOptions
from electra_dist.data.store import Corpus
from tests.unit.data.reading import read

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("", "n", "ra", "lo", "mi")]


def document(number: int) -> str:
    rng = random.Random(number)
    return "\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(4))


def documents(first: int, number: int) -> str:
    return "\n\n".join(document(first + i) for i in range(number))


def write_long_line(path: Path, num_bytes: int) -> None:
    block = (" ".join(random.Random(0).choices(WORDS, k=2000)) + " ").encode()
    with path.open("wb") as file:
        file.write(b"start " + block * (num_bytes // len(block)) + b"finish")


def write_bad_text(folder: Path, line_bytes: int) -> None:
    folder.mkdir()
    (folder / "good.txt").write_text(documents(0, 100))
    (folder / "not_utf8.txt").write_bytes(
        document(1000).encode() + b"\n\xff\xfe\xe9\n\n" + document(1001).encode()
    )
    (folder / "binary.dat").write_bytes(bytes(range(256)) * 4000)
    (folder / "empty.txt").write_bytes(b"")
    write_long_line(folder / "long.txt", line_bytes)
    (folder / "cut.txt.gz").write_bytes(gzip.compress(documents(2000, 100).encode())[:-40])
    lines = [json.dumps({"text": document(3000 + i)}) for i in range(100)]
    (folder / "broken.jsonl").write_text("\n".join([*lines[:50], '{"text": "cut', *lines[50:]]))
    rows = pyarrow.table({"text": [document(4000 + i) for i in range(100)]})
    pyarrow.parquet.write_table(rows, folder / "good.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2]}), folder / "wrong.parquet")


def specs(folder: Path, **limits: int) -> tuple[SourceSpec, ...]:
    def source(kind: str, *names: str) -> SourceSpec:
        inputs = tuple(str(folder / name) for name in names)
        return SourceSpec(kind=kind, inputs=inputs, options=SourceOptions(**limits))

    return (
        source("text", "*.txt*", "binary.dat"),
        source("jsonl", "*.jsonl"),
        source("parquet", "*.parquet"),
    )


BAD = {
    "not_utf8.txt": records.NOT_UTF8,
    "binary.dat": records.BINARY,
    "empty.txt": records.EMPTY_FILE,
    "cut.txt.gz": records.DAMAGED_ARCHIVE,
    "broken.jsonl": records.NOT_JSON,
    "wrong.parquet": records.NO_FIELD,
}


def check(out: Path, folder: Path, **limits: int) -> None:
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    bad = {Path(r["file"]).name: r["reason"] for r in lines if "kept" not in r}
    assert bad == BAD
    assert {Path(r["file"]).name for r in lines if "kept" in r} == {"long.txt"}
    splits = Corpus.open(out).manifest["splits"]
    # The document that the damage of the archive cuts is kept up to its last whole line.
    num_cut = len(read("text", folder / "cut.txt.gz").documents)
    num_long = len(read("text", folder / "long.txt", **limits).documents)
    assert num_cut >= 98
    assert num_long >= 5
    found = splits["train"]["documents"] + splits["held_out"]["documents"]
    assert found == 100 + 2 + num_cut + num_long + 100 + 100


def test_a_build_of_bad_text_ends_well_and_loses_nothing_good(tmp_path: Path) -> None:
    limits = {"max_document_bytes": 20_000, "max_sentence_bytes": 2000}
    write_bad_text(tmp_path / "in", line_bytes=100_000)
    sources = specs(tmp_path / "in", **limits)
    build_corpus(BuildOptions(sources=sources, out=tmp_path / "out", vocab_size=300))
    check(tmp_path / "out", tmp_path / "in", **limits)


@pytest.mark.slow
def test_a_line_of_300_mb_is_split_and_built(tmp_path: Path) -> None:
    write_bad_text(tmp_path / "in", line_bytes=300_000_000)
    options = BuildOptions(
        sources=specs(tmp_path / "in"),
        out=tmp_path / "out",
        vocab_size=300,
        vocab_sample_bytes=1 << 20,
        num_workers=2,
    )
    build_corpus(options)
    check(tmp_path / "out", tmp_path / "in")
