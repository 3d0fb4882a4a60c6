"""Saves beside the training: what is held still, who waits for whom, and no error is lost."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from electra_dist.checkpoint import async_writer, commit
from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.errors import Superseded
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from tests.unit.checkpoint.fake_engine import DictEngine, a_store, names, restored, save


class Gate:
    """A disk that takes nothing until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        real = commit.write_shard

        def write_shard(*arguments: Any) -> Any:
            assert self._open.wait(20)
            return real(*arguments)

        monkeypatch.setattr(commit, "write_shard", write_shard)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, store: CheckpointStore) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()
    store.close()


def test_training_goes_on_over_what_is_being_saved(
    run: Path, store: CheckpointStore, gate: Gate
) -> None:
    engine = DictEngine(seed=1)
    store.prepare(engine)
    store.save(engine, 10, {"step": 10})
    for tensor in engine.tensors.values():
        tensor.fill_(7.0)  # the next step overwrites weights and moments
    assert list_checkpoints(run) == []
    gate.open()
    assert store.wait()
    found, state = restored(a_store(Attempt.claim(run)))
    assert state == {"step": 10}
    assert found.equals(1)


def test_with_two_in_flight_there_is_no_room_until_one_is_done(
    run: Path, store: CheckpointStore, gate: Gate
) -> None:
    engine = DictEngine(seed=0)
    assert store.signs() == (0, 0, 0)
    for number, step in enumerate((10, 20), start=1):
        for tensor in engine.tensors.values():
            tensor.fill_(float(step))
        store.save(engine, step, {"step": step})
        assert store.signs().busy == (number == 2)
    with pytest.raises(AssertionError, match="no buffer set is free"):
        store.save(engine, 30, {"step": 30})
    gate.open()
    assert store.wait()
    assert store.signs() == (0, 0, 0)
    assert names(run) == ["step_00000010", "step_00000020"]
    for info in reversed(list_checkpoints(run)):
        found, state = restored(a_store(Attempt.claim(run)))
        assert state == {"step": info.step}
        assert all((tensor == info.step).all() for tensor in found.tensors.values())
        os.rename(info.folder, f"{info.folder}.bad")


def test_both_modes_write_the_same_bytes(tmp_path: Path) -> None:
    runs = []
    for asynchronous in (True, False):
        runs.append(tmp_path / f"{asynchronous}")
        attempt = Attempt.claim(runs[-1])
        for rank in (1, 0):
            store = a_store(attempt, rank=rank, ranks=2, asynchronous=asynchronous)
            store.save(DictEngine(3, rank=rank, ranks=2), 10, {"step": 10})
            assert store.wait()
            store.close()
    one, other = (
        {p.name: p.read_bytes() for p in (run / "checkpoints/step_00000010").iterdir()}
        for run in runs
    )
    assert len(one) == 4
    assert one == other


def test_a_synchronous_save_is_done_when_it_returns(run: Path) -> None:
    store = a_store(Attempt.claim(run), asynchronous=False)
    store.save(DictEngine(1), 10, {"step": 10})
    assert names(run) == ["step_00000010"]
    store.close()
    (event,) = read_json_lines(run / "events.jsonl")
    assert event["blocked_seconds"] == event["seconds"]


