import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from electra_dist.data import sources
from electra_dist.data.sources import BadRecord, Document, SourceOptions, find_files
from electra_dist.errors import UserError

Item = Document | BadRecord


def read(
    kind: str, path: Path, text_field: str = "text", max_document_bytes: int = 1 << 20
) -> list[Item]:
    options = SourceOptions(text_field=text_field, max_document_bytes=max_document_bytes)
    return list(sources.SOURCES[kind](path, options))


def sentences(items: list[Item]) -> list[tuple[str, ...]]:
    return [item.sentences for item in items if isinstance(item, Document)]


def bad(items: list[Item]) -> list[tuple[int, str]]:
    return [(i.byte_offset, i.reason) for i in items if isinstance(i, BadRecord)]


def test_text_documents_end_at_blank_lines_and_at_the_end_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n\nOne.\r\n  Two. \n \t\u3000\n\n\nThree.".encode())
    assert read("text", path) == [Document(("One.", "Two."), 2), Document(("Three.",), 1)]


def test_line_separators_of_unicode_do_not_end_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\u2028still one\x0bstill\x85one\ntwo\n".encode())
    assert sentences(read("text", path)) == [("one\u2028still one\x0bstill\x85one", "two")]


def test_a_text_line_that_is_not_utf8_is_quarantined_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\xff\xfe broken\nalso good\n\nnext\n")
    items = read("text", path)
    assert sentences(items) == [("good", "also good"), ("next",)]
    assert bad(items) == [(5, sources.NOT_UTF8)]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_archives_read_like_plain_files_and_may_be_cut_short(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    # Numbers do not compress well, so that half of the archive holds whole lines.
    lines = [f"sentence {i * 7919 % 100003} {i * i}" for i in range(20000)]
    data = "\n".join(lines).encode()
    whole, cut = tmp_path / f"whole.txt{suffix}", tmp_path / f"cut.txt{suffix}"
    whole.write_bytes(compress(data))
    assert sentences(read("text", whole)) == [tuple(lines)]

    cut.write_bytes(compress(data)[: len(compress(data)) // 2])
    items = read("text", cut)
    found = sentences(items)[0] if sentences(items) else ()
    assert found == tuple(lines[: len(found)])
    assert bad(items) == [(sum(len(s) + 1 for s in found), sources.DAMAGED_ARCHIVE)]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_what_is_no_archive_at_all_is_quarantined(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"just text, compressed by nobody\n" * 10)
    assert bad(read("text", path)) == [(0, sources.DAMAGED_ARCHIVE)]


def test_jsonl_bad_records_are_named_with_offset_and_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "first\\n\\n second \\nthird"}',
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
        b'{"text": "last"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    items = read("jsonl", path)
    assert sentences(items) == [("first", "second", "third"), (), ("last",)]
    offsets = [sum(len(line) + 1 for line in lines[:i]) for i in range(len(lines))]
    reasons = [
        sources.NOT_JSON,
        sources.NOT_AN_OBJECT,
        sources.NO_FIELD,
        sources.FIELD_NOT_A_STRING,
        sources.FIELD_NOT_A_STRING,
        sources.NOT_UNICODE,
        sources.NOT_UTF8,
        sources.NOT_JSON,
    ]
    assert bad(items) == list(zip(offsets[1:9], reasons, strict=True))


def test_jsonl_field_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "no", "body": "yes"}) + "\n")
    assert sentences(read("jsonl", path, text_field="body")) == [("yes",)]


def test_enormous_lines_and_documents_are_quarantined_and_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("small\n\n" + "x" * 5000 + "\n\n" + "many words\n" * 20 + "\nend\n")
    items = read("text", path, max_document_bytes=100)
    assert sentences(items) == [("small",), ("end",)]
    assert bad(items) == [(7, sources.TOO_LARGE), (5009, sources.TOO_LARGE)]


def test_a_disk_that_fails_is_not_taken_for_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *args: object) -> None:
            pass

        def readline(self, limit: int) -> bytes:
            raise OSError(5, f"Input/output error, limit {limit}")

    monkeypatch.setattr(sources, "_open", lambda path: Failing())  # noqa: ARG005
    with pytest.raises(OSError, match="Input/output error"):
        read("text", tmp_path / "a.txt")


def test_folders_are_read_sorted_and_deep_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c/d.txt", ".hidden", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    files = find_files([str(tmp_path)])
    assert [f.name for f in files] == ["a/c/d.txt", "a/z.txt", "b.txt"]
    assert {f.given for f in files} == {str(tmp_path)}


def test_globs_and_names_with_brackets(tmp_path: Path) -> None:
    for name in ("b1.txt", "b2.txt", "c.txt", "[x].txt"):
        (tmp_path / name).write_text("x")
    assert [f.path.name for f in find_files([f"{tmp_path}/b*.txt"])] == ["b1.txt", "b2.txt"]
    assert [f.name for f in find_files([f"{tmp_path}/[x].txt"])] == ["[x].txt"]


@pytest.mark.parametrize("given", ["missing.txt", "none*.txt", "empty", "a.zst"])
def test_inputs_that_lead_nowhere_are_the_users_mistake(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zst").write_bytes(b"x")
    with pytest.raises(UserError, match=given.replace("*", r"\*")):
        find_files([str(tmp_path / given)])


def test_unknown_source_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'txt'.*jsonl, text"):
        sources.source_named("txt")
