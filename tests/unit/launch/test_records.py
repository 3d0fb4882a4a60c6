import json
import os
from pathlib import Path

import pytest

from electra_dist.launch.records import append_record, read_lines


def test_a_record_is_whole_after_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "requeue.jsonl"
    append_record(path, {"end": 1})
    with path.open("a") as file:
        file.write('{"end": ')  # the node went away
    append_record(path, {"end": 3})
    assert read_lines(path) == [{"end": 1}, {"end": 3}]


def test_a_record_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requeue.jsonl"
    append_record(path, {"end": 1})
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
        with pytest.raises(OSError, match="only 5 of 11 bytes fit"):
            append_record(path, {"end": 2})
    assert json.loads(path.read_text()) == {"end": 1}