def test_a_failed_save_is_told_once_and_a_later_good_one_counts(
    run: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def defect(*_: object) -> None:
            raise ZeroDivisionError("a defect of ours")

        patched.setattr(commit, "write_shard", defect)
        assert not save(store, 10)
    assert store.signs().failed == 1
    assert store.signs().failed == 0
    assert not store.wait()  # still: the newest save is not on disk
    (event,) = read_json_lines(run / "events.jsonl")
    assert (event["event"], event["step"]) == ("save_failed", 10)
    assert event["cause"] == "ZeroDivisionError: a defect of ours"
    assert save(store, 20)
    assert store.signs() == (0, 0, 0)


def test_a_later_attempt_is_found_by_the_thread_and_told_at_the_next_step(
    run: Path, store: CheckpointStore
) -> None:
    newer = Attempt.claim(run)
    store.save(DictEngine(1), 10, {})
    store.settle(20)
    assert store.signs().superseded == 1
    with pytest.raises(Superseded, match="Attempt 1"):
        store.wait()
    store.close()
    assert list_checkpoints(run) == []
    assert save(a_store(newer), 10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_an_error_at_the_next_step(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(commit, "write_shard", die)
    store.save(DictEngine(1), 10, {})
    store._writer._thread.join(20)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"thread has died with 1 save\(s\) in flight"):
        store.signs()
    with pytest.raises(RuntimeError, match=r"thread has died"):
        store.wait()


def test_what_a_slow_rank_left_of_a_failed_save_goes_with_the_next_one(run: Path) -> None:
    attempt = Attempt.claim(run)
    slow, store = a_store(attempt, rank=1, ranks=2), a_store(attempt, ranks=2, deadline=0.05)
    engines = [DictEngine(5, rank=rank, ranks=2) for rank in (0, 1)]
    store.save(engines[0], 10, {})
    assert not store.wait()
    slow.save(engines[1], 10, {})  # after rank 0 has given up
    assert slow.wait()
    assert names(run) == ["step_00000010.tmp-1"]
    slow.save(engines[1], 20, {})
    assert slow.wait()
    store.save(engines[0], 20, {})
    assert store.wait()
    assert names(run) == ["step_00000020"]
    slow.close()
    store.close()


def test_a_done_file_of_an_earlier_save_of_the_step_is_not_taken_for_this_one(run: Path) -> None:
    attempt = Attempt.claim(run)
    slow, store = a_store(attempt, rank=1, ranks=2), a_store(attempt, ranks=2, deadline=0.05)
    store.save(DictEngine(5, ranks=2), 10, {})
    assert not store.wait()
    slow.save(DictEngine(5, rank=1, ranks=2), 10, {})
    assert slow.wait()
    # After a roll-back step 10 comes again; rank 1 is late again, and its old shard lies there.
    store.save(DictEngine(6, ranks=2), 10, {})
    assert not store.wait()
    assert list_checkpoints(run) == []
    slow.close()
    store.close()


def test_buffers_are_twice_what_the_rank_owns() -> None:
    engine = DictEngine(1)
    num_elements = sum(len(f.values) for f in engine.owned_fragments())
    buffers = async_writer.HostBuffers(num_elements, engine.device)
    first = buffers.copy(engine.owned_fragments(), 0)
    second = buffers.copy(engine.owned_fragments(), 1)
    third = buffers.copy(engine.owned_fragments(), 2)
    places = [pieces[0].values.ctypes.data for pieces in (first, second, third)]
    assert places[0] == places[2] != places[1]
    assert [p.name for p in first] == [f"{n}/{k}" for n, k in engine.tensors]


@pytest.mark.gpu
@pytest.mark.needs_gpu
def test_on_a_gpu_the_copy_is_complete_before_the_weights_change() -> None:
    device = torch.device("cuda", 0)
    shapes = {"w": (1 << 26,)}
    engine = DictEngine(1, shapes)
    engine.tensors = {key: tensor.to(device) for key, tensor in engine.tensors.items()}
    buffers = async_writer.HostBuffers(3 << 26, device)
    assert all(buffer.is_pinned() for buffer in buffers._buffers)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):  # an update that still runs on another stream
        torch.cuda._sleep(200_000_000)
        for tensor in engine.tensors.values():
            tensor.fill_(3.0)
    pieces = buffers.copy(engine.owned_fragments(), 0)
    for tensor in engine.tensors.values():
        tensor.fill_(4.0)
    torch.cuda.synchronize(device)
    assert all((piece.values == 3.0).all() for piece in pieces)
