import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from electra_dist.errors import Superseded
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.ledger import Ledger, chain
from electra_dist.train.state import RunState

Records = list[dict[str, Any]]


def is_whole(records: Records) -> bool:
    """Whether the chain of all records is what it should be."""
    last = ""
    for record in records:
        plain = {name: value for name, value in record.items() if name != "chain"}
        last = chain(last, plain)
        if record["chain"] != last:
            return False
    return True


def steps(ledger: Ledger, first: int, last: int) -> None:
    for step in range(first, last + 1):
        ledger.stepped(step, 32 * (step - 1), 32, checksum=2**64 - step)


def written(run: Path) -> Records:
    """A run of 4 steps that was stopped after 3, and repeats the third."""
    ledger = Ledger(Attempt.claim(run))
    ledger.resumed(RunState())
    steps(ledger, 1, 3)
    ledger = Ledger(Attempt.claim(run))
    ledger.resumed(RunState(step=2, position=64, skipped=((70, 80),)))
    steps(ledger, 3, 4)
    return read_json_lines(run / "ledger.jsonl")


def test_steps_and_resumes_are_recorded_in_one_chain(tmp_path: Path) -> None:
    records = written(tmp_path)
    assert [(r["attempt"], r["kind"], r["step"], r["position"]) for r in records] == [
        (1, "resume", 0, 0),
        (1, "step", 1, 0),
        (1, "step", 2, 32),
        (1, "step", 3, 64),
        (2, "resume", 2, 64),
        (2, "step", 3, 64),
        (2, "step", 4, 96),
    ]
    assert [records[n]["skipped"] for n in (0, 4)] == [[], [[70, 80]]]
    assert records[1]["samples"] == 32
    assert records[1]["checksum"] == "ffffffffffffffff"
    assert len({record["chain"] for record in records}) == 7
    assert is_whole(records)


def changed(name: str, value: object) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        records[2][name] = value

    return change


def rechained(records: Records) -> None:
    """A forger who knows the hash, and corrects that of the record they changed only."""
    records[2]["position"] = 33
    plain = {name: value for name, value in records[2].items() if name != "chain"}
    records[2]["chain"] = chain(records[1]["chain"], plain)


@pytest.mark.parametrize(
    "tamper",
    [
        changed("position", 33),
        changed("checksum", "0" * 16),
        changed("step", 7),
        changed("attempt", 2),
        changed("samples", 31),
        changed("chain", "0" * 32),
        changed("note", "harmless"),
        lambda records: records.pop(2),
        lambda records: records.pop(0),
        lambda records: records.insert(3, dict(records[2])),
        lambda records: records.reverse(),
        rechained,
    ],
)
def test_a_record_cannot_be_changed_taken_out_or_moved_unseen(
    tmp_path: Path, tamper: Callable[[Records], object]
) -> None:
    records = written(tmp_path)
    tamper(records)
    assert not is_whole(records)


def test_the_chain_goes_on_after_a_half_written_line(tmp_path: Path) -> None:
    records = written(tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    ledger = Ledger(Attempt.claim(tmp_path))
    ledger.resumed(RunState(step=3, position=96))
    again = read_json_lines(path)
    assert again[:-1] == records[:-1]
    assert again[-1]["attempt"] == 3
    assert is_whole(again)


def test_a_full_disk_ends_no_run_and_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = Ledger(Attempt.claim(tmp_path))
    steps(ledger, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        steps(ledger, 3, 5)
    assert "3 records wait for room" in caplog.text
    assert "No space left on device" in caplog.text
    steps(ledger, 6, 6)
    records = read_json_lines(tmp_path / "ledger.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert is_whole(records)


def test_a_run_that_ends_on_a_full_disk_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt.claim(tmp_path)
    ledger = Ledger(attempt)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Attempt, "append_jsonl", full)
        ledger.stepped(1, 0, 4, 7)
        assert not ledger.settle(seconds=0.01)
    assert ledger.settle(seconds=5.0)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1


def test_a_superseded_attempt_records_nothing(tmp_path: Path) -> None:
    ledger = Ledger(Attempt.claim(tmp_path))
    steps(ledger, 1, 1)
    Attempt.claim(tmp_path)
    with pytest.raises(Superseded):
        steps(ledger, 2, 2)
    assert len(read_json_lines(tmp_path / "ledger.jsonl")) == 1


def test_the_chain_does_not_depend_on_the_order_of_the_keys() -> None:
    record = {"step": 1, "kind": "step"}
    assert chain("x", record) == chain("x", dict(reversed(record.items())))
    assert chain("x", record) != chain("y", record)
    assert json.dumps(record)  # plain JSON values, nothing else
