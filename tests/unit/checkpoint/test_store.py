import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from electra_dist.checkpoint.layout import KINDS, list_checkpoints
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.engine.protocol import Fragment
from electra_dist.errors import Superseded, UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.control import Control
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.world import World

SHAPES: dict[str, tuple[int, ...]] = {"tower.weight": (6, 7), "tower.bias": (5,), "scale": ()}


class DictEngine:
    """The part of an engine that a store needs: named tensors and who owns what of them."""

    device = torch.device("cpu")

    def __init__(
        self, seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES, rank: int = 0, ranks: int = 1
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameter_shapes = shapes
        self.tensors = {
            (name, kind): torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
            for kind in KINDS
        }
        self.num_restored = 0
        self._rank, self._ranks = rank, ranks

    def local_fragments(self) -> Iterator[Fragment]:
        for (name, kind), tensor in self.tensors.items():
            yield Fragment(name, kind, 0, tensor.view(-1))

    def owned_fragments(self) -> Iterator[Fragment]:
        for one in self.local_fragments():
            ends = [r * len(one.values) // self._ranks for r in (self._rank, self._rank + 1)]
            if ends[0] < ends[1]:
                yield one._replace(start=ends[0], values=one.values[slice(*ends)])

    def state_restored(self) -> None:
        self.num_restored += 1

    def equals(self, seed: int) -> bool:
        other = DictEngine(seed, self.parameter_shapes)
        return all(torch.equal(t, other.tensors[key]) for key, t in self.tensors.items())


def a_store(
    attempt: Attempt, keep_last: int = 3, rank: int = 0, ranks: int = 1, deadline: float = 5.0
) -> CheckpointStore:
    """Without a process group an exchange returns what this rank gave: that is enough here."""
    world = replace(
        World.from_environment({}),
        rank=rank,
        world_size=ranks,
        local_rank=rank,
        local_world_size=ranks,
    )
    control = Control(group=None, store=None, world=world, timeout_seconds=1.0)
    return CheckpointStore(attempt, control, keep_last=keep_last, commit_timeout_seconds=deadline)


def save(store: CheckpointStore, step: int, seed: int | None = None) -> bool:
    """Save an engine whose tensors follow from `seed` (the step, where it is left out)."""
    return store.save(DictEngine(step if seed is None else seed), step, {"step": step})


def restored(store: CheckpointStore) -> tuple[DictEngine, dict[str, Any] | None]:
    engine = DictEngine(seed=-1)
    return engine, store.restore(engine, SHAPES)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def events(run: Path) -> list[tuple[str, Any]]:
    """What happened, and to what."""
    return [
        (record["event"], record.get("step", record.get("checkpoint")))
        for record in read_json_lines(run / "events.jsonl")
    ]


def damage(run: Path, step: int) -> None:
    path = run / f"checkpoints/step_{step:08d}/shard_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(run: Path) -> CheckpointStore:
    return a_store(Attempt.claim(run))


def test_what_was_saved_comes_back_bit_for_bit(run: Path, store: CheckpointStore) -> None:
    assert store.newest_name() is None
    assert restored(store)[1] is None
    engine = DictEngine(seed=7)
    engine.tensors["tower.bias", "master"][:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    state = {"step": 40, "position": 1280, "loss_scale": None}
    assert store.save(engine, 40, state)
    assert store.newest_name() == "step_00000040"
    assert names(run) == ["step_00000040"]
    files = {path.name for path in (run / "checkpoints/step_00000040").iterdir()}
    assert files == {"manifest.json", "state.json", "shard_00000.safetensors"}
    other, found = restored(a_store(Attempt.claim(run)))
    assert found == state
    assert other.num_restored == 1
    for key, tensor in engine.tensors.items():
        assert tensor.view(torch.int32).tolist() == other.tensors[key].view(torch.int32).tolist()
    (event,) = read_json_lines(run / "events.jsonl")
    assert (event["event"], event["step"], event["attempt"]) == ("save", 40, 1)
    assert event["seconds"] >= 0


def test_the_parts_of_two_ranks_make_one_checkpoint(run: Path) -> None:
    attempt = Attempt.claim(run)
    # Rank 1 is done before rank 0 looks; both lie in one folder that rank 0 commits.
    assert a_store(attempt, rank=1, ranks=2).save(DictEngine(3, rank=1, ranks=2), 9, {})
    assert names(run) == ["step_00000009.tmp-1"]
    assert a_store(attempt, rank=0, ranks=2).save(DictEngine(3, rank=0, ranks=2), 9, {})
    assert names(run) == ["step_00000009"]
    with CheckpointReader(run / "checkpoints/step_00000009") as reader:
        assert len(reader.manifest.shards) == 2
    alone, _ = restored(a_store(Attempt.claim(run)))
    assert alone.equals(3)


def test_a_rank_that_never_finishes_fails_the_save_and_is_named(run: Path) -> None:
    attempt = Attempt.claim(run)
    store = a_store(attempt, ranks=2, deadline=0.05)
    assert not store.save(DictEngine(3, rank=0, ranks=2), 9, {})
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
        a_store(attempt, rank=1, ranks=2).save(DictEngine(3, rank=1, ranks=2), 9, {})
    # Rank 0 does not wait for its deadline: the other one has said so.
    assert not a_store(attempt, ranks=2, deadline=1e9).save(DictEngine(3, ranks=2), 9, {})
    (event,) = read_json_lines(run / "events.jsonl")
    assert "shard_00001.safetensors: " in event["cause"]
    assert "No space left on device" in event["cause"]


def test_parts_that_do_not_cover_the_model_are_not_committed(
    run: Path, store: CheckpointStore
) -> None:
    # One rank alone, whose engine owns only the first half of everything.
    assert not store.save(DictEngine(3, rank=0, ranks=2), 9, {})
    assert names(run) == []
    (event,) = read_json_lines(run / "events.jsonl")
    assert "do not cover the model: tower.weight/master: 21 of 42" in event["cause"]


class Crash(BaseException):
    """The process dies here: nothing catches this."""


def crash_at_fsync(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real, left = os.fsync, [number]

    def fsync(descriptor: int) -> None:
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", range(9))
def test_a_crash_at_any_point_leaves_the_previous_checkpoint_or_the_new_one(
    run: Path, store: CheckpointStore, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 10)
    is_saved = False
    with monkeypatch.context() as patched:
        crash_at_fsync(patched, number)
        try:
            is_saved = save(store, 20)
        except Crash:
            assert number < 8
    later = a_store(Attempt.claim(run))
    # Before anything is removed, only what is complete counts.
    assert later.newest_name() in ("step_00000010", "step_00000020")
    assert later.newest_name() == "step_00000020" or not is_saved
    later.remove_leftovers()
    assert all("tmp" not in name for name in names(run))
    engine, state = restored(later)
    assert state in ({"step": 10}, {"step": 20})
    assert engine.equals(state["step"])
    # Up to the rename (the 8th fsync is of the folder it is in) it is the old one.
    assert state["step"] == (20 if number >= 7 else 10)
    assert save(later, 20)
    assert restored(later)[1] == {"step": 20}
    assert names(run)[:2] == ["step_00000010", "step_00000020"]


def test_only_the_newest_are_kept(run: Path) -> None:
    store = a_store(Attempt.claim(run), keep_last=2)
    for step in (5, 10, 15, 20):
        assert save(store, step)
    assert names(run) == ["step_00000015", "step_00000020"]
    # Fewer are kept from now on: what is too old goes with the next save, and not before.
    fewer = a_store(Attempt.claim(run), keep_last=1)
    assert restored(fewer)[1] == {"step": 20}
    assert names(run) == ["step_00000015", "step_00000020"]
    assert save(fewer, 25)
    assert names(run) == ["step_00000025"]


def test_what_was_set_aside_is_neither_counted_nor_removed(run: Path) -> None:
    store = a_store(Attempt.claim(run), keep_last=1)
    save(store, 5)
    damage(run, 5)
    for aside in ("step_00000003.bad", "step_00000004.abandoned"):
        shutil.copytree(run / "checkpoints/step_00000005", run / "checkpoints" / aside)
    save(store, 10)
    assert names(run) == ["step_00000003.bad", "step_00000004.abandoned", "step_00000010"]


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


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {**SHAPES, "tower.weight": (7, 6)},
            r"tower\.weight has shape \(6, 7\) there and \(7, 6\)",
        ),
        ({**SHAPES, "head": (2,)}, r"head has shape None there and \(2,\) here"),
        ({"tower.weight": (6, 7), "tower.bias": (5,)}, r"scale has shape \(\) there and None here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    run: Path, store: CheckpointStore, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    save(store, 10)
    engine = DictEngine(-1, shapes)
    with pytest.raises(UserError, match=message):
        store.restore(engine, shapes)
    assert engine.equals(-1)
    assert names(run) == ["step_00000010"]


def test_saving_a_step_again_sets_the_old_one_aside(run: Path, store: CheckpointStore) -> None:
    for seed in (1, 2, 3):
        assert save(store, 10, seed)
    assert names(run) == ["step_00000010", "step_00000010.abandoned", "step_00000010.abandoned.2"]
    assert restored(store)[0].equals(3)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)


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

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    for part in ("write_shard", "write_bytes_atomic", "write_json_atomic"):
        with monkeypatch.context() as patched:
            patched.setattr(f"electra_dist.checkpoint.store.{part}", refuse)
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


def test_leftovers_are_removed_by_rank_0_only(run: Path) -> None:
    attempt = Attempt.claim(run)
    for name in ("step_00000010.tmp-1", "step_00000020.tmp-12"):
        (run / "checkpoints" / name / "deep").mkdir(parents=True)
    a_store(attempt, rank=1, ranks=2).remove_leftovers()
    assert len(names(run)) == 2
    a_store(attempt).remove_leftovers()
    assert names(run) == []


def test_the_state_is_readable_json_and_checked(run: Path, store: CheckpointStore) -> None:
    store.save(DictEngine(1), 10, {"step": 10, "config_fingerprint": "abc"})
    text = (run / "checkpoints/step_00000010/state.json").read_text()
    assert json.loads(text) == {"step": 10, "config_fingerprint": "abc"}
