import bz2
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_dist.data import input_files, records, sources
from electra_dist.data.input_files import OpenFile
from electra_dist.data.sources import SourceOptions
from electra_dist.errors import UserError
from tests.unit.data.reading import all_pieces, named, read

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": partial(lzma.compress, preset=0),
    ".zst": zstd.compress,
    ".bz2": partial(bz2.compress, compresslevel=1),  # blocks of 100 kB
}
SPLIT_DOCUMENT, SPLIT_SENTENCE = records.SPLITS.values()


SMALL_PIECE = 64


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PIECE_BYTES", SMALL_PIECE)


def test_text_documents_end_at_blank_lines_and_at_the_end_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n\nOne.\r\n  Two. \n \t\u3000\n\n\nThree.".encode())
    found = read("text", path)
    assert found.documents == [("One.", "Two."), ("Three.",)]
    assert found.num_records == 3
    assert found.cleaning == {"bom": 1, "newlines": 1}
    assert found.num_bytes == path.stat().st_size


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("blanks", ["", " \t", "\x0c", "\xa0\u3000"])
def test_every_kind_of_line_end_and_of_blank_line(tmp_path: Path, end: str, blanks: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"one{end}still one{end}{blanks}{end}two\x0cstill two{end}".encode())
    assert read("text", path).documents == [("one", "still one"), ("two\x0cstill two",)]


LINES = st.sampled_from(
    ["", " ", "\x0c", "a b.", "c", "é e\u0301 Ω.", "\u200b", "x" * 50, "\x01", "\ufeff", "。中文"]
)
ENDS = st.sampled_from(["\n", "\n", "\n\n", "\r\n", "\r", "\x85", "\u2029"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(LINES, ENDS), max_size=40))
@pytest.mark.usefixtures("small_pieces")
def test_documents_do_not_depend_on_where_pieces_were_cut(
    tmp_path: Path, lines: list[tuple[str, str]]
) -> None:
    text = "".join(line + end for line, end in lines)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    whole = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", text)
    for invisible in "\x01\u200b\ufeff":
        whole = whole.replace(invisible, "")
    expected = [
        tuple(line.strip().replace("e\u0301", "é") for line in document.split("\n") if line.strip())
        for document in re.split(r"\n\s*\n", whole)
    ]
    found = read("text", path, max_document_bytes=1 << 20)
    assert found.documents == [document for document in expected if document]
    assert found.num_records == sum(map(len, expected)) + (not text)
    if len(text) > 2000:
        assert found.num_pieces > 1


def test_a_text_line_that_is_not_utf8_is_quarantined_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\xff\xfe broken\nalso good\r\xe9\rnext\n\nnew\n")
    found = read("text", path)
    assert found.documents == [("good", "also good", "next"), ("new",)]
    assert named(found.bad) == [(5, records.NOT_UTF8), (25, records.NOT_UTF8)]
    assert found.num_records == 6


