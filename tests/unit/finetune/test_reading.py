from collections.abc import Callable
from pathlib import Path

import pytest

from electra_dist.errors import UserError
from electra_dist.finetune.reading import Columns, Example, read_examples

Write = Callable[[str, str], Path]
COLUMNS = Columns(text="text", label="label")
PAIRS = Columns(text="a", text_b="b", label="label")


def row(text: str, label: str, line: int, text_b: str | None = None) -> Example:
    return Example(text=text, text_b=text_b, label=label, line=line)


def test_tsv_knows_no_quotes_and_only_lf_ends_a_line(write: Write) -> None:
    content = '\ufefftext\tlabel\r\nthe "open quote\t1\r\n\r\nbreaks\x85\u2028\x0bnowhere\t0\r\n'
    assert read_examples(write("f.tsv", content), COLUMNS) == [
        row('the "open quote', "1", 2),
        row("breaks\x85\u2028\x0bnowhere", "0", 4),
    ]


def test_csv_has_quotes_and_a_record_is_named_by_its_first_line(write: Write) -> None:
    content = 'label,text\n1,"two\nlines, ""quoted"""\n0,plain\n'
    assert read_examples(write("f.csv", content), COLUMNS) == [
        row('two\nlines, "quoted"', "1", 2),
        row("plain", "0", 4),
    ]


def test_jsonl_takes_numbers_as_labels(write: Write) -> None:
    content = '{"a": "x", "b": "y", "label": 2.5, "more": []}\n\n{"label": "z", "b": "", "a": "w"}'
    assert read_examples(write("f.jsonl", content), PAIRS) == [
        row("x", "2.5", 1, "y"),
        row("w", "z", 3, ""),
    ]


def test_a_folder_of_parallel_files(tmp_path: Path) -> None:
    (tmp_path / "seq.in").write_text("play a song \nbook a table\n")
    (tmp_path / "label").write_text("Play\nBook\n")
    columns = Columns(text="seq.in", label="label")
    assert read_examples(tmp_path, columns) == [
        row("play a song", "Play", 1),
        row("book a table", "Book", 2),
    ]
    (tmp_path / "label").write_text("Play\n")
    with pytest.raises(UserError, match="equally many lines"):
        read_examples(tmp_path, columns)


def test_a_file_may_start_with_data_where_its_columns_are_known(write: Write) -> None:
    columns = Columns(text="text", label="label", without_header=("id", "label", "text"))
    expected = [row("one", "1", 1), row("two", "0", 2)]
    assert read_examples(write("f.tsv", "7\t1\tone\n8\t0\ttwo\n"), columns) == expected
    with_header = write("g.tsv", "label\ttext\n1\tone\n")
    assert read_examples(with_header, columns) == [row("one", "1", 2)]


@pytest.mark.parametrize("header", ["review\tlabel", "review\tstars"])
def test_a_header_with_other_names_is_not_taken_for_data(write: Write, header: str) -> None:
    columns = Columns(text="sentence", label="label", without_header=("sentence", "label"))
    with pytest.raises(UserError, match=r"f\.tsv, line 1: there is no column '(sentence|label)'"):
        read_examples(write("f.tsv", f"{header}\nfine\t1\n"), columns)


def test_no_label_is_read_where_none_is_wanted(write: Write) -> None:
    found = read_examples(write("f.tsv", "text\nhello\n"), Columns(text="text"))
    assert found == [Example(text="hello", text_b=None, label=None, line=2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.tsv", "text\tscore\nx\t1\n", "f.tsv, line 1: there is no column 'label' among 'text'"),
        ("f.tsv", "text\tlabel\nx\t1\ny\n", "f.tsv, line 3: the row has 1 fields where 2"),
        ("f.csv", "text,label\na, b,1\n", "f.csv, line 2: the row has 3 fields where 2"),
        ("f.csv", 'text,label\nx,1\n"open,1\n', "f.csv, line 3: not valid CSV"),
        ("f.jsonl", '{"text": "x", "label": 1}\n{"text"\n', "f.jsonl, line 2: not valid JSON"),
        ("f.jsonl", "[1]\n", "f.jsonl, line 1: expected a JSON object"),
        ("f.jsonl", '{"text": "x"}\n', "f.jsonl, line 1: there is no column 'label'"),
        ("f.jsonl", '{"text": null, "label": 1}\n', "f.jsonl, line 1: 'text' must be a string"),
        ("f.jsonl", '{"text": "x", "label": []}\n', "line 1: 'label' must be a string or number"),
        ("f.tsv", "", "f.tsv: the file is empty"),
        ("f.csv", "\ufeff", "f.csv: the file is empty"),
        ("f.tsv", "text\tlabel\n", "f.tsv: the file holds no examples"),
        ("f.parquet", "x", "must end in one of .tsv, .txt, .csv, .jsonl, not '.parquet'"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    write: Write, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_examples(write(name, content), COLUMNS)
    assert message in str(caught.value)


def test_a_missing_file_and_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tsv: cannot be read \(No such file"):
        read_examples(tmp_path / "none.tsv", COLUMNS)
    path = tmp_path / "latin.tsv"
    path.write_bytes("text\tlabel\nok\t1\ncafé\t0\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.tsv, line 3: byte 0xe9 is not UTF-8"):
        read_examples(path, COLUMNS)
