import json
import shutil
from pathlib import Path

import pytest
import torch

from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from tests.unit.checkpoint.fake_engine import (
    SHAPES,
    DictEngine,
    a_store,
    damage,
    names,
    restored,
    save,
    saved,
)


def test_what_was_saved_comes_back_bit_for_bit(run: Path, store: CheckpointStore) -> None:
    assert store.newest_name() is None
    assert restored(store)[1] is None
    engine = DictEngine(seed=7)
    engine.tensors["tower.bias", "master"][:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    state = {"step": 40, "position": 1280, "loss_scale": None}
    assert saved(store, engine, 40, state)
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
    assert saved(a_store(attempt, rank=1, ranks=2), DictEngine(3, rank=1, ranks=2), 9, {})
    assert names(run) == ["step_00000009.tmp-1"]
    assert saved(a_store(attempt, rank=0, ranks=2), DictEngine(3, rank=0, ranks=2), 9, {})
    assert names(run) == ["step_00000009"]
    with CheckpointReader(run / "checkpoints/step_00000009") as reader:
        assert len(reader.manifest.shards) == 2
    alone, _ = restored(a_store(Attempt.claim(run)))
    assert alone.equals(3)


def test_parts_that_do_not_cover_the_model_are_not_committed(
    run: Path, store: CheckpointStore
) -> None:
    # One rank alone, whose engine owns only the first half of everything.
    assert not saved(store, DictEngine(3, rank=0, ranks=2), 9, {})
    assert names(run) == []
    (event,) = read_json_lines(run / "events.jsonl")
    assert "do not cover the model: tower.weight/master: 21 of 42" in event["cause"]


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


def test_leftovers_are_removed_by_rank_0_only(run: Path) -> None:
    attempt = Attempt.claim(run)
    for name in ("step_00000010.tmp-1", "step_00000020.tmp-12"):
        (run / "checkpoints" / name / "deep").mkdir(parents=True)
    a_store(attempt, rank=1, ranks=2).remove_leftovers()
    assert len(names(run)) == 2
    a_store(attempt).remove_leftovers()
    assert names(run) == []


def test_the_state_is_readable_json_and_checked(run: Path, store: CheckpointStore) -> None:
    saved(store, DictEngine(1), 10, {"step": 10, "config_fingerprint": "abc"})
    text = (run / "checkpoints/step_00000010/state.json").read_text()
    assert json.loads(text) == {"step": 10, "config_fingerprint": "abc"}


def test_a_rollback_that_must_go_further_back_finds_the_one_before(store: CheckpointStore) -> None:
    for step in (10, 20, 30):
        save(store, step)
    assert [store.step_before(step) for step in (10, 20, 30, 99)] == [None, 10, 20, 30]