def test_a_bad_byte_in_a_very_long_line_costs_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    words = [b"%05d" % number for number in range(2000)]
    path.write_bytes(b" ".join(words[:1000]) + b" \xff " + b" ".join(words[1000:]))
    found = read("text", path, max_sentence_bytes=100)
    assert [record.reason for record in found.bad] == [records.NOT_UTF8]
    kept = " ".join(s for document in found.documents for s in document).split()
    assert set(kept) <= {word.decode() for word in words}
    assert len(kept) > 1970


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("suffix", sorted(COMPRESS))
def test_archives_read_like_plain_files_and_may_be_cut_short(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    # Numbers do not compress well, so that half of the archive holds whole lines.
    lines = [json.dumps({"text": f"s{i * 7919 % 100003} {i * i}"}) for i in range(8000)]
    texts = [json.loads(line)["text"] if kind == "jsonl" else line for line in lines]
    data = "\n".join(lines).encode()
    whole, cut = tmp_path / f"whole.txt{suffix.upper()}", tmp_path / f"cut.txt{suffix}"
    quarter = len(data) // 4 + 1
    packed = b"".join(COMPRESS[suffix](data[i * quarter : (i + 1) * quarter]) for i in range(4))
    whole.write_bytes(packed)
    found = read(kind, whole)
    assert [s for document in found.documents for s in document] == texts
    assert found.num_bytes == len(packed)

    cut.write_bytes(packed[: len(packed) // 2])
    found = read(kind, cut)
    kept = [s for document in found.documents for s in document]
    assert kept == texts[: len(kept)]
    assert named(found.bad) == [
        (sum(len(line) + 1 for line in lines[: len(kept)]), records.DAMAGED_ARCHIVE)
    ]
    assert len(kept) > 1900


@pytest.mark.parametrize("suffix", sorted(COMPRESS))
def test_what_is_no_archive_at_all_is_quarantined(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"just text, compressed by nobody\n" * 10)
    assert named(read("text", path).bad) == [(0, records.DAMAGED_ARCHIVE)]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_binary_and_empty_files_are_one_bad_record_each(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "b.txt").write_bytes("wide\n".encode("utf-16") * 1000)
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b""))
    found = read(kind, tmp_path)
    assert not found.documents
    assert named(found.bad) == [(0, records.BINARY)] * 2 + [(0, records.EMPTY_FILE)] * 2
    assert "UTF-16" in found.bad[1].detail
    assert found.num_records == 4


@pytest.mark.usefixtures("small_pieces")
def test_jsonl_bad_records_are_named_with_offset_and_reason(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first\\n\\n second \\nthird"}',
        b'{"text": ',
        b"[1, 2]",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"text": "half \\ud800 a pair"}',
        b'{"text": "\xe9"}',
        b"[" * 200000,
        b"",
        b'{"text": "  "}',
        b'{"text": "line\\u2028end \\ud83d\\ude00 and \xe2\x80\xa8 raw"}\r',
        b'{"text": "last"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read("jsonl", path, max_document_bytes=1 << 20)
    assert found.documents == [
        ("first", "second", "third"),
        (),
        ("line", "end \U0001f600 and", "raw"),
        ("last",),
    ]
    offsets = [sum(len(line) + 1 for line in lines[:i]) for i in range(len(lines))]
    reasons = [
        records.NOT_JSON,
        records.NOT_AN_OBJECT,
        records.NO_FIELD,
        records.FIELD_NOT_A_STRING,
        records.FIELD_NOT_A_STRING,
        records.NOT_UNICODE,
        records.NOT_UTF8,
        records.NOT_JSON,
    ]
    assert named(found.bad) == list(zip(offsets[1:9], reasons, strict=True))
    assert found.num_records == 12


def test_jsonl_field_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "no", "body": "yes"}) + "\n")
    assert read("jsonl", path, text_field="body").documents == [("yes",)]


def words_of(number: int, separator: str = " ") -> str:
    return separator.join(f"wört{i:06d}" for i in range(number))


