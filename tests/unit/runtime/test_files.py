import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from electra_dist.config.lines import append_line
from electra_dist.runtime.files import read_json_lines, write_json_atomic


def test_a_written_value_reads_back(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_json_atomic(path, "new")
    assert json.loads(path.read_text()) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_file_is_synced_before_its_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noting(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments: object) -> None:
            calls.append(name)
            call(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", noting("replace", os.replace))
    write_json_atomic(tmp_path / "a.json", 1)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_line_after_a_half_written_one_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, '{"a": 1}')
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    append_line(path, '{"a": 3}')
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]
    assert path.read_bytes().endswith(b'{"a": 3}\n')


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, '{"a": 1}')
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[: len(data) // 2]))
    with pytest.raises(OSError, match="fit on the disk"):
        append_line(path, '{"a": 2}')
    assert path.read_bytes() == b'{"a": 1}\n'


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "missing.jsonl") == []
