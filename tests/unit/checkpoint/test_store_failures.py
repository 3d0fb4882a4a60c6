import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from electra_dist.checkpoint import layout
from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.errors import Superseded, UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.retry import Retry
from tests.unit.checkpoint.fake_engine import (
    SHAPES,
    DictEngine,
    a_store,
    damage,
    events,
    names,
    restored,
    save,
    saved,
)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)


def test_a_rank_that_never_finishes_fails_the_save_and_is_named(run: Path) -> None:
    attempt = Attempt.claim(run)
    store = a_store(attempt, ranks=2, deadline=0.05)
    assert not saved(store, DictEngine(3, rank=0, ranks=2), 9, {})
    assert names(run) == []
    (event,) = read_json_lines(run / "events.jsonl")
    assert event["event"] == "save_failed"
    assert event["cause"] == "shard_00001.safetensors was not complete within 0.05 s"


def test_a_rank_whose_disk_is_full_fails_the_save_for_all(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt.claim(run)
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        saved(a_store(attempt, rank=1, ranks=2), DictEngine(3, rank=1, ranks=2), 9, {})
    # Rank 0 does not wait for its deadline: the other one has said so.
    assert not saved(a_store(attempt, ranks=2, deadline=1e9), DictEngine(3, ranks=2), 9, {})
    (event,) = read_json_lines(run / "events.jsonl")
    assert "shard_00001.safetensors: " in event["cause"]
    assert "No space left on device" in event["cause"]


def test_a_save_that_rank_0_has_committed_meanwhile_is_no_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 renames the folder as soon as it sees the last name in it."""
    put_in_place = os.replace

    def replace_and_commit(source: Path, target: Path) -> None:
        put_in_place(source, target)
        if str(target).endswith("shard_00001.safetensors.done.json"):
            target.parent.rename(target.parent.with_name("step_00000009"))

    monkeypatch.setattr(os, "replace", replace_and_commit)
    store = a_store(Attempt.claim(run), rank=1, ranks=2, deadline=1.0)
    assert saved(store, DictEngine(3, rank=1, ranks=2), 9, {})
    assert (run / "checkpoints/step_00000009/shard_00001.safetensors").is_file()


@pytest.mark.parametrize("part", ["shard", "shard cut", "shard gone", "state", "manifest"])
def test_a_damaged_newest_falls_back_to_the_one_before(
    run: Path, store: CheckpointStore, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        save(store, step)
    folder = run / "checkpoints/step_00000020"
    if part == "shard":
        damage(run, 20)
    elif part == "shard cut":
        path = folder / "shard_00000.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    elif part == "shard gone":
        (folder / "shard_00000.safetensors").unlink()
    else:
        (folder / f"{part}.json").write_text("{}")
    engine, state = restored(a_store(Attempt.claim(run)))
    assert state == {"step": 10}
    assert engine.equals(10)
    assert engine.num_restored == 1
    assert names(run) == ["step_00000010", "step_00000020.bad"]
    assert events(run)[-1] == ("bad_checkpoint", "step_00000020")
    cause = read_json_lines(run / "events.jsonl")[-1]["cause"]
    assert part.split()[0] in cause
    assert "step_00000020 does not verify" in caplog.text
    # The run goes on, and the bad one is kept for looking at.
    later = a_store(Attempt.claim(run))
    assert save(later, 20, seed=21)
    assert restored(later)[0].equals(21)
    damage(run, 20)
    assert restored(later)[1] == {"step": 10}
    assert names(run) == ["step_00000010", "step_00000020.bad", "step_00000020.bad.2"]


def test_where_all_are_damaged_nothing_is_renamed_and_the_user_is_asked(
    run: Path, store: CheckpointStore
) -> None:
    for step in (10, 20):
        save(store, step)
        damage(run, step)
    num_events = len(events(run))
    engine = DictEngine(seed=-1)
    with pytest.raises(UserError, match=r"no checkpoint verifies \(.*step_00000020.*damaged"):
        store.restore(engine, SHAPES)
    assert engine.equals(-1)
    assert engine.num_restored == 0
    assert names(run) == ["step_00000010", "step_00000020"]
    assert len(events(run)) == num_events


def fail_reads(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The next so many reads of a file fail as those of a stale NFS handle do."""
    real, left = os.pread, [times]
    monkeypatch.setattr(layout, "RETRY", Retry(num_attempts=3, first_delay_seconds=0.0))

    def pread(*arguments: int) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    return left


def test_a_read_error_that_passes_condemns_no_checkpoint(
    run: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        save(store, step)
    left = fail_reads(monkeypatch, 2)
    assert restored(store)[1] == {"step": 20}
    assert left == [0]
    assert names(run) == ["step_00000010", "step_00000020"]
    # One that stays is a bad checkpoint after three tries.
    left = fail_reads(monkeypatch, 3)
    assert restored(store)[1] == {"step": 10}
    assert names(run) == ["step_00000010", "step_00000020.bad"]
    cause = read_json_lines(run / "events.jsonl")[-1]["cause"]
    assert "cannot be read (Stale file handle, 3 times)" in cause


def test_a_full_disk_keeps_the_run_and_the_older_checkpoints_alive(
    run: Path,
    store: CheckpointStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save(store, 10)
    with monkeypatch.context() as patched:
        fill_the_disk(patched)  # for events.jsonl too: the log still says it
        assert not save(store, 20)
    assert "checkpoint of step 20 was not saved" in caplog.text
    assert "No space left on device" in caplog.text
    assert names(run) == ["step_00000010"]
    assert restored(store)[1] == {"step": 10}
    assert save(store, 30)
    assert restored(store)[1] == {"step": 30}


def test_a_failed_write_is_an_event(
    run: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 10)

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    for part in ("write_shard", "write_bytes_atomic", "write_json_atomic"):
        with monkeypatch.context() as patched:
            patched.setattr(f"electra_dist.checkpoint.commit.{part}", refuse)
            assert not save(store, 20)
        event = read_json_lines(run / "events.jsonl")[-1]
        assert (event["event"], event["step"]) == ("save_failed", 20)
        assert "Disk quota exceeded" in event["cause"]
        assert names(run) == ["step_00000010"]


def test_what_the_disk_did_not_keep_is_not_committed(
    run: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The disk says that it has written, and has not: the shard is read back before it counts.
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(len(data))))
    assert not save(store, 10)
    monkeypatch.undo()
    assert names(run) == []
    assert restored(store)[1] is None


def test_a_superseded_attempt_commits_nothing(run: Path, store: CheckpointStore) -> None:
    save(store, 10)
    newer = a_store(Attempt.claim(run))
    with pytest.raises(Superseded):
        save(store, 20)
    assert [info.step for info in list_checkpoints(run)] == [10]
    # Both write the same step: the newer one's stands, whatever the other does then.
    assert save(newer, 20, seed=2)
    with pytest.raises(Superseded):
        save(store, 20, seed=1)
    newer.remove_leftovers()
    assert names(run) == ["step_00000010", "step_00000020"]
    assert restored(newer)[0].equals(2)
