"""Roll-backs, attempts that wake up late, and what crashed worlds of another size left behind."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from electra_dist.checkpoint import restore
from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.engine.protocol import Fragment
from electra_dist.errors import Superseded, UserError
from electra_dist.runtime.attempt import Attempt
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


def test_a_block_that_goes_bad_between_check_and_copy_falls_back_to_the_one_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(Attempt.claim(run))
    save(store, 10)
    save(a_store(Attempt.join(run, 1)), 20)

    def fill_late(reader: CheckpointReader, fragments: Iterable[Fragment]) -> None:
        if reader.manifest.step == 20:
            damage(run, 20)
        restore.fill(reader, fragments)

    monkeypatch.setattr("electra_dist.checkpoint.store.fill", fill_late)
    engine, state = restored(store)
    assert state == {"step": 10}
    assert engine.equals(10)
    assert names(run) == ["step_00000010", "step_00000020.bad"]


def test_a_roll_back_renames_the_newer_ones_and_goes_over_their_steps_again(run: Path) -> None:
    attempt = Attempt.claim(run)
    for step in (10, 20, 30, 40):
        assert save(a_store(attempt, keep_last=9), step)
    damage(run, 30)
    later = Attempt.claim(run)
    engine = DictEngine(-1)
    assert a_store(later).restore(engine, SHAPES, max_step=25) == {"step": 20}
    assert engine.equals(20)
    assert names(run) == [
        *("step_00000010", "step_00000020", "step_00000030.abandoned", "step_00000040.abandoned")
    ]
    assert events(run)[-2:] == [("abandoned", f"step_000000{n}") for n in (40, 30)]
    assert save(a_store(later), 30, seed=31)
    assert restored(a_store(later))[0].equals(31)
    # Once more over the same step, and to the step itself: nothing is newer then.
    assert a_store(later).restore(engine, SHAPES, max_step=20) == {"step": 20}
    assert "step_00000030.abandoned.2" in names(run)
    num_events = len(events(run))
    assert a_store(later).restore(engine, SHAPES, max_step=20) == {"step": 20}
    assert len(events(run)) == num_events


def test_a_roll_back_that_finds_nothing_good_renames_nothing(run: Path) -> None:
    for step in (10, 20):
        save(a_store(Attempt.claim(run)), step)
    store, engine = a_store(Attempt.claim(run)), DictEngine(-1)
    with pytest.raises(UserError, match=r"no checkpoint of step 9 or before.*step_00000010"):
        store.restore(engine, SHAPES, max_step=9)
    damage(run, 10)
    with pytest.raises(UserError, match="no checkpoint verifies"):
        store.restore(engine, SHAPES, max_step=15)
    assert engine.equals(-1)
    assert names(run) == ["step_00000010", "step_00000020"]


def test_an_attempt_that_wakes_up_late_renames_and_removes_nothing(run: Path) -> None:
    old = Attempt.claim(run)
    for step in (10, 20):
        save(a_store(old), step)
    Attempt.claim(run)
    (run / "checkpoints/step_00000030.tmp-2").mkdir()
    before = names(run)
    with pytest.raises(Superseded):
        a_store(old).restore(DictEngine(-1), SHAPES, max_step=10)
    with pytest.raises(Superseded):
        a_store(old).remove_leftovers()
    damage(run, 20)
    with pytest.raises(Superseded):
        restored(a_store(old))
    assert names(run) == before


def test_a_stale_folder_of_another_world_size_mixes_with_nothing(run: Path) -> None:
    """Four ranks crashed just before the commit; two go on, and save the same step."""
    crashed = Attempt.claim(run)
    for rank in (1, 2, 3):  # rank 0 is killed before its part
        assert saved(a_store(crashed, rank=rank, ranks=4), DictEngine(1, rank=rank, ranks=4), 9, {})
    assert names(run) == ["step_00000009.tmp-1"]
    assert list_checkpoints(run) == []
    later = Attempt.claim(run)
    for rank in (1, 0):  # before leftovers are removed: a start that was too early, say
        assert saved(a_store(later, rank=rank, ranks=2), DictEngine(2, rank=rank, ranks=2), 9, {})
    assert names(run) == ["step_00000009", "step_00000009.tmp-1"]
    assert restored(a_store(later))[0].equals(2)
    shards = sorted(path.name for path in (run / "checkpoints/step_00000009").glob("shard*"))
    assert shards == ["shard_00000.safetensors", "shard_00001.safetensors"]
    # The crashed attempt's rank 0 wakes up and would have all four shards to commit.
    with pytest.raises(Superseded):
        saved(a_store(crashed, rank=0, ranks=4), DictEngine(1, rank=0, ranks=4), 9, {})
    assert restored(a_store(later))[0].equals(2)
    a_store(later).remove_leftovers()
    assert names(run) == ["step_00000009"]