@pytest.mark.parametrize("separator", [" ", "\n", "中"])
@pytest.mark.usefixtures("small_pieces")
def test_a_text_over_the_limits_is_split_and_nothing_is_lost(
    tmp_path: Path, separator: str
) -> None:
    path = tmp_path / "a.txt"
    text = words_of(3000, separator)
    path.write_text(f"small\n\n{text}\n\nend\n")
    found = read("text", path, max_document_bytes=1000, max_sentence_bytes=200)
    first, *middle, last = found.documents
    assert (first, last) == (("small",), ("end",))
    sentences = [s for document in middle for s in document]
    assert ("" if separator == "中" else separator).join(sentences) == text
    assert max(len(s.encode()) for s in sentences) <= 200
    assert max(sum(len(s.encode()) for s in document) for document in middle) <= 1000
    assert 0.5 < len(text.encode()) / 1000 / len(middle) <= 1
    assert found.largest_piece <= 1000 + 2 * SMALL_PIECE
    assert not found.bad
    assert found.cleaning["split_documents"] == len(middle) - 1
    assert found.kept[0].byte_offset is not None
    assert {record.reason for record in found.kept} <= {SPLIT_DOCUMENT, SPLIT_SENTENCE}


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("separator", [" ", "\n", '"\\', "中\U0001f600"])
@pytest.mark.usefixtures("small_pieces")
def test_a_json_record_over_the_limit_is_split_and_nothing_is_lost(
    tmp_path: Path, separator: str, ensure_ascii: bool
) -> None:
    path = tmp_path / "a.jsonl"
    text = words_of(2000, separator)
    record = {"meta": {"text": ["x", {"text": "no"}]}, "text ": "no", "text": text, "more": [1]}
    lines = [{"text": "small"}, record, {"text": "end"}]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=ensure_ascii) for r in lines))
    found = read("jsonl", path, max_document_bytes=1000, max_sentence_bytes=1000)
    first, *middle, last = found.documents
    assert (first, last) == (("small",), ("end",))
    joined = "".join(s for document in middle for s in document)
    assert "".join(joined.split()) == "".join(text.split())
    assert found.largest_piece <= 1000 + 2 * SMALL_PIECE
    assert not found.bad
    assert found.kept


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"body": "' + "x" * 5000 + '"}', records.RECORD_TOO_LARGE),
        ("[" * 5000, records.RECORD_TOO_LARGE),
        ('{"text": "' + "x" * 5000, records.NOT_JSON),
        ('{"text": "' + "x" * 5000 + '\\q"}', None),
        ('{"text": "' + "x" * 5000 + '\\u12"}', records.NOT_JSON),
    ],
)
@pytest.mark.usefixtures("small_pieces")
def test_an_enormous_broken_json_record_is_named_and_reading_goes_on(
    tmp_path: Path, line: str, reason: str | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "first"}}\n{line}\n{{"text": "last"}}\n')
    found = read("jsonl", path, max_document_bytes=1000)
    assert found.documents[0] == ("first",)
    assert found.documents[-1] == ("last",)
    assert [record.reason for record in found.bad] == [reason or records.NOT_JSON]


@pytest.mark.usefixtures("small_pieces")
def test_memory_of_cutting_is_bounded_by_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100_000)
    pieces = list(all_pieces("text", path, SourceOptions(max_document_bytes=640)))
    assert b"".join(piece.payload for piece in pieces) == b"x" * 100_000
    assert max(len(piece.payload) for piece in pieces) <= 640 + SMALL_PIECE
    assert [piece.continues for piece in pieces] == [False] + [True] * (len(pieces) - 1)


def test_a_disk_that_fails_is_not_taken_for_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.RawIOBase):
        def read1(self, limit: int) -> bytes:
            raise OSError(5, f"Input/output error, limit {limit}")

    path = tmp_path / "a.txt.bz2"
    path.write_bytes(bz2.compress(b"text"))
    monkeypatch.setitem(input_files._OPENERS, ".bz2", lambda raw: Failing())  # noqa: ARG005
    with pytest.raises(OSError, match="Input/output error"):
        read("text", path)
    stream, raw = cast(BinaryIO, Failing()), cast(BinaryIO, None)
    assert OpenFile(stream, raw).is_damage(OSError("Invalid data stream"))
    assert not OpenFile(stream, raw).is_damage(OSError(5, "Input/output error"))
    assert not OpenFile(stream, raw).is_damage(FileNotFoundError("gone"))
    assert not OpenFile(stream, stream).is_damage(OSError("Invalid data stream"))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'txt'.*hf, jsonl, parquet, text"):
        sources.source_named("txt")
    with pytest.raises(UserError, match=r"'nltk'.*lines, punctuation"):
        SourceOptions(splitter="nltk")
    with pytest.raises(UserError, match="max_sentence_bytes 3"):
        SourceOptions(max_sentence_bytes=3)
